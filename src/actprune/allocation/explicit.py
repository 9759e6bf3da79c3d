"""Plans of widths that are given, and what a plan notes of its costs."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from numbers import Integral

from actprune.allocation.cost import COSTS, cost
from actprune.allocation.protection import protected
from actprune.axes.capture import Graph
from actprune.errors import BudgetError
from actprune.guidance.guide import Guide
from actprune.latency.table import LatencyTable
from actprune.methods import known
from actprune.plan import Plan, make_plan


def explicit(graph: Graph, guide: Guide, widths: Mapping[str, int], protect: Sequence[str]) -> Plan:
    """The plan of given widths.

    Args:
        widths: group name, or a pattern of names (as in `fnmatch`), → units; the last one that fits counts. Groups that
            are not named stay whole, but for those that one number of the class counts with one that is: they have
            its width.
        protect: patterns of module paths whose units all stay.

    Raises:
        BudgetError: there is no such group, or it can't have that width.
        PlanError: two groups that one number counts would have different widths.
    """
    _check_no_cost(graph, widths)
    asked = {group: k for name, k in widths.items() for group in _groups_named(graph, name)}
    untouched = protected(graph, protect)
    for name, k in asked.items():
        width = graph[name].width
        least = width if name in untouched else 1
        if isinstance(k, bool) or not isinstance(k, Integral) or not least <= k <= width:
            raise BudgetError(
                f"Group {name!r} can't have {k!r} units.",
                expected=f"a whole number, {least} to {width}" if least < width else f"{width}: it is protected",
                got=repr(k),
                where="keep",
                hint=f'{max(round(k * width), 1)} is that share of it; keep="units={k:.0%}" takes it of every group'
                if isinstance(k, float) and 0 < k < 1
                else "graph.groups lists the widths of the dense network",
            )
    wanted = {peer: int(k) for name, k in asked.items() for peer in graph.peers[name]}
    wanted |= {name: int(k) for name, k in asked.items()}  # that two differ, the plan says
    return make_plan(
        graph, guide.supports(wanted), method=guide.method, allocation="explicit", budget=None,
        predicted=predicted(graph, wanted),
    )  # fmt: skip


def _check_no_cost(graph: Graph, widths: Mapping[str, int]) -> None:
    names = {group.name for group in graph.groups}
    for name, k in widths.items():
        if name in COSTS and name not in names:
            raise BudgetError(
                "These are widths of groups, and one has the name of a cost.",
                expected="the names of groups, with how many units stay of each",
                got=f"{name!r}: {k!r}",
                where="keep",
                hint=f'a budget is a text: keep="{name}=50%"',
            )


def _groups_named(graph: Graph, name: str) -> list[str]:
    """The groups that fit a pattern, or the one of a name."""
    return fnmatch.filter([group.name for group in graph.groups], name) or [_group_named(graph, name)]


def _group_named(graph: Graph, name: str) -> str:
    """The group of a name; a module's own stands for the first of its groups where they all have one width: `lstm`."""
    names = [group.name for group in graph.groups]
    own = tuple(other for other in names if other.partition("#")[0] == name)
    if own and name not in own and own == graph.peers[own[0]]:
        return own[0]
    if name not in names and (told := _units_of(graph, name)):
        return known(name, names, "group", where="keep", hint=told)
    return known(name, names, "group")


def _units_of(graph: Graph, module: str) -> str:
    """Where the units of a layer are counted, or why none is cut; "" where there is no such layer."""
    joined = [group.name for group in graph.groups if any(site.module == module for site in group.producers)]
    if joined:
        return f"the units of {module} go with those of {' and '.join(joined)}: give the width under that name"
    made = [entry for entry in graph.account() if entry.tensor == f"{module}.weight" and entry.frozen]
    return f"{made[0].tensor}[{made[0].dim}] stays whole: {'; '.join(made[0].frozen)}" if made else ""


def predicted(graph: Graph, widths: Mapping[str, int], latency: LatencyTable | None = None) -> dict[str, float]:
    """What a plan notes of its costs; milliseconds where there is a table of them."""
    found = cost(graph, widths)
    milliseconds = {} if latency is None else {"latency_ms": latency(widths)}
    return {"macs": found.macs, "params": found.params, "bytes": found.bytes, **milliseconds}
