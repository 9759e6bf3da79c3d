"""Lines over numbers as an SVG that needs nothing else to be shown: panels beside each other, both axes from zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

Point = tuple[float, float]

COLORS = ("#2f6fde", "#d9480f", "#2b8a3e", "#9c36b5")

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 240, 44, 16, 30, 40
"""Pixels of a panel and of the margins within it."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what is measured, and where.
        across: what the horizontal axis counts.
        lines: name of a line → its points (x, y), none of them negative.
    """

    title: str
    across: str
    lines: Mapping[str, Sequence[Point]]


def svg(panels: Sequence[Panel]) -> str:
    """The panels two in a row; lines of the same name have the same colour."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    rows = ceil(len(panels) / 2)
    width, height = 2 * WIDTH, rows * HEIGHT + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for i, panel in enumerate(panels):
        row, column = divmod(i, 2)
        parts += [f'<g transform="translate({column * WIDTH},{row * HEIGHT})">', *_drawn(panel, colors), "</g>"]
    for i, (name, color) in enumerate(colors.items()):
        x, y = LEFT + 110 * i, rows * HEIGHT + 10
        parts.append(f'<rect x="{x}" y="{y - 8}" width="9" height="9" fill="{color}"/>')
        parts.append(f'<text x="{x + 14}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(panel: Panel, colors: Mapping[str, str]) -> list[str]:
    points = [point for line in panel.lines.values() for point in line]
    xs, ys = (ticks(max((point[i] for point in points), default=1)) for i in (0, 1))
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> Point:
        return LEFT + x / xs[-1] * inner_width, HEIGHT - BOTTOM - y / ys[-1] * inner_height

    parts = [f'<text x="{LEFT}" y="{TOP - 12}" font-weight="bold">{escape(panel.title)}</text>']
    for tick in ys:
        x, y = place(0, tick)
        parts.append(f'<path d="M{x:.1f} {y:.1f}h{inner_width}" stroke="#dee2e6"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in xs:
        x, y = place(tick, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 14:.1f}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - BOTTOM + 28}" text-anchor="end">{escape(panel.across)}</text>'
    )
    for name, line in panel.lines.items():
        placed = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colors[name]}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colors[name]}"/>' for x, y in placed]
    return parts


def ticks(most: float) -> list[float]:
    """Round numbers from zero to the first that isn't below `most`, at most six of them."""
    if most <= 0:
        return [0.0, 1.0]
    power = 10.0 ** floor(log10(most))
    step = next(step for step in (0.2 * power, 0.5 * power, power, 2 * power) if most / step <= 5)
    return [i * step for i in range(ceil(most / step - 1e-9) + 1)]
