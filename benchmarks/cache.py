"""Rows that are remembered once they are measured, so that a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Key = tuple[Any, ...]


class Cache:
    """One JSON line per measured row; the last line of a key counts.

    Args:
        fields: those whose values tell one row from another.
        fresh: forget what was measured before.
        known: rows to start from where there is no cache yet: those of published results, which travel with the
            repository while the cache stays on its machine.
    """

    def __init__(self, path: Path, fields: Sequence[str], fresh: bool = False, known: Iterable[Row] = ()) -> None:
        self.path, self.fields = path, fields
        self.rows: dict[Key, Row] = {}
        if fresh:
            path.unlink(missing_ok=True)
        if not path.exists() and not fresh:
            self.rows = {self.key(row): row for row in known}
            self._write()
        elif path.exists():
            self.rows = {self.key(row): row for row in _whole_lines(path.read_text().splitlines())}
            self._write()  # without half lines, to which the next one would be appended

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in self.rows.values()))
        part.replace(self.path)

    def key(self, row: Mapping[str, Any]) -> Key:
        return tuple(row.get(field) for field in self.fields)

    def add(self, row: Row) -> None:
        self.rows[self.key(row)] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)  # of a fresh cache
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _whole_lines(lines: Iterable[str]) -> Iterator[Row]:
    """A run that was ended while it wrote leaves half a line: that row is measured again."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue
