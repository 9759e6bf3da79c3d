"""What the papers of most criteria leave whole, and actprune cuts too where it isn't told otherwise.

Li et al. 2017 cut what lies within a residual block; An et al. 2024, and Wanda for structures, whole heads and neurons
of MLPs. A rival that is held to that is often better at the same budget: without a refit, residual streams are dear.
"""

from __future__ import annotations

import actprune as ap

WHOLE = {"setting": "groups of the papers"}


def left_whole(graph: ap.Graph) -> list[str]:
    """The names of the groups, for `protect=`: residual streams, dimensions of heads, and queries of a head of keys."""
    found: list[str] = []
    of_heads: set[frozenset[str]] = set()
    for group in graph.groups:
        readers = frozenset(site.node for site in group.consumers)
        streams = group.kind == "width" or (group.kind == "channels" and len(group.producers) > 1)
        within = group.kind == "head dims" or (group.kind == "heads" and readers in of_heads)
        if group.kind == "heads":
            of_heads.add(readers)
        if streams or within:
            found.append(group.name)
    return found
