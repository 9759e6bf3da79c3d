"""What is to be said of the calibration data, and of what the model does with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.fx import Node

from actprune.axes.expr import ONE, leaves
from actprune.captured import Captured
from actprune.distance import some_outputs
from actprune.graph.kept_copies import counterpart
from actprune.graph.output_kinds import compared, tensor_outputs
from actprune.graph.program import module_path, modules_around, op_name, shape
from actprune.graph.rebuilt import Rebuilt
from actprune.proof.elsewhere import MOST

STEPPED = tuple(f"aten.{kind}.input" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
"""Calls of recurrent layers on sequences of one length; the last argument says whether samples come first."""

COLUMNS, APART = 16, 30.0
"""Outputs of one layer, at most, and so many times as far from their mean as others: these differ in scale."""

FEW_CLASSES = 0.5
"""Of the labels that so many draws would give: with fewer, the samples are said to have few."""


def data_notes(captured: Captured) -> Iterator[str]:
    """All that apply."""
    for of in NOTES:
        yield from of(captured)


def some(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _unseen_step(captured: Captured) -> Iterator[str]:
    model, graph = captured.model, captured.graph
    unused = sorted(graph.program.held - graph.used)  # a teacher, which isn't trained, has no parameters
    layers = dict.fromkeys(name.rpartition(".")[0] for name in unused if graph.program.tensors[name].dim())
    if isinstance(model, Rebuilt) and model.refused_step is not None and layers:
        yield (
            f"What train_step alone computes was not seen, since it can't be followed ({model.refused_step}). What it "
            f"alone calls ({some([*layers], 3)}) stays as it is; where that reads what was cut, fit fails: compile the "
            "model before it is pruned, or name in protect= the layers that it reads."
        )


def _left_over(captured: Captured) -> Iterator[str]:
    if captured.data.left_over:
        yield f"{captured.data.left_over} calibration samples did not fill a batch and were not used."


def _one_by_one(captured: Captured) -> Iterator[str]:
    """A layer that takes one sample as well as a batch would not complain."""
    graph, program = captured.graph, captured.graph.program
    batched = [graph.node_axes[name] for i, name in enumerate(program.inputs) if program.is_batched(i)]
    samples = {leaf.key for dims in batched if isinstance(dims, tuple) for leaf in leaves(dims[0])} - {ONE.key}
    for site in graph.sites:
        summed = leaves(site.in_axis(graph.tensor_axes[site.weight]))
        if not samples.isdisjoint(leaf.key for leaf in summed):
            yield (
                f"{site.module or site.weight} sums over the first dimension of the calibration inputs, "
                f"{program.batch_size}: they seem to be single samples, and every entry counts as one. Give batches: "
                "DataLoader(data, batch_size=32), or several samples stacked."
            )
            return


def _step_by_step(captured: Captured) -> Iterator[str]:
    """torch's recurrent layers take time first, unless they are told otherwise."""
    graph, program = captured.graph, captured.graph.program
    samples = {leaf.key for _, leaf in graph.batches}
    for node in program.nodes:
        dims = graph.node_axes.get(node.args[0].name) if node.args and isinstance(node.args[0], Node) else None
        if op_name(node).startswith(STEPPED) and isinstance(dims, tuple) and len(dims) == 3:
            if samples.isdisjoint(leaf.key for leaf in leaves(dims[1 if node.args[-1] else 0])):
                continue
            yield (
                f"{module_path(node) or 'The model'} steps through the first dimension of the calibration inputs, "
                f"{program.batch_size}: each step counts as a sample, in calibration_size and in the figures for MACs "
                "and milliseconds. Shares are right; for an amount of MACs, wrap the model so that samples come first."
            )
            return


def _elsewhere(captured: Captured) -> Iterator[str]:
    """A recorded run has the branches and sizes of the first batch."""
    others = captured.elsewhere
    if others:
        looked_at = min(len(captured.data.batches), MOST)
        yield (
            f"On {len(others)} of the first {looked_at} calibration batches the forward pass does something else than "
            "on the first, with which the model was captured (a branch, or a size that values decide): statistics, "
            "refits and the proof are of what it does there. Where it can, begin with the batch that matters most."
        )


def _not_reached(captured: Captured) -> Iterator[str]:
    """The modules with parameters that no captured run reads, and which follow no others.

    Parameters by themselves where another one of the module is read: the temperature of a CLIP whose encoders are.
    """
    program = captured.graph.program
    read = {path for name in captured.graph.used for path in modules_around(name)}
    unread = sorted(program.parameters - captured.graph.used)
    idle = [name for name in unread if counterpart(program.copies, name) is None]
    owners = ((name.rpartition(".")[0], name) for name in idle)
    modules = list(dict.fromkeys(name if not owner or owner in read else owner for owner, name in owners))
    if modules:
        yield (
            f"Not reached with the first calibration batch, and left as they were: {some(modules, 4)}. "
            "Where a call reaches them, they may not fit the layers in front any more: name those in protect=."
        )


def _few_classes(captured: Captured) -> Iterator[str]:
    """A loader that does not shuffle may give one class after the other."""
    data, outputs = captured.data, tensor_outputs(captured.graph.program)
    sizes = shape(outputs[0]) if outputs else ()
    if data.classes is None or len(sizes) != 2 or not 0 < data.classes <= sizes[1]:
        return
    drawn = sizes[1] * (1 - (1 - 1 / sizes[1]) ** data.samples)
    if data.classes < FEW_CLASSES * drawn:
        yield (
            f"The calibration samples have {data.classes} of {sizes[1]} labels: what the network needs for the others "
            "is not seen. A loader that shuffles gives samples of all classes."
        )


def unlike_outputs(captured: Captured) -> tuple[float, float] | None:
    """The least and the largest standard deviation of what one linear layer gives, where these are far apart.

    Squares of kilometres hide those of metres. What a sigmoid or a softmax makes is of one scale, and of many columns
    (pixels, an embedding) some hardly vary and don't matter.
    """
    program = captured.graph.program
    nodes = tensor_outputs(program)
    made = [op_name(node).startswith("aten.linear.") and 2 <= shape(node)[-1] <= COLUMNS for node in nodes]
    if not any(made):
        return None
    seen = some_outputs(program, captured.data)
    for place in (place for place, linear in zip(compared(seen[0]), made, strict=True) if linear):
        rows = torch.cat([out[place].reshape(-1, out[place].shape[-1]) for out in seen])
        spread = rows.double().std(0)
        least, most = float(spread.min()), float(spread.max())
        if 0 < APART * least < most < float("inf"):
            return least, most
    return None


NOTES: tuple[Callable[[Captured], Iterator[str]], ...] = (
    _unseen_step, _left_over, _one_by_one, _step_by_step, _elsewhere, _not_reached, _few_classes,
)  # fmt: skip
