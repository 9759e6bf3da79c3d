"""Blocks: the layers that make some cut groups with the one that reads them, and what fitting them may cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.picked import picked
from actprune.axes.site import Site
from actprune.compensation.effort import (
    ENOUGH,
    FEWEST,
    FEWEST_OF_ROWS,
    FEWEST_OF_SEVERAL,
    FIRST,
    GRAPHS,
    PASSES,
    PLENTY,
    ROUNDS,
    SEVERAL,
    WORK,
    Enough,
)
from actprune.compensation.narrowed import WHOLE, Narrowed, narrowed
from actprune.compensation.read import Read, read_by
from actprune.compensation.walk import Walk
from actprune.compensation.work import TABLES, work
from actprune.graph.program import named_arguments, op_name
from actprune.rewrite import entry_mask
from actprune.stats.patches import LAYERS
from actprune.stats.recurrent import is_cell, is_recurrent, samples_of

BETWEEN = 6
"""Layers that may lie between the first reader of a group and its last one: a residual block with a gate has five.
Of longer ways nothing is known."""


@dataclass(frozen=True, eq=False)
class Block:
    """From the first maker of some groups to the call that reads them, the last one where there are several.

    Attributes:
        read: what has to come out as in the dense network.
        calls: in order, all that depends on the makers' weights and that what is read depends on.
        start, stop: the places of the first maker and behind the reader.
        masks: weights and biases of all of them by name → 1 where they may change.
        narrow: the calls in the widths that stay, where they run so.
        macs, values: numbers of them for one batch.
        samples: of one batch, that say something by themselves: sequences, where there are recurrent calls.
    """

    read: Read
    calls: tuple[Node, ...]
    start: int
    stop: int
    masks: Mapping[str, Tensor]
    narrow: Narrowed
    macs: int
    values: int
    samples: int

    @property
    def reader(self) -> Site:
        """The first weight of the call that reads."""
        return self.read.sites[0]

    @property
    def residuals(self) -> int:
        """How many numbers of one batch are compared."""
        return self.read.residuals

    @property
    def recurrent(self) -> bool:
        """Whether it is fitted through time."""
        return any(map(is_recurrent, self.calls))

    @property
    def reads_tables(self) -> bool:
        return any(op_name(node).startswith(TABLES) for node in self.calls)

    def lies_within(self, other: Block) -> bool:
        return self.masks.keys() < other.masks.keys()

    @property
    def unknowns(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())


def find_blocks(walk: Walk) -> list[Block]:
    """One for every reader with cut groups that linear layers, convolutions or tables make, front to back.

    With tables among the makers there is one without them, too, within the other: a table has many weights, for which
    there may be too few samples.
    A group has one reader, or the others lead to the last one alone, through some layers whose results are multiplied
    with or added to the units: the squeeze of a gate, a residual block. These layers then belong to the block, and
    blocks that end there may lie within it as a whole: see `chosen`. A recurrent call reads its input in each
    direction.
    """
    makers: dict[tuple[Site, ...], dict[Site, None]] = {}
    tables = {node.name for node in walk.nodes if op_name(node).startswith(TABLES)}
    places = {node.name: i for i, node in enumerate(walk.nodes)}
    for group in walk.graph.groups:
        cut = len(walk.state.kept.get(group.key, range(group.width))) < group.width
        runs = all(site.node in places for site in (*group.producers, *group.consumers))  # not in training alone
        if not (cut and runs and group.producers and group.consumers):
            continue
        consumers = sorted(group.consumers, key=lambda site: places[site.node])
        readers = tuple(site for site in consumers if site.node == consumers[-1].node)
        others = [site for site in consumers if site not in readers]
        between = _leading_to(walk, places, readers[0], others)
        back = not others or not set(group.producers).isdisjoint(between or ())
        sites = (*group.producers, *(between or ()), readers[0])
        layers = [site for site in sites if site.node not in tables or site.kind == "computed"]
        known = all(site.kind in LAYERS or _takes_all_steps(walk.nodes[places[site.node]]) for site in layers)
        own = any(site.node == readers[0].node for site in group.producers)  # states between the layers of one call
        if between is not None and back and known and not own:
            makers.setdefault(readers, {}).update(dict.fromkeys((*group.producers, *between)))
    tried = {
        (readers, some): None
        for readers, sites in makers.items()
        for some in (tuple(sites), tuple(site for site in sites if site.node not in tables))
    }
    found = (_block(walk, places, readers, some) for readers, some in tried)
    return sorted((block for block in found if block is not None), key=lambda block: block.start)


def _takes_all_steps(node: Node) -> bool:
    """Whether a call is a recurrent layer, no cell."""
    return is_recurrent(node) and not is_cell(node)


def _leading_to(walk: Walk, places: Mapping[str, int], reader: Site, others: Sequence[Site]) -> list[Site] | None:
    """The layers from these ones on that lead to the reader; None where some lead elsewhere, or there are many."""
    end, reached = walk.nodes[places[reader.node]], set[Node]()
    waiting = [walk.nodes[places[site.node]] for site in others]
    while waiting:
        node = waiting.pop()
        if node.op == "output" or places[node.name] > places[end.name]:
            return None
        if node is not end and node not in reached:
            reached.add(node)
            waiting += node.users
    names = {node.name for node in reached}
    found = [site for site in walk.graph.sites if site.node in names]
    return found if len({site.node for site in found}) <= BETWEEN else None


def _block(walk: Walk, places: Mapping[str, int], readers: tuple[Site, ...], makers: Iterable[Site]) -> Block | None:
    tensors, reader = walk.graph.program.tensors, readers[0]

    def free(site: Site) -> bool:
        node = walk.nodes[places[site.node]]
        floats = tensors[site.weight].dtype in (torch.float32, torch.float64)
        return floats and walk.state.owns(site.weight, node)

    chosen = [site for site in makers if site not in readers and site.weight != reader.weight and free(site)]
    if not chosen or not all(map(free, readers)):
        return None
    node, masks = walk.nodes[places[reader.node]], dict[str, Tensor]()
    for site in (*chosen, *readers):
        masks |= _masks(walk, site, walk.nodes[places[site.node]], behind=site not in readers)
    read = read_by(walk.graph, node, readers, walk.paths.get(node), walk.state.kept)
    calls = _between(walk.nodes, masks, walk.state.placeholders, read.value)
    if read.path.partner in calls or picked(walk.graph, read.value):
        return None
    narrow = narrowed(walk.graph, walk.state.kept, calls, read.outputs if read.multiplied else ())
    if prod(narrow.shape(read.value)) != read.rows * read.left:  # no positions may be left out, which the target has
        narrow = WHOLE
    start, stop = min(places[site.node] for site in chosen), places[node.name] + 1
    macs, values = work(walk.graph, calls, narrow)
    size = walk.graph.program.batch_size
    samples = min([size, *(samples_of(call, size) for call in (*calls, node) if is_recurrent(call))])
    return Block(read, tuple(calls), start, stop, masks, narrow, macs + read.macs, values, samples)


def _masks(walk: Walk, site: Site, node: Node, behind: bool) -> dict[str, Tensor]:
    """Of a layer's weight and of its bias: the entries that stay.

    Args:
        behind: take the bias of the norm behind it where it has none itself. (A refit counts on that one.)
    """
    names = (site.weight, _bias(walk, site, node, behind))
    return {name: entry_mask(walk.graph, name, walk.state.kept) for name in names if name is not None}


def _bias(walk: Walk, site: Site, node: Node, behind: bool) -> str | None:
    if site.kind not in LAYERS:
        return None
    slot = walk.slot(site, node)
    norm = walk.paths[node].norm
    if slot is not None and slot.sign > 0:
        return slot.name
    if slot is None or norm is None or not behind:
        return None
    bias = named_arguments(norm)["bias"]  # a running mean would do the same, but has no derivative
    name = walk.graph.program.bindings.get(bias.name) if isinstance(bias, Node) else None
    return name if name is not None and walk.state.owns(name, norm) else None


def _between(
    nodes: Sequence[Node], names: Iterable[str], placeholders: Mapping[str, list[Node]], result: Node
) -> list[Node]:
    """The calls that depend on these tensors and that `result` depends on."""
    behind: set[Node] = {placeholder for name in names for placeholder in placeholders[name]}
    for node in nodes:
        if not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    needed, stack = set[Node](), [result]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += node.all_input_nodes
    return [node for node in nodes if node in behind and node in needed]


def chosen(blocks: Sequence[Block], most: int, room: int) -> tuple[list[Block], dict[Site, int], int]:
    """Those that are fitted, and what `affordable` says of them.

    One that lies within another is fitted with that, unless there are too few samples for it, or too much work.
    """
    while True:
        outer = [one for one in blocks if not any(map(one.lies_within, blocks))]
        whole = {one.reader for one in outer if any(other.lies_within(one) for other in blocks)}
        fewest = {one.reader: _fewest(one, one.reader in whole) for one in outer}
        batches, rounds = affordable(outer, fewest, most, room)
        dear = [one for one in outer if not batches[one.reader]]
        if whole.isdisjoint(one.reader for one in dear):
            return outer, batches, rounds
        blocks = [one for one in blocks if one not in dear]


def _fewest(block: Block, whole: bool) -> float:
    """Residuals for each weight that is fitted, at least.

    Args:
        whole: whether blocks lie within it, which may be fitted instead.
    """
    if block.reads_tables:
        return FEWEST_OF_ROWS
    return FEWEST_OF_SEVERAL if whole or block.recurrent else FEWEST


def affordable(
    blocks: Sequence[Block], fewest: Mapping[Site, float], most: int, room: int
) -> tuple[dict[Site, int], int]:
    """Reader → how many of `most` batches its block is fitted on, 0 where those would be too few; and the rounds.

    One round on all the samples that are of use comes first, then further rounds.

    Args:
        fewest: reader → residuals for each weight that is fitted, at least.
    """

    def wanted(block: Block, enough: Enough) -> int:
        samples = min(enough.samples, block.unknowns / enough.weights) if enough.weights else enough.samples
        batches = max(enough.residuals * block.unknowns / max(block.residuals, 1), samples / block.samples)
        return min(most - 1, ceil(batches), room // (GRAPHS * block.values + 1))

    found: dict[Site, int] = {}
    rounds = 0
    for enough in (PLENTY, ENOUGH):
        counts = {block.reader: wanted(block, enough) for block in blocks}
        work = max(sum(block.macs * counts[block.reader] for block in blocks) * PASSES, 1)
        rounds, share = min(ROUNDS, max(1, int(WORK / work))), min(1.0, FIRST / work)
        found = {reader: round(share * count) for reader, count in counts.items()}
        if rounds >= SEVERAL:
            break
    least = {block.reader: fewest[block.reader] * block.unknowns / max(block.residuals, 1) for block in blocks}
    return {reader: count if count >= least[reader] else 0 for reader, count in found.items()}, rounds
