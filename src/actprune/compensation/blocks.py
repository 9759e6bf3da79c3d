"""Blocks: the layers that make some cut groups with those that read them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.groups import Group
from actprune.axes.picked import picked
from actprune.axes.site import Form, Site
from actprune.compensation.elsewhere import leads_elsewhere
from actprune.compensation.narrowed import WHOLE, Narrowed, narrowed
from actprune.compensation.read import Read, read_by
from actprune.compensation.schedule import ALONE
from actprune.compensation.sums import joined, rectified
from actprune.compensation.walk import Walk
from actprune.compensation.work import TABLES, work
from actprune.graph.program import leading_to, named_arguments, op_name
from actprune.rewrite import entry_mask
from actprune.stats.patches import LAYERS, is_layer
from actprune.stats.recurrent import input_of, is_cell, is_recurrent, samples_of

BETWEEN = 6
"""Layers that may lie between the first reader of a group and its last one: a residual block with a gate has five.
Of longer ways nothing is known."""

SIDE_BY_SIDE = 8
"""Readers at most that lead to different places: the heads of a trunk, the branches behind a concatenation."""


@dataclass(frozen=True, eq=False)
class Block:
    """From the first maker of some groups to the calls that read them.

    Attributes:
        reads: what has to come out as in the dense network.
        calls: in order, all that depends on the makers' weights and that what is read depends on.
        start, stop: the places of the first maker and behind the last reader.
        masks: weights and biases of all of them by name → 1 where they may change.
        narrow: the calls in the widths that stay, where they run so.
        macs, values: numbers of them for one batch.
        samples: of one batch, that say something by themselves: sequences, where there are recurrent calls.
    """

    reads: tuple[Read, ...]
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
        """The first weight of the first call that reads."""
        return self.reads[0].sites[0]

    @property
    def name(self) -> str:
        """The calls that read."""
        return "+".join(dict.fromkeys(site.node for read in self.reads for site in read.sites))

    @property
    def residuals(self) -> int:
        """How many numbers of one batch are compared."""
        return sum(read.residuals for read in self.reads)

    @property
    def made(self) -> set[str]:
        """Names of the weights and biases of the makers."""
        return self.masks.keys() - {name for read in self.reads for name in read.changed}

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
    A group has one reader, or the others lead to the last one alone, through a few layers: the squeeze of a gate, a
    residual block, the inner level of a U-Net. These layers then belong to the block, and blocks that end there may lie
    within it as a whole: see `choice`. Or none of them leads to another: then the sums of them all are to come out. A
    recurrent call reads its input in each direction.
    """
    makers: dict[tuple[Site, ...], dict[Site, None]] = {}
    keys: dict[tuple[Site, ...], set[int]] = {}
    tables = {node.name for node in walk.nodes if op_name(node).startswith(TABLES)}
    places = {node.name: i for i, node in enumerate(walk.nodes)}
    for group in walk.graph.groups:
        cut = len(walk.state.kept.get(group.key, range(group.width))) < group.width
        runs = all(site.node in places for site in (*group.producers, *group.consumers))  # not in training alone
        if not (cut and runs and group.producers and group.consumers):
            continue
        readers, between = _ends(walk, places, group)
        sites = (*group.producers, *between, *readers)
        layers = [site for site in sites if site.node not in tables or site.kind == "computed"]
        known = all(is_layer(site) or _takes_all_steps(walk.nodes[places[site.node]]) for site in layers)
        ends = {site.node for site in readers}
        own = any(site.node in ends for site in group.producers)  # states between the layers of one call
        if readers and known and not own:
            makers.setdefault(readers, {}).update(dict.fromkeys((*group.producers, *between)))
            keys.setdefault(readers, set()).add(group.key)
    tried = {
        (readers, some): None
        for readers, sites in makers.items()
        for some in (tuple(sites), tuple(site for site in sites if site.node not in tables))
    }
    found = (_block(walk, places, readers, some, keys[readers]) for readers, some in tried)
    return sorted((block for block in found if block is not None), key=lambda block: block.start)


def _takes_all_steps(node: Node) -> bool:
    """Whether a call is a recurrent layer, no cell."""
    return is_recurrent(node) and not is_cell(node)


def _ends(walk: Walk, places: Mapping[str, int], group: Group) -> tuple[tuple[Site, ...], list[Site]]:
    """The weights that a block with the makers of a group ends at, none where there is no such block; and the layers
    between."""
    consumers = sorted(group.consumers, key=lambda site: places[site.node])
    last = tuple(site for site in consumers if site.node == consumers[-1].node)
    others = [site for site in consumers if site not in last]
    if not others:
        return last, []
    between = _leading_to(walk, places, last[0], others)
    if between is not None:
        return last, between
    return (tuple(consumers) if _side_by_side(walk.nodes, places, consumers) else ()), []


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


def _side_by_side(nodes: Sequence[Node], places: Mapping[str, int], sites: Sequence[Site]) -> bool:
    """Whether none of these calls leads to another one, and they are few."""
    ends = {nodes[places[site.node]] for site in sites}
    if len(ends) > SIDE_BY_SIDE:
        return False
    behind, all_places = set[Node](), [places[site.node] for site in sites]
    for node in nodes[min(all_places) : max(all_places) + 1]:
        reached = not behind.isdisjoint(node.all_input_nodes)
        if reached and node in ends:
            return False
        if reached or node in ends:
            behind.add(node)
    return True


def _block(
    walk: Walk, places: Mapping[str, int], readers: tuple[Site, ...], makers: Iterable[Site], keys: Collection[int]
) -> Block | None:
    """What these readers and makers are together; None where not all of it can be fitted, or does not lead there.

    Args:
        keys: of the groups that are cut.
    """
    tensors, read_weights = walk.graph.program.tensors, {site.weight for site in readers}

    def free(site: Site) -> bool:
        node = walk.nodes[places[site.node]]
        floats = tensors[site.weight].dtype in (torch.float32, torch.float64)
        return floats and walk.state.owns(site.weight, node)

    chosen = [site for site in makers if site not in readers and site.weight not in read_weights and free(site)]
    if not chosen or not all(map(free, readers)):
        return None
    masks, ends = dict[str, Tensor](), dict[Node, list[Site]]()
    for site in chosen:
        masks |= _masks(walk, site, walk.nodes[places[site.node]], behind=True)
    for site in readers:
        ends.setdefault(walk.nodes[places[site.node]], []).append(site)
    own = {
        node: {name: mask for site in sites for name, mask in _masks(walk, site, node, behind=False).items()}
        for node, sites in ends.items()
    }
    for held in own.values():
        masks |= held
    reads = list(_reads(walk, places, ends, own))
    calls = _between(walk.nodes, masks, walk.state.placeholders, [read.value for read in reads])
    if any(read.path.partner in calls or picked(walk.graph, read.value) for read in reads):
        return None
    if leads_elsewhere(walk.graph, keys, calls, ends):
        return None
    unmade = [name for read in reads if read.multiplied for name in read.outputs]
    narrow = narrowed(walk.graph, walk.state.kept, calls, unmade)
    if any(prod(narrow.shape(read.value)) != read.rows * read.left for read in reads):
        narrow = WHOLE  # positions may be left out, which the target has
    start, stop = min(places[site.node] for site in chosen), max(places[site.node] for site in readers) + 1
    macs, values = work(walk.graph, calls, narrow)
    macs += sum(read.macs for read in reads)
    size = walk.graph.program.batch_size
    samples = min([size, *(samples_of(call, size) for call in (*calls, *ends) if is_recurrent(call))])
    return Block(tuple(reads), tuple(calls), start, stop, masks, narrow, macs, values, samples)


def _reads(
    walk: Walk, places: Mapping[str, int], ends: Mapping[Node, Sequence[Site]], own: Mapping[Node, Iterable[str]]
) -> Iterator[Read]:
    """What the calls at the end of a block read.

    Args:
        ends: call → its weights.
        own: call → names of its weights and biases that may change.
    """
    graph, kept = walk.graph, walk.state.kept
    paths = {node: ALONE if sites[0].kind == "stacked" else walk.paths.get(node) for node, sites in ends.items()}
    values = {node: path.norm or node for node, path in paths.items() if path is not None}
    sums = joined(values, places) if len(values) > 1 else {}
    for value, parts in sums.items():
        sites, names = [one for node in parts for one in ends[node]], [name for node in parts for name in own[node]]
        yield read_by(graph, value, sites, replace(ALONE, rectified=rectified(value)), kept, names)
    added = {node for parts in sums.values() for node in parts}
    for node in (node for node in ends if node not in added):
        value = values[node] if node in values else input_of(node)
        yield read_by(graph, value, ends[node], paths[node], kept, own[node])


def _masks(walk: Walk, site: Site, node: Node, behind: bool) -> dict[str, Tensor]:
    """Of a layer's weight and of its bias: the entries that stay.

    Args:
        behind: take the bias of the norm behind it where it has none itself. (A refit counts on that one.)
    """
    names = (site.weight, _bias(walk, site, node, behind))
    return {name: entry_mask(walk.graph, name, walk.state.kept) for name in names if name is not None}


def _bias(walk: Walk, site: Site, node: Node, behind: bool) -> str | None:
    if site.form is not None:
        return _added(walk, site.form, node) if behind else None
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


def _added(walk: Walk, form: Form, node: Node) -> str | None:
    """What is added to the result of an einsum."""
    name = None if form.bias is None else form.bias[0]
    return name if name is not None and walk.state.owns(name, next(iter(node.users))) else None


def _between(
    nodes: Sequence[Node], names: Iterable[str], placeholders: Mapping[str, list[Node]], results: Iterable[Node]
) -> list[Node]:
    """The calls that depend on these tensors and that some results depend on."""
    behind: set[Node] = {placeholder for name in names for placeholder in placeholders[name]}
    for node in nodes:
        if not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    return [node for node in leading_to(nodes, results) if node in behind]
