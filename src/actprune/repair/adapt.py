"""Before any plan: which groups can the user's class carry a cut of, as far as its recorded sizes tell?

Every group is cut a little on paper. Where a size can't be mended, of two groups that are one number in the class as
many units have to stay, and what is left is frozen with the place of that size as the reason.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from actprune.axes.account import BEYOND_CLASS
from actprune.axes.capture import Graph
from actprune.axes.capture import capture as captured
from actprune.axes.expr import Indices
from actprune.graph.numbers import variables
from actprune.graph.sizes import SizeUse
from actprune.repair.scales import followers, following, scaled
from actprune.repair.solve import Stuck, repair

TRIALS = (0, 1, 2)
"""Seeds of the cuts that are tried on paper: in one of them, two groups may lose as many units by chance."""


def capture(model: nn.Module, example_inputs: Any, *, norms: bool | str = "auto") -> Graph:
    """Capture `model` as a graph and find what can be cut in it.

    Args:
        model: any module; it is left as it was.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments, batch first.
        norms: which axes that a norm or a mean runs over may be cut: "auto", what lies within a branch (the hidden
            layer in front of a norm); True, streams as well (the width of a transformer); False, none. Their
            statistics are then those of the units that stay, and so the network computes another function.

    Returns:
        The graph. Its groups are those that the model's class can carry a cut of, as far as the sizes tell that it
        writes down.

    Raises:
        CaptureError: the model can't be traced with these inputs.
    """
    return adapt(captured(model, example_inputs, norms=norms))


def adapt(graph: Graph) -> Graph:
    """The graph with groups that are one number in the class, and with those frozen of which it can't carry a cut."""
    stuck = _stuck(graph, ())
    while pairs := {pair for one in stuck for pair in one.counted} - {*graph.counted}:
        graph = replace(graph, counted=(*graph.counted, *sorted(pairs)))
        stuck = _stuck(graph, ())
    while dropped := {leaf for one in stuck for leaf in variables(one.use.expr)} & graph.program.sizes.optional:
        sizes = graph.program.sizes.without(dropped)
        graph = replace(graph, program=replace(graph.program, sizes=sizes))
        stuck = _stuck(graph, ())
    with_scales = _with_scales(graph)
    lost = _blamed_groups(graph, stuck) if with_scales is graph else beyond_repair(with_scales)
    return with_scales.without(lost)


def _with_scales(graph: Graph) -> Graph:
    """The graph in which every number that can follow a size that is cut does."""
    found = followers(graph)
    while found:
        trial = following(graph, found)
        astray = {stuck.index for stuck in _stuck(trial, ())} & found.keys()
        if not astray:
            return scaled(trial, found)
        found = {i: role for i, role in found.items() if i not in astray}
    return graph


def beyond_repair(graph: Graph) -> dict[str, str]:
    """The groups that depend on a size which neither an attribute nor the source can change: name → reason."""
    return _blamed_groups(graph, _stuck(graph, ()))


def _blamed_groups(graph: Graph, stuck: list[Stuck]) -> dict[str, str]:
    """Those of `stuck`, the sizes that can't be mended when every group is cut, and of what is stuck without them.

    Sizes of the fewest groups come first: a width of heads and dimensions may be stuck by the dimensions alone.
    """
    by_key = {group.key: group.name for group in graph.groups}
    found: dict[str, str] = {}
    while named := [(s, names) for s in stuck if (names := {by_key[k] for k in s.keys} - found.keys())]:
        fewest = min(len(names) for _, names in named)
        found |= {name: blamed(_size_at(s.use)) for s, names in named if len(names) == fewest for name in names}
        stuck = _stuck(graph, found)
    return found


def blamed(reason: str) -> str:
    """The words for a group that the class can't follow."""
    return f"{BEYOND_CLASS}: {reason}"


def trial_units(graph: Graph, names: Iterable[str], seed: int = 0) -> dict[str, list[int]]:
    """Each named group loses between one unit and half of them; different counts, so that one number for two of them
    shows, but for groups of which as many have to stay: these come along."""
    draw, numbers = random.Random(seed), np.random.default_rng(seed)
    wanted = set(graph.together(names))
    kept: dict[str, list[int]] = {}
    for group in graph.groups:
        count = draw.choice([n for n in group.widths if 2 * n >= group.width] or [*group.widths][-1:])
        count = next((len(kept[peer]) for peer in graph.peers[group.name] if peer in kept), count)
        units = np.sort(numbers.permutation(group.width)[:count])
        if group.name in wanted:
            kept[group.name] = units.tolist()
    return kept


def _stuck(graph: Graph, without: Iterable[str]) -> list[Stuck]:
    names = {group.name for group in graph.groups} - set(without)
    keys = {group.name: group.key for group in graph.groups}
    found: list[Stuck] = []
    for seed in TRIALS:
        kept: dict[int, Indices] = {keys[n]: np.asarray(u) for n, u in trial_units(graph, names, seed).items()}
        found += repair(graph, kept).stuck
    return found


def _size_at(use: SizeUse) -> str:
    place = use.place
    where = f"{place.code.co_name}, {place.code.co_filename.rpartition('/')[2]}:{place.span[0]}"
    return f"{use.op} is given a size of {use.value} that can't be changed, in {where}"
