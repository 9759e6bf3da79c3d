"""Rows of one benchmark: measured once, remembered after every one, written as JSON and as a Markdown table."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cache import Cache, Row
from benchmarks.coverage.child import peak_gb

from actprune.report.measure import versions

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "numpy", "scikit-learn", "torch-pruning", "transformers", "onnxruntime")
KEY = ("model", "method", "compensate", "allocation", "setting", "keep", "stage", "seed")
"""What tells one row from another."""


class Rows:
    """The rows of the benchmark `name`; a run that was interrupted goes on where it stopped.

    On another machine it goes on from the published rows.

    Args:
        again: forget all of them.
    """

    def __init__(self, name: str, command: str, results: Path = RESULTS, again: bool = False) -> None:
        self.name, self.command, self.results = name, command, results
        published = results / f"{name}.json"
        known = json.loads(published.read_text())["rows"] if published.exists() else ()
        self.cache = Cache(results / ".method" / f"{name}.jsonl", KEY, fresh=again, known=known)

    @property
    def found(self) -> list[Row]:
        return list(self.cache.rows.values())

    def has(self, **key: Any) -> bool:
        return self.cache.key(key) in self.cache.rows

    def measure(self, work: Callable[[], Row], **key: Any) -> Row:
        """The row of `key`, and what `work` returns; seconds and peak memory of the process unless it says them."""
        if self.has(**key):
            return self.cache.rows[self.cache.key(key)]
        started = time.perf_counter()
        row = {**key, **work()}
        row.setdefault("seconds", round(time.perf_counter() - started, 1))
        row.setdefault("peak_gb", round(peak_gb(), 2))
        row |= {"command": self.command, "versions": versions(PACKAGES)}
        self.cache.add(row)
        shown = {k: v for k, v in row.items() if k not in ("command", "versions", "widths") and v is not None}
        sys.stderr.write(f"{self.name}: {shown}\n")
        sys.stderr.flush()
        return row

    def write(self, tables: str) -> None:
        """`NAME.json` with every row, and `NAME.md`."""
        data = {"command": self.command, "rows": self.found}
        (self.results / f"{self.name}.json").write_text(json.dumps(data, indent=1) + "\n")
        (self.results / f"{self.name}.md").write_text(tables.rstrip() + "\n")


def pivot(
    rows: Iterable[Row],
    line: Sequence[str],
    column: Callable[[Row], str],
    cell: Callable[[Row], float | None],
    show: Callable[[float], str] = lambda value: f"{100 * value:.2f}",
    order: Sequence[str] = (),
) -> str:
    """A Markdown table: a line for each combination of the fields `line`, a column for each `column(row)`.

    Columns stand as in `order`, those it does not name behind them as they are met.
    Rows of several seeds become mean ± standard deviation.
    """
    cells: dict[tuple[str, ...], dict[str, list[float]]] = {}
    met: dict[str, None] = {}
    for row in rows:
        value = cell(row)
        if value is None:
            continue
        met.setdefault(column(row))
        cells.setdefault(tuple(str(row.get(f) or "") for f in line), {}).setdefault(column(row), []).append(value)
    columns = sorted(met, key=lambda name: order.index(name) if name in order else len(order))
    lines = ["| " + " | ".join([*line, *columns]) + " |", "|---" * (len(line) + len(columns)) + "|"]
    for key, found in cells.items():
        shown = [_mean(found.get(name, []), show) for name in columns]
        lines.append("| " + " | ".join([*key, *shown]) + " |")
    return "\n".join(lines)


def _mean(values: Sequence[float], show: Callable[[float], str]) -> str:
    if len(values) < 2:
        return show(values[0]) if values else ""
    return f"{show(statistics.mean(values))} ± {show(statistics.stdev(values))}"
