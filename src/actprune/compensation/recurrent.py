"""Refitting the layers of a recurrent call: two linear consumers, of the input and of the hidden state, over all steps.

Each aims at the pre-activations that the dense network has (`stats.recurrent`). W_ih is fitted on what the cut network
gives it; where its output is added to that of W_hh, the latter also takes over what is left of the error:

    T = W_hh h + b_hh + (W_ih x + b_ih − W̃_ih x̃ − b̃_ih)

(not in the candidate of a GRU, where a gate stands between). What W_hh reads depends on W̃_hh itself: it is fitted on
the dense states first (teacher forcing, Williams and Zipser 1989, A Learning Algorithm for Continually Running Fully
Recurrent Neural Networks, §4), then on those of the cut layer's own run with the fit before (compare Ross, Gordon and
Bagnell 2011, A Reduction of Imitation Learning, §3). An error of a pre-activation is not one of a state, so after every
fit the layer is run, and the fit whose states are nearest to the dense ones on samples that it has not seen is made
again on all samples: never worse than before on those. Where there is room for it, the layer is then fitted as a whole
(`unrolled`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.site import Site
from actprune.compensation.direction import Direction, Lengths, Scope, Values, name_of
from actprune.stats.recurrent import WEIGHTS, joined, turned, unroll


@torch.no_grad()
def refit_recurrent(scope: Scope, node: Node, sites: Sequence[Site]) -> dict[str, dict[str, Any]]:
    """Refit the weights of one call, layer by layer; the overrides of the streams change.

    Args:
        node: has been run in the dense stream only.
        sites: of the call.

    Returns:
        name of a site → what was done.
    """
    streams, record = scope.streams, dict[str, dict[str, Any]]()
    dense, now = ([unroll(node, *streams.given(node, i, cut)) for i in range(streams.count)] for cut in (False, True))
    x = [run.x for run in dense]
    own = x if all(a is b for a, b in zip(x, (run.x for run in now), strict=True)) else [run.x for run in now]
    by_weight = {site.weight: site for site in sites if scope.wanted(site)}
    lengths, place = [run.lengths for run in dense], 0
    for number, layer in enumerate(dense[0].layers):
        found: list[tuple[Values, Values]] = []
        for part, current in zip(layer, now[0].layers[number], strict=True):
            one = Direction(
                scope, node, part,
                x=(ahead := _each(turned, part, x, lengths)), states=[run.states[place] for run in dense],
                own_x=ahead if own is x else _each(turned, part, own, lengths),
                own_states=[run.states[place] for run in now], there=[run.there for run in dense],
                sites={which: site for which in WEIGHTS if (site := by_weight.get(name_of(scope, part, which) or ""))},
            )  # fmt: skip
            params, states = one.best(current.params) if one.sites else (current.params, one.run(current.params))
            record |= one.record
            for which, value in enumerate(params):
                name = name_of(scope, part, which)
                if name is not None and value is not current.params[which] and value is not None:
                    streams.overrides[name] = value
            found.append((one.hidden, states))
            place += 1
        x, own = (_each(joined, layer, list(zip(*(pair[k] for pair in found), strict=True)), lengths) for k in (0, 1))
    return record


def _each(
    made: Callable[[Any, Any, Tensor | None], Tensor], of: Any, values: Sequence[Any], lengths: Lengths
) -> Values:
    """Of every batch, with the lengths of its samples."""
    return [made(of, value, own) for value, own in zip(values, lengths, strict=True)]
