"""The last layer of a classifier, fitted to the probabilities that the dense network gives.

A least-squares refit brings every logit equally near, whether a probability depends on it or not. What counts is

    KL(softmax t ‖ softmax(W̃ x̃ + b̃)) + λ h |(W̃ − W) L|² / 2

with dense logits t, inputs x̃ of the cut network with E[x̃ x̃ᵀ] = L Lᵀ, W as the refit left it and h the mean curvature
p (1 − p) of a logit. This is convex: multinomial logistic regression with soft labels (Hinton et al. 2015, §2, at
T = 1, not the temperature of `actprune.distance`: it is the classes that are to stay), solved by L-BFGS (Liu and
Nocedal 1989). λ comes down from large values while held-out samples come nearer; where they never do the layer stays
as it is.

A softmax does not see what all logits have in common, which counts where they are no logits after all. So where only
the looks of the outputs say that they are (`distance.resolve`), their mean over the classes must hardly vary: the
gradient of a cross-entropy adds up to zero over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import kept_indices
from actprune.axes.site import Site
from actprune.compensation.own import exclusive, is_plain, placeholders_of
from actprune.compensation.rows import contracted
from actprune.data.samples import Calibration
from actprune.graph.output_kinds import output_kind, tensor_outputs
from actprune.graph.program import shape
from actprune.graph.run import run
from actprune.mapped import any_mapped
from actprune.plan import Plan
from actprune.rewrite import kept_units
from actprune.stats.padding import Padding
from actprune.stats.patches import as_weight, weight_matrix

SIZES = (100.0, 10.0, 1.0, 0.1, 0.01)
"""λ, the largest first."""

WORTH = 0.99
"""A fit that leaves more of the held-out divergence than this is not worth it."""

ITERATIONS = 30
"""Of L-BFGS, for each λ."""

PASSES = 3 * ITERATIONS * (len(SIZES) + 1)
"""What all of it takes, in products of the rows with the weight."""

WORK = 1e11
"""Multiply-adds that it may take: of more rows some are left out."""

VALUE = 300
"""Multiply-adds in the time that a logit takes which becomes a probability."""

FEWEST = 4
"""Rows for each column; with fewer the layer is left as it is."""

HELD = 4
"""One of so many samples is held out."""

SHIFT = 0.5
"""Variance of the mean of a sample's logits, as a share of what it would be if they were independent, at most."""


@dataclass(frozen=True, eq=False)
class Head:
    """The linear layer whose outputs are the logits.

    Attributes:
        bias: its name, or None.
        columns: those of its weight matrix that stay.
        certain: whether the graph says that these are logits: by a softmax, or the size of a vocabulary.
    """

    site: Site
    node: Node
    bias: str | None
    columns: Tensor
    certain: bool

    @property
    def classes(self) -> int:
        return shape(self.node)[-1]

    @property
    def unknowns(self) -> int:
        """Of one class."""
        return len(self.columns) + (self.bias is not None)

    def rows(self, samples: int) -> int:
        """How many there are: one for each position of a sample."""
        return samples * prod(shape(self.node)[1:-1])

    def affordable(self, room: int) -> int:
        """As many rows as `WORK` and so many bytes allow."""
        work = PASSES * self.classes * (self.unknowns + VALUE)
        return int(min(WORK / work, room / (8 * (3 * self.unknowns + 8 * self.classes))))


@dataclass(frozen=True, eq=False)
class Rows:
    """What it reads in the cut network and what it gives in the dense one.

    Attributes:
        x: (rows, columns) whitened.
        p: (rows, classes) probabilities.
        entropy: their mean, in nats.
    """

    x: Tensor
    p: Tensor
    entropy: float

    @classmethod
    def of(cls, x: Tensor, p: Tensor) -> Rows:
        return cls(x, p, -float(torch.xlogy(p, p).sum(-1).mean()))

    def divergence(self, weight: Tensor) -> Tensor:
        """Mean KL of the probabilities from those by (classes, columns), in nats."""
        return -(self.p * torch.log_softmax(self.x @ weight.T, -1)).sum(-1).mean() - self.entropy

    def part(self, which: Tensor) -> Rows:
        return Rows.of(self.x[which], self.p[which])


def nearer_logits(
    graph: Graph, plan: Plan, data: Calibration, overrides: Mapping[str, Tensor], room: int, *, told: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The last layer's weight and bias, and what was done; nothing of both for networks that are no classifiers, where
    there are too few rows, or where it does not help.

    Args:
        overrides: the cut network; those of the last layer are where the fit starts.
        room: bytes that it may take.
        told: whether the user says that the outputs are logits.
    """
    head = find_head(graph, plan)
    if head is None or not any(overrides.keys() - graph.masks):
        return {}, {}
    most = head.affordable(room)
    if min(most, head.rows(data.samples)) < FEWEST * head.unknowns:
        return {}, {}
    x, logits, held = _seen(graph, head, data, overrides, most)
    if len(x) < FEWEST * head.unknowns:
        return {}, {}
    factor = _factor(x)
    if factor is None or not (told or head.certain or _shift(logits) < SHIFT):
        return {}, {}
    tensors = {**graph.program.tensors, **overrides}
    stored = tensors[head.site.weight].detach()
    matrix = weight_matrix(head.site, stored)
    start = matrix[:, head.columns].double()
    if head.bias is not None:
        start = torch.cat([start, tensors[head.bias].detach()[:, None].double()], 1)
    rows = Rows.of(torch.linalg.solve_triangular(factor, x.T, upper=False).T, torch.softmax(logits, -1))
    found, record = _chosen(rows, start @ factor, held)
    if found is None:
        return {}, {}
    found = torch.linalg.solve_triangular(factor.T, found.T, upper=True).T
    made = matrix.clone()
    made[:, head.columns] = found[:, : len(head.columns)].to(made.dtype)
    new = {head.site.weight: as_weight(head.site, made, stored)}
    if head.bias is not None:
        new[head.bias] = found[:, -1].to(tensors[head.bias].dtype)
    return new, {"module": head.site.module, **record}


def find_head(graph: Graph, plan: Plan) -> Head | None:
    """The layer that gives the logits of the one output, where it and its bias may change."""
    program, kind = graph.program, output_kind(graph.program)
    if kind == "values" or any_mapped(program.tensors.values()):
        return None
    node = tensor_outputs(program)[0]
    if kind != "logits":
        node = node.all_input_nodes[0]  # of a softmax
    site = next((site for site in graph.sites if site.node == node.name and site.kind == "linear"), None)
    if site is None or contracted(node).op != "call_function" or shape(node)[0] != program.batch_size:
        return None
    weight, known = program.tensors[site.weight], placeholders_of(program)
    names = [site.weight] if site.bias is None else [site.weight, site.bias]
    if not is_plain(node) or not all(exclusive(known.get(name, ()), node) for name in names):
        return None
    kept = kept_indices(site.in_axis(graph.tensor_axes[site.weight]), kept_units(graph, plan))
    biases = [program.tensors[name].shape for name in names[1:]]
    simple = weight.dim() == 2 and biases in ([], [(shape(node)[-1],)])
    if not simple or not len(kept) or weight.dtype not in (torch.float32, torch.float64):
        return None
    columns = torch.as_tensor(kept, device=weight.device)
    return Head(site, node, site.bias, columns, kind != "logits" or len(shape(node)) > 2)


def _seen(
    graph: Graph, head: Head, data: Calibration, overrides: Mapping[str, Tensor], most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, columns + a 1 for the bias) inputs, (rows, classes) dense logits, (rows,) held out or not.

    Args:
        most: of all rows that are no padding, evenly.
    """
    source, each = contracted(head.node), head.rows(data.samples) // len(data.batches)
    padding, seen = Padding(graph), 0
    there = [padding.rows(head.site, head.node, batch) for batch in data.batches]
    numbers = [torch.arange(each) if own is None else own.flatten().nonzero()[:, 0].cpu() for own in there]
    step = max(-(-sum(map(len, numbers)) // most), 1)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for i, (batch, own) in enumerate(zip(data.batches, numbers, strict=True)):
        which = own[-seen % step :: step]
        x = _value(graph, batch, source, overrides).flatten(0, -2)[which][:, head.columns].double()
        t = _value(graph, batch, head.node, {}).flatten(0, -2)[which].double()
        parts.append((x, t, (i * each + which) // head.rows(1)))
        seen += len(own)
    x, t, samples = (torch.cat(list(values)) for values in zip(*parts, strict=True))
    if head.bias is not None:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    number = samples.unique(return_inverse=True)[1]
    return x, t, (number % HELD == HELD - 1).to(x.device)


def _shift(logits: Tensor) -> float:
    return logits.shape[1] * float(logits.mean(1).var()) / max(float(logits.var(0).mean()), 1e-30)


def _value(graph: Graph, batch: Any, wanted: Node, overrides: Mapping[str, Tensor]) -> Tensor:
    found: list[Tensor] = []

    def observe(node: Node, _: tuple[Any, ...], value: Any) -> None:
        if node is wanted:
            found.append(value)

    run(graph.program, batch, overrides, observe=observe)
    return found[0]


def _factor(x: Tensor) -> Tensor | None:
    """L, with L Lᵀ the mean of x xᵀ and something for columns that never differ; None where there is no such."""
    square = x.T @ x / len(x)
    jitter = 1e-6 * square.diagonal().mean() * torch.eye(len(square)).to(square)
    factor, wrong = torch.linalg.cholesky_ex(square + jitter)
    return None if wrong or not bool(factor.isfinite().all()) else factor


def _chosen(rows: Rows, start: Tensor, held: Tensor) -> tuple[Tensor | None, dict[str, Any]]:
    """The fit of all rows by the best λ, None where even that is not worth it."""
    if not held.any() or held.all():
        return None, {}
    fitted, rest = rows.part(~held), rows.part(held)
    first = best = float(rest.divergence(start))
    size, found = 0.0, start
    for tried in SIZES:
        nearer = _fit(fitted, start, found, tried)
        left = float(rest.divergence(nearer))
        if not left < best:
            break
        size, best, found = tried, left, nearer
    if not best < WORTH * first:
        return None, {}
    whole = _fit(rows, start, found, size)
    if float(rows.divergence(whole)) < float(rows.divergence(found)):
        found = whole
    return found, {"ridge": size, "rows": len(rows.x), "held_before": first, "held_after": best}


def _fit(rows: Rows, centre: Tensor, start: Tensor, size: float) -> Tensor:
    """(classes, columns) with the least mean divergence and distance from the centre."""
    size *= float((rows.p * (1 - rows.p)).mean())
    at = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [at], max_iter=ITERATIONS, history_size=20, tolerance_grad=1e-9, tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = rows.divergence(at) + size / 2 * ((at - centre) ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return at.detach()
