"""Proof that a shorter network computes what the dense one does with the blocks left out.

Both are captured and run in float64: the dense network with blocks that return what they are given, and the shorter
one as it will be returned. They are compared on its own weights and on redrawn ones. A decoder is also run token by
token: its cache knows layers by their numbers, and no capture sees it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from actprune.allocation.cost import cost
from actprune.axes.capture import Graph, capture
from actprune.depth.bypass import Block, bypassed
from actprune.depth.plan import DepthPlan
from actprune.errors import CaptureError, EquivalenceError
from actprune.graph.keep import kept_buffers, preserved
from actprune.graph.program import Batch, Program
from actprune.graph.trace import call_arguments, trace
from actprune.proof.check import Proof, same_values
from actprune.proof.compare import seeded
from actprune.proof.difference import TOLERANCE, relative_error
from actprune.proof.eager import EAGER_TOLERANCE, eager_against_graph
from actprune.proof.reference import redrawn

CACHE_TOLERANCE = 1e-3
"""Relative error of logits that are made with a cache to those without; where it is larger, ten times the dense one."""


def prove(
    net: nn.Module, gone: Sequence[Block], small: nn.Module, plan: DepthPlan, inputs: Any, *, seed: int = 0
) -> Proof:
    """Prove that `small` is the dense network without the blocks `gone`.

    Args:
        net: a twin of the dense network.
        small: what the plan made of it, exactly as it will be returned.
        inputs: one batch of real inputs, as for `capture`.

    Raises:
        EquivalenceError: it is not, or does not run.
    """
    started = time.perf_counter()
    if (name := _changed(plan, net, small)) is not None:
        raise _unequal(plan, f"other values in {name}")
    with bypassed(net, gone):
        dense = trace(net, inputs)
    graph = _captured(small, inputs)
    batch = dense.flatten(*call_arguments(net, inputs))
    names = _dense_names(plan, dense, graph.program)
    drawn = redrawn(dense, {}, seed)
    moved = {name: drawn[source] for name, source in names.items() if source in drawn}
    real = _error(dense, graph.program, batch, {}, {})
    other = _error(dense, graph.program, batch, drawn, moved)
    eager, failure = eager_against_graph(small, graph.program, inputs, batch)
    for what, error in (("the real weights", real), ("redrawn weights", other)):
        if not error <= TOLERANCE:
            raise _unequal(plan, f"a relative error of {error:.3g} on {what}")
    if failure is not None:
        finite = eager < float("inf")
        raise _unequal(plan, f"a relative error of {eager:.3g} between {failure}" if finite else failure)
    if (failure := _decoding(net, small, inputs)) is not None:
        raise _unequal(plan, f"{failure}, when a token is made from the cache of those before")
    measured, seconds = cost(graph), time.perf_counter() - started
    worst = max(real, other)
    return Proof(True, worst, real, other, eager, measured.params, measured.macs, seconds=seconds)


def _captured(small: nn.Module, inputs: Any) -> Graph:
    try:
        return capture(small, inputs)
    except CaptureError as error:
        raise EquivalenceError(
            f"The shorter {type(small).__name__} does not run.",
            expected="a class that runs with fewer items in its containers",
            got=str(error.got),
            where=str(error.where),
            hint=_HINT,
        ) from error


def _dense_names(plan: DepthPlan, dense: Program, small: Program) -> dict[str, str]:
    """Tensor of the shorter network → the same tensor's first name in the dense one."""
    canonical = {alias: name for name, aliases in dense.aliases.items() for alias in aliases}
    found = {name: canonical.get(plan.dense_name(name)) for name in small.tensors}
    return {name: source for name, source in found.items() if source is not None}


def _error(
    dense: Program, small: Program, batch: Batch, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> float:
    """Of the outputs in float64; infinite where they are not finite."""
    expected, found = seeded(dense, batch, mine), seeded(small, batch, theirs)
    floats = [leaf for leaf in expected if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return relative_error(expected, found) if all(bool(leaf.isfinite().all()) for leaf in floats) else float("inf")


def _changed(plan: DepthPlan, net: nn.Module, small: nn.Module) -> str | None:
    """A tensor of the shorter network that is not the dense one's; one that is read may still be without effect."""
    dense = net.state_dict()
    for name, own in small.state_dict().items():
        source = dense.get(plan.dense_name(name))
        if isinstance(own, Tensor) and (source is None or not same_values(source, own)):
            return name
    return None


def _decoding(net: nn.Module, small: nn.Module, inputs: Any) -> str | None:
    """What goes wrong where a decoder makes its second token from its cache; None where that is not otherwise when
    the network is dense, or it is no decoder."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    config = getattr(small, "config", None)
    decodes = getattr(small, "can_generate", lambda: False)() and not getattr(config, "is_encoder_decoder", False)
    if not decodes or not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] < 3:
        return None
    found = _decoded(small, ids[:, :-2])
    if isinstance(found, float) and found <= CACHE_TOLERANCE:
        return None
    dense = _decoded(net, ids[:, :-2])
    if isinstance(dense, str):
        return None
    return found if isinstance(found, str) else f"a relative error of {found:.3g}" if found > 10 * dense else None


def _decoded(model: Any, ids: Tensor) -> float | str:
    """The relative error of the logits of the second token, made with a cache, to those made without; or what was
    raised."""
    with preserved(model), kept_buffers(model), torch.no_grad():
        model.eval()
        try:
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, min_new_tokens=2, do_sample=False,
                num_beams=1, use_cache=True, output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            whole = model(input_ids=made.sequences[:, :-1], use_cache=False).logits[:, -1]
        except Exception as error:  # whatever a class of transformers raises
            return f"{type(error).__name__}: {str(error)[:300]}"
    return relative_error((whole.double(),), (made.logits[1].double(),))


_HINT = "name the blocks that have to stay with protect=; a class that calls its blocks by number can't be shortened"


def _unequal(plan: DepthPlan, got: str) -> EquivalenceError:
    return EquivalenceError(
        f"The shorter {plan.model} is not the dense one without these blocks.",
        expected=f"its weights, and relative errors up to {TOLERANCE:g} in float64 and {EAGER_TOLERANCE:g} as it runs",
        got=got,
        where=", ".join(plan.kept) or "shorten",
        hint=_HINT,
    )
