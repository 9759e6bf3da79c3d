"""Layers of a Keras model whose `call` is another one for a while: noted in a capture, or without dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.fx.traceback as annotations

from actprune.graph.rebuilt import PATH, STATE
from actprune.keras3.places import quantization

_DROPPING = (
    "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout GaussianDropout GaussianNoise "
    "MultiHeadAttention GroupedQueryAttention LSTM GRU SimpleRNN LSTMCell GRUCell SimpleRNNCell"
).split()
"""Classes of Keras that take `training` for nothing but the noise that they add or the units that they drop."""

Call = Callable[..., Any]


@contextmanager
def annotated(named: Iterable[tuple[str, Any]]) -> Iterator[None]:
    """Note in every node of a capture the layer that it was called in: Keras's own call hides it from torch.

    Args:
        named: (path, layer or operation).
    """
    if not annotations.has_preserved_node_meta():
        yield
        return

    def noted(path: str, state: str | None) -> Callable[[Call], Call]:
        def within(call: Call) -> Call:
            def called(*args: Any, **kwargs: Any) -> Any:
                with annotations.annotate({PATH: path, STATE: state}):
                    return call(*args, **kwargs)

            return called

        return within

    with ExitStack() as stack:
        for path, layer in named:
            mode = quantization(layer)
            state, method = (None, "call") if mode is None else (f"quantized to {mode}", "quantized_call")
            stack.enter_context(_calling(layer, noted(path, state), method))
        yield


@contextmanager
def without_dropout(layers: Iterable[Any]) -> Iterator[None]:
    """Call layers that drop units, or add noise, as in inference; all others as they are."""

    def calm(call: Call) -> Call:
        return lambda *args, **kwargs: call(*args, **{**kwargs, "training": False})

    with ExitStack() as stack:
        for layer in layers:
            if any(kind.__module__.startswith("keras.") and kind.__name__ in _DROPPING for kind in type(layer).__mro__):
                stack.enter_context(_calling(layer, calm))
        yield


@contextmanager
def _calling(layer: Any, change: Callable[[Call], Call], name: str = "call") -> Iterator[None]:
    """A method of the layer changed. Keras's own attributes track what is set, so it is set behind its back."""
    held = vars(layer)
    before = held.get(name)
    held[name] = change(getattr(layer, name))
    try:
        yield
    finally:
        if before is None:
            del held[name]
        else:
            held[name] = before
