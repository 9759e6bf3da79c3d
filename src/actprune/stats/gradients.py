"""What the loss says of units and of outputs, to first order, by one backward pass per batch.

A gate z = 1 stands in front of everything that reads a unit: its columns in the weights that sum over it, and the masks
where no weight does. Switching the unit off is z = 0, which costs L(1) − L(0) ≈ ∂L/∂z; and since z scales those
columns, ∂L/∂z = Σ g·w over them. So one backward pass to the weights gives the gates of all groups, in the precision
of the model itself; the sums are float64. (Of a weight with a second role, such as one tied to an embedding, the
gradient of both roles.)

The output of a layer has a gradient, too. The mean of its square is the diagonal of the Fisher information (with labels
of the user: of the empirical one): how much a small error there costs, where errors of different outputs are
independent. All outputs of layers and their gradients are held at once, beyond any `memory_limit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from actprune.axes.capture import Graph
from actprune.axes.expr import positions
from actprune.axes.groups import Group
from actprune.errors import DataError
from actprune.graph.output_kinds import output_kind
from actprune.graph.program import Batch, Program
from actprune.graph.run import run
from actprune.stats.patches import LAYERS, output_dim

Loss = Callable[[Any, Any], Tensor]
"""(outputs as the model returns them, labels of the batch) → scalar, a mean over samples."""


def gate_gradients(
    graph: Graph, batch: Batch, labels: Tensor | None, loss: Loss | None, first: int = 0
) -> dict[str, Tensor]:
    """Group name → (1, n) (∂L/∂z)² of every unit on one batch (Molchanov et al. 2019, eq. 8, squared before batches
    are averaged); a group that nothing reads in eval mode has none.

    Raises:
        DataError: a loss that does not depend on the network, or gradients that are not finite.
    """
    program = graph.program
    read = {group.name: _readers(graph, group) for group in graph.groups}
    tensors = _recorded(program, (name for places in read.values() for name, _ in places))
    value = _loss(program, run(program, batch, tensors, grad=True), labels, loss, _pseudo_loss)
    products = {
        name: gradient.double() * tensors[name].detach().double()
        for name, gradient in _gradients(value, tensors, loss is None, "taylor").items()
    }
    return {name: _gates(graph, graph[name], places, products) for name, places in read.items() if places}


def output_gradients(
    graph: Graph, batch: Batch, labels: Tensor | None, loss: Loss | None, first: int = 0
) -> dict[str, Tensor]:
    """Site name → (1, o) (∂L/∂z)² of every output z of a layer that reads units, summed over samples and positions of
    one batch; a layer that the loss does not depend on has none.

    Args:
        first: number of the batch's first sample: each draws its own label.

    Raises:
        DataError: a loss that does not depend on the network, or gradients that are not finite.
    """
    program = graph.program
    sites = {site.node: site for group in graph.groups for site in group.consumers if site.kind in LAYERS}
    results: dict[str, Tensor] = {}
    dims: dict[str, int] = {}

    def observe(node: Node, args: tuple[Any, ...], value: Any) -> None:
        if (site := sites.get(node.name)) is not None:
            results[site.name], dims[site.name] = value, output_dim(node)

    tensors = _recorded(program, (site.weight for site in sites.values()))
    outputs = run(program, batch, tensors, observe=observe, grad=True)
    value = _loss(program, outputs, labels, loss, partial(_drawn_loss, first=first))
    slopes = _gradients(value, results, loss is None, "fisher")
    return {
        name: slope.double().movedim(dims[name], 0).flatten(1).pow(2).sum(1)[None].cpu()
        for name, slope in slopes.items()
    }


def _recorded(program: Program, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of these names, for autograd to record what is made of them."""
    return {name: program.tensors[name].detach().requires_grad_() for name in sorted(set(names))}


def _loss(
    program: Program,
    outputs: Sequence[Any],
    labels: Tensor | None,
    loss: Loss | None,
    own: Callable[[Program, list[Tensor]], Tensor],
) -> Any:
    """The user's loss, or one of the model's own predictions where there is none."""
    if loss is not None:
        return loss(pytree.tree_unflatten(outputs, program.out_spec), labels)
    floats = [out for out in outputs if isinstance(out, Tensor) and out.is_floating_point()]
    if not floats:
        raise _no_gradient("outputs without a floating-point tensor", True)
    return own(program, floats)


def _readers(graph: Graph, group: Group) -> list[tuple[str, int]]:
    """(tensor, dimension) of all that reads a group's units: weights, each once, and masks that take units away."""
    inputs = set(graph.program.bindings.values())
    read = [site for site in group.consumers if site.weight in inputs and site in graph.sites]
    weights = [(site.weight, dim) for site in read for dim in site.in_dims]
    taking = {name: mask for name, mask in graph.masks.items() if mask.ones.dim() and name in inputs}
    masks = [(name, 0) for name, mask in taking.items() if mask.touches([group.key])]
    return list(dict.fromkeys(weights + masks))


def _gates(graph: Graph, group: Group, places: Sequence[tuple[str, int]], products: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(group.width, dtype=torch.float64)
    for name, dim in places:
        if name not in products:
            continue  # the loss does not depend on it
        axis = graph.masks[name].axis if name in graph.masks else graph.tensor_axes[name][dim]
        unit = torch.as_tensor(positions(axis, group.key))
        rows = products[name].movedim(dim, 0).reshape(len(unit), -1).sum(1).cpu()
        total.index_add_(0, unit[unit >= 0], rows[unit >= 0])
    return total.pow(2)[None]


def _pseudo_loss(program: Program, outputs: list[Tensor]) -> Tensor:
    """The loss of the model's own predictions.

    The distance to the dense outputs, which everything else here is judged by, has no gradient at the dense network
    itself. So a classifier is taught its own arg max by cross entropy (Lee 2013, Pseudo-Label); any other network has
    half the square of its outputs, each output in units of its own mean square.
    """
    if (logs := _log_probabilities(program, outputs)) is not None:
        return F.nll_loss(logs, logs.argmax(-1))
    squares = [out.float().pow(2).mean() for out in outputs]
    return torch.stack([square / (2 * square.detach().clamp_min(1e-30)) for square in squares]).sum()


def _drawn_loss(program: Program, outputs: list[Tensor], first: int) -> Tensor:
    """A loss whose squared gradient is, in the mean over draws, how much a small error costs there.

    A classifier has the cross entropy of labels drawn from its own predictions (Kunstner, Hennig and Balles 2019,
    Limitations of the Empirical Fisher Approximation, eq. 4); any other network its outputs with random signs, each
    output in units of its own size.
    """
    draw = torch.Generator().manual_seed(first)
    if (logs := _log_probabilities(program, outputs)) is not None:
        labels = torch.multinomial(logs.detach().float().exp().cpu(), 1, generator=draw)[:, 0]
        return F.nll_loss(logs, labels.to(logs.device))
    outputs = [out.where(out.isfinite(), 0.0) for out in outputs]  # scores that are masked out have no slope
    signed = [
        (out.float() * (torch.randint(2, out.shape, generator=draw) * 2 - 1).to(out.device)).sum()
        / out.detach().float().pow(2).sum().clamp_min(1e-30).sqrt()
        for out in outputs
    ]
    return torch.stack(signed).sum()


def _log_probabilities(program: Program, outputs: list[Tensor]) -> Tensor | None:
    """(rows, classes) of a classifier."""
    kind = output_kind(program)
    if kind == "values":
        return None
    scores = outputs[0].flatten(0, -2)
    return scores.clamp_min(1e-12).log() if kind == "probabilities" else F.log_softmax(scores, -1)


def _gradients(value: Any, tensors: Mapping[str, Tensor], own: bool, measure: str) -> dict[str, Tensor]:
    """Of the loss with respect to each tensor that it depends on."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise _no_gradient(f"{shape} without a gradient" if isinstance(value, Tensor) else shape, own)
    slopes = torch.autograd.grad(value.reshape(()), list(tensors.values()), allow_unused=True)
    found = {name: slope for name, slope in zip(tensors, slopes, strict=True) if slope is not None}
    if not all(bool(torch.isfinite(slope).all()) for slope in found.values()):
        raise DataError(
            "Gradients are not finite.",
            expected="finite gradients of the loss in every layer",
            got="NaN or infinite values",
            where=f'collect(measures=("{measure}",))',
            hint="look for an operation without a finite slope (a root or a logarithm of 0), or pass another loss=",
        )
    return found


def _no_gradient(got: str, own: bool) -> DataError:
    return DataError(
        "There is no loss to differentiate.",
        expected="one number that depends on the outputs of the network",
        got=got,
        where="the model's own predictions" if own else "loss",
        hint="pass loss=, a function of the outputs and the labels, without detach() or argmax()",
    )


GRADIENTS: dict[str, Callable[[Graph, Batch, Tensor | None, Loss | None, int], dict[str, Tensor]]] = {
    "taylor": gate_gradients,
    "fisher": output_gradients,
}
"""Measure → what takes it on one batch: the graph, inputs, labels, a loss, and the number of the first sample."""


def wants_labels(measures: Iterable[str], loss: Loss | None) -> bool:
    """Whether samples have to come with labels."""
    return loss is not None and not GRADIENTS.keys().isdisjoint(measures)
