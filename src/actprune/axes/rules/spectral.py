"""Fourier transforms and complex numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.fx import Node

from actprune.axes.call import Call, rule
from actprune.axes.expr import size
from actprune.axes.rules.reduce import dims_of
from actprune.axes.site import Dims
from actprune.graph.rewriting import is_call

_SLICES = ("aten.slice.", "aten.split.", "aten.split_with_sizes.", "aten.chunk.", "aten.narrow.")
_VIEWS = (
    *_SLICES, "getitem", "aten.reshape.", "aten.view.", "aten.transpose.", "aten.permute.", "aten.unsqueeze.",
    "aten.select.", "aten.expand.", "aten.to.", "aten._to_copy.", "aten.alias.",
)  # fmt: skip

FFT = "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft".split()
"""Transforms of one dimension; with a 2 or an n at the end, of two or of any."""


@rule(*(f"aten.{name}{how}" for name in FFT for how in ("", "2", "n")), "aten.fft_fftshift", "aten.fft_ifftshift")
def transform(call: Call) -> Dims:
    """Over `dim`, the last `len(s)` where only sizes are given, or everything."""
    source = call.axes(call["self"])
    dim, sizes = call["dim"], call["s"]
    last = range(-len(sizes), 0) if dim is None and sizes is not None else dim
    for d in dims_of(last, len(source)):
        call.freeze(source[d], "transformed")
    return tuple(
        axis if size(axis) == n else call.fixed(n, "transformed")
        for axis, n in zip(source, call.shape(), strict=True)
    )  # fmt: skip


@rule("aten.stft")
def stft(call: Call) -> Dims:
    """(…, samples) → (…, frequencies, frames), and 2 where complex numbers are given as pairs."""
    *batch, samples = call.axes(call["self"])
    for axis in (samples, *call.axes(call["window"])):
        call.freeze(axis, "transformed")
    return (*batch, *(call.fixed(n, "transformed") for n in call.shape()[len(batch) :]))


@rule("aten.istft")
def istft(call: Call) -> Dims:
    """(…, frequencies, frames) → (…, samples)."""
    *batch, frequencies, frames = call.axes(call["self"])
    for axis in (frequencies, frames, *call.axes(call["window"])):
        call.freeze(axis, "transformed")
    return (*batch, call.fixed(call.shape()[-1], "transformed"))


@rule("aten.view_as_real")
def view_as_real(call: Call) -> Dims:
    return (*call.axes(call["self"]), call.fixed(2, "real and imaginary parts"))


@rule("aten.view_as_complex")
def view_as_complex(call: Call) -> Dims:
    *source, pair = call.axes(call["self"])
    call.freeze(pair, "real and imaginary parts")
    for part_of in _sliced(call["self"]):
        call.aligns(call.axes(part_of)[-1], 2)
    return tuple(source)


def _sliced(value: Any) -> Iterator[Node]:
    """What a view is a slice of: its strides have to be even where pairs of it are looked at as complex numbers."""
    while is_call(value, *_VIEWS):
        source = value.args[0]
        if is_call(value, *_SLICES):
            yield source
        value = source


@rule("aten.imag", "aten._conj")
def imag(call: Call) -> Dims:
    return call.axes(call["self"])
