"""Feature maps of units, sample by sample, and what is measured on them: ranks and channel independence.

Maps are measured batch by batch as they pass, and never stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import Axis, Leaf, leaves, positions
from actprune.axes.groups import Group
from actprune.graph.program import shape

WORK = 1e11
"""Multiply-adds that the nuclear norms of one group may take (n · min(n, positions)³ per sample): fewer samples for
wide groups, none where one would cost more."""

CHUNK = 2e7
"""Numbers in the Gram matrices that are decomposed at once."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where the maps of a group's units are looked at.

    Attributes:
        node: the call whose result holds them.
        dim: its dimension of units.
        unit: (size,) which unit each index of it is, −1 for none.
        samples: its dimension of samples; None where all of it is one sample.
    """

    node: str
    dim: int
    unit: Tensor
    samples: int | None

    def maps(self, value: Tensor) -> Tensor:
        """(samples, n, rows, columns) the map of every unit in every sample.

        Of a convolution's channel the image; of a head (tokens · its dimensions); of a neuron its values as a row.
        """
        x = value.movedim((self.samples, self.dim), (0, 1)) if self.samples is not None else value.movedim(self.dim, 0)
        x = x if self.samples is not None else x[None]
        order = torch.argsort(self.unit, stable=True)
        held = order[self.unit[order] >= 0].to(x.device)
        n = int(self.unit.max()) + 1
        rest = [size for size in x.shape[2:] if size > 1]
        return x.index_select(1, held).reshape(x.shape[0], n, -1, rest[-1] if rest else 1)


def batch_key(graph: Graph) -> int:
    """The key of the leaf axis that is the samples; one that no axis has where there isn't one such leaf."""
    program = graph.program
    first = next((name for i, name in enumerate(program.inputs) if program.is_batched(i)), "")
    axis = next(iter(graph.node_axes.get(first, ())), None)
    return axis.key if isinstance(axis, Leaf) else -1


def samples_along(axis: Any, key: int) -> NDArray[np.int64] | None:
    """The sample of every index of a dimension; None where it has no axis, or an index that belongs to no sample.

    Args:
        axis: of the dimension.
        key: see `batch_key`.
    """
    numbers = np.full(1, -1) if isinstance(axis, tuple) else np.asarray(positions(axis, key))
    return numbers if bool((numbers >= 0).all()) else None


def places(graph: Graph) -> dict[str, Place]:
    """Group name → where its maps are: the last value before its first reader in which a unit has rows and columns,
    else what that reader reads. Groups that nothing reads in eval mode have none."""
    found: dict[str, Place] = {}
    key = batch_key(graph)
    nodes, fixed = {node.name: node for node in graph.program.nodes}, _fixed(graph)
    for group in graph.groups:
        near = _holders(graph, group, nodes, fixed)
        chosen = next((place for place in near if _is_image(place, graph, key)), near[0] if near else None)
        if chosen is not None:
            node, dim = chosen
            unit = torch.as_tensor(positions(_axes(graph, node)[dim], group.key))
            found[group.name] = Place(node.name, dim, unit, _sample_dim(graph, node, dim, key))
    return found


def ranks(maps: Tensor) -> Tensor:
    """(samples, n) the rank of every map (samples, n, rows, columns)."""
    if min(maps.shape[2:]) == 1:
        return (maps != 0).flatten(2).any(2).double()
    return torch.linalg.matrix_rank(maps if maps.dtype == torch.float64 else maps.float()).double()


def independence(maps: Tensor) -> Tensor:
    """(samples, n) ‖A‖_* − ‖A without row i‖_* of every sample's A (n, rows · columns).

    Maps of a single value: one A (n, samples) for the whole batch.
    """
    rows = maps.flatten(2).double()
    rows = rows[:, :, 0].T[None] if rows.shape[2] == 1 else rows
    return torch.stack([_drops(a) for a in rows])


def affordable(maps: Tensor, most: int) -> int:
    """How many samples of such maps may be compared for their independence."""
    count, n = maps.shape[:2]
    length = maps[0, 0].numel()
    if length == 1:  # the batch is the map
        return int(min(most, count * (WORK // (n * min(n, count) ** 3))))
    return int(min(most, WORK // (n * min(n, length) ** 3)))


def _drops(a: Tensor) -> Tensor:
    """(n,) by how much the nuclear norm of a (n, l) falls when each row is set to zero.

    Singular values are the roots of the eigenvalues of the smaller Gram matrix; without row i that is the Gram matrix
    with row and column i zero, or less its outer product.
    """
    n, length = a.shape
    gram = a @ a.T if n <= length else a.T @ a
    size = gram.shape[0]
    step = max(1, int(CHUNK // size**2))
    left: list[Tensor] = []
    for start in range(0, n, step):
        gone = torch.arange(start, min(start + step, n), device=a.device)
        if n <= length:
            stays = torch.ones(len(gone), n, dtype=a.dtype, device=a.device)
            stays[torch.arange(len(gone), device=a.device), gone] = 0
            without = gram * stays[:, :, None] * stays[:, None, :]
        else:
            without = gram - a[gone][:, :, None] * a[gone][:, None, :]
        left.append(_nuclear(without))
    return _nuclear(gram) - torch.cat(left)


def _nuclear(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().sum(-1)


# -- where to look ---------------------------------------------------------------------------------


def _holders(graph: Graph, group: Group, nodes: dict[str, Node], fixed: set[Node]) -> list[tuple[Node, int]]:
    """The calls with one dimension that holds the group, from its first reader back to what makes it."""
    readers = [nodes[site.node] for site in group.consumers if site in graph.sites]
    for name, tensor in graph.program.bindings.items():
        if tensor in graph.masks and graph.masks[tensor].touches([group.key]):
            readers += nodes[name].users
    queue = [source for reader in readers[:1] for source in reader.all_input_nodes]
    found: list[tuple[Node, int]] = []
    seen: set[Node] = set()
    while queue:
        node = queue.pop(0)
        if node in seen or node in fixed or node.op != "call_function":
            continue
        seen.add(node)
        dims = [d for d, axis in enumerate(_axes(graph, node)) if any(leaf.key == group.key for leaf in leaves(axis))]
        if len(dims) == 1:
            found.append((node, dims[0]))
        if dims or node.name not in graph.node_axes:  # a product with a mask has no axes of its own
            queue += node.all_input_nodes
    return found


def _fixed(graph: Graph) -> set[Node]:
    """The calls on the model's own tensors alone, such as a transposed weight: no activations."""
    found: set[Node] = set()
    for node in graph.program.nodes:
        own = node.name in graph.program.bindings
        if own or (node.op == "call_function" and node.all_input_nodes and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def _axes(graph: Graph, node: Node) -> tuple[Axis, ...]:
    found = graph.node_axes.get(node.name, ())
    return found if isinstance(found, tuple) else ()


def _is_image(place: tuple[Node, int], graph: Graph, key: int) -> bool:
    """Whether a unit has more than a row of values in a sample."""
    node, dim = place
    samples = _sample_dim(graph, node, dim, key)
    return sum(size > 1 for d, size in enumerate(shape(node)) if d not in (dim, samples)) >= 2


def _sample_dim(graph: Graph, node: Node, dim: int, key: int) -> int | None:
    """The dimension whose indices each belong to one sample."""
    if graph.program.batch_size == 1:
        return None
    for d, axis in enumerate(_axes(graph, node)):
        if d != dim and samples_along(axis, key) is not None:
            return d
    return None
