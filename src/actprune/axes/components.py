"""What hangs together: names that some sets have in common."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def components(names: Iterable[Name], sets: Iterable[Sequence[Name]]) -> list[tuple[Name, ...]]:
    """Every name once, with those that a chain of sets leads to, in the order of `names`; others in the sets do not
    count."""
    root = {name: name for name in names}
    place = {name: i for i, name in enumerate(root)}
    for own in sets:
        roots = {root[name] for name in own if name in root}
        if len(roots) > 1:
            least = min(roots, key=place.__getitem__)
            root = {name: least if now in roots else now for name, now in root.items()}
    found: dict[Name, list[Name]] = {}
    for name, now in root.items():
        found.setdefault(now, []).append(name)
    return [tuple(own) for own in found.values()]
