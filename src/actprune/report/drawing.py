"""Drawings of the groups of an inspection: a graph for Graphviz, and a page that needs nothing else to be shown.

The page has one row per module, in the order of the forward pass, and one line per group beside them, like the lines
of an underground: it runs from the first module that holds the group's units to the last one, a disc marks where they
are made and a ring where they are read. Lines that are over leave their place to later ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from actprune.report.inspection import GroupEntry, Inspection
from actprune.report.table import several
from actprune.report.templates import EXTRA, rendered

PALETTE = ("#2f6fde", "#d9480f", "#2b8a3e", "#9c36b5", "#0b7285", "#c2255c", "#8f6400", "#5f3dc4")
"""Colours that keep apart on white and on black; groups take them in turn."""

ROW, LANE, TOP, NAME = 24, 18, 12, 7.3
"""Pixels: height of a row, width of a line with its gap, margin above, width of one letter of a module's name."""


def color(position: int) -> str:
    """The colour of the group at that position."""
    return PALETTE[position % len(PALETTE)]


# -- for Graphviz ----------------------------------------------------------------------------------


def dot(found: Inspection) -> str:
    """The groups in the language DOT: modules that make a group's units → the group → modules that read them.

    A module that neither makes nor reads any is left out; what is frozen stands in one note.
    """
    drawn = {name for group in found.groups for name in (*group.producers, *group.consumers)}
    nodes = {module.name: f"m{i}" for i, module in enumerate(found.modules) if module.name in drawn}
    lines = [
        f"digraph {_quoted(found.model)} {{",
        f"  graph [rankdir=LR, nodesep=0.15, fontname=Helvetica, label={_quoted(f'{found.model}: {found.summary}')}]",
        '  node [shape=box, style="rounded,filled", fillcolor="#f1f3f5", color="#ced4da", '
        "fontname=Helvetica, fontsize=10]",
        '  edge [color="#868e96", arrowsize=0.6]',
    ]
    for module in found.modules:
        if module.name in nodes:
            label = _quoted(module.name, f"{module.params:,} parameters")
            lines.append(f"  {nodes[module.name]} [label={label}]")
    for i, group in enumerate(found.groups):
        label = _quoted(group.name, f"{group.width} {group.kind}", f"{group.params:,} parameters")
        lines.append(f'  g{i} [label={label}, shape=ellipse, fillcolor="{color(i)}", fontcolor=white, penwidth=0]')
        lines += [f'  {nodes[name]} -> g{i} [color="{color(i)}"]' for name in group.producers]
        lines += [f'  g{i} -> {nodes[name]} [color="{color(i)}"]' for name in group.consumers]
    if found.frozen:
        told = [f"{reason.params:,}: {reason.reason}" for reason in found.reasons if reason.params]
        note = _quoted(f"frozen: {found.frozen:,} parameters", *told)
        lines.append(f"  frozen [shape=note, style=filled, label={note}]")
    return "\n".join([*lines, "}", ""])


def _quoted(*lines: str) -> str:
    """These lines as one string of DOT, in which a backslash and a quote are escaped."""
    return '"' + r"\n".join(line.replace("\\", r"\\").replace('"', r"\"").replace("\n", " ") for line in lines) + '"'


# -- the page --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A module: one row of the page. `made` are the positions of the groups that are named beside it."""

    name: str
    params: int
    frozen: int
    y: float
    made: tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """A group: one line of the page, and the heights of its stations."""

    group: GroupEntry
    color: str
    x: float
    made: tuple[float, ...]
    read: tuple[float, ...]
    carried: tuple[float, ...]

    @property
    def top(self) -> float:
        return min((*self.made, *self.read, *self.carried))

    @property
    def bottom(self) -> float:
        return max((*self.made, *self.read, *self.carried))


@dataclass(frozen=True)
class Layout:
    """All that is drawn, in pixels; names of groups start at `labels`."""

    rows: tuple[Row, ...]
    lines: tuple[Line, ...]
    labels: float
    width: float
    height: float


def layout(found: Inspection) -> Layout:
    """Where everything stands on the page."""
    height = {module.name: TOP + ROW * (i + 0.5) for i, module in enumerate(found.modules)}
    spans = [_heights(height, (*g.producers, *g.consumers, *g.carriers)) for g in found.groups]
    lanes = _lanes([(min(span), max(span)) for span in spans])
    names = NAME * max((len(module.name) for module in found.modules), default=0)
    left = names + 2 * LANE
    lines = tuple(
        Line(
            group,
            color(i),
            left + LANE * lanes[i],
            *(_heights(height, names) for names in (group.producers, group.consumers, group.carriers)),
        )
        for i, group in enumerate(found.groups)
    )
    labels = left + LANE * (1 + max(lanes, default=0))
    named: dict[str, list[int]] = {module.name: [] for module in found.modules}
    for i, group in enumerate(found.groups):
        named[group.producers[0]].append(i)
    rows = tuple(Row(m.name, m.params, m.frozen, height[m.name], tuple(named[m.name])) for m in found.modules)
    texts = (sum(len(_label(found.groups[i])) + 3 for i in row.made) for row in rows)
    width = labels + NAME * max(texts, default=0) + LANE
    return Layout(rows, lines, labels, width, 2 * TOP + ROW * len(rows))


def _heights(height: dict[str, float], names: Iterable[str]) -> tuple[float, ...]:
    return tuple(height[name] for name in names if name in height)


def _lanes(spans: list[tuple[float, float]]) -> list[int]:
    """The place of every line: the first that is free from its top to its bottom."""
    ends: list[float] = []
    places = [0] * len(spans)
    for i in sorted(range(len(spans)), key=lambda i: spans[i]):
        top, bottom = spans[i]
        place = next((p for p, end in enumerate(ends) if end < top), len(ends))
        ends[place : place + 1] = [bottom]
        places[i] = place
    return places


def _label(group: GroupEntry) -> str:
    return f"{group.width} {group.kind}"


def page(found: Inspection) -> str:
    """A page of HTML with the drawing and the tables, without scripts and without links to anywhere.

    Raises:
        ActpruneError: jinja2 is not installed.
    """
    hint = f"{EXTRA}, or draw for Graphviz, which needs nothing: a file that ends in .dot"
    filters: dict[str, Any] = {"several": several, "label": _label, "number": "{:,}".format, "percent": _percent}
    return rendered("inspection.html", "to_html", hint, filters, found=found, drawing=layout(found))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / max(whole, 1):.1f} %"
