"""The groups that a user wants whole: by patterns of the paths of the modules that make their units."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.errors import PlanError
from actprune.graph.program import modules_around


def protected(graph: Graph, patterns: Iterable[str]) -> set[str]:
    """Names of the groups whose units are made by a module that matches one of the patterns, and of those of which as
    many units have to stay."""
    names: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        known = {
            module for names in graph.program.aliases.values() for name in names for module in modules_around(name)
        }
        known |= {group.name for group in graph.groups}
        if not any(fnmatch.fnmatchcase(module, pattern) for module in known):
            raise PlanError(
                f"The protect pattern {pattern!r} matches no module.",
                expected=f"a pattern for one of {', '.join(sorted(known)[:12])}",
                got=repr(pattern),
                where="protect",
                hint="patterns are matched against module paths such as layer1.0.conv1; * stands for anything",
            )
        names |= {group.name for group in graph.groups if _makes(graph, group, pattern)}
    return set(graph.together(names))


def _makes(graph: Graph, group: Group, pattern: str) -> bool:
    """Whether a module that matches makes the group's units; a module may be known by several paths."""
    weights = (alias for site in group.producers for alias in graph.program.aliases[site.weight])
    paths = {path for weight in weights for path in modules_around(weight)}
    paths |= {path for site in group.producers for path in modules_around(f"{site.module}.")}
    return any(fnmatch.fnmatchcase(path, pattern) for path in (*paths, group.name))
