"""The last layer of a classifier, fitted to the probabilities that the dense network gives.

A least-squares refit brings every logit equally near, whether a probability depends on it or not. What counts is

    KL(softmax t ‖ softmax(W̃ x̃ + b̃)) + λ h |(W̃ − W) L|² / 2

with dense logits t, inputs x̃ of the cut network with E[x̃ x̃ᵀ] = L Lᵀ, W as the refit left it and h the mean curvature
p (1 − p) of a logit. This is convex: multinomial logistic regression with soft labels (Hinton et al. 2015, §2, at
T = 1), solved by L-BFGS (Liu and Nocedal 1989). λ comes down from large values while held-out samples come nearer;
where they never do the layer stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from actprune.axes.capture import Graph
from actprune.axes.expr import kept_indices
from actprune.axes.inference import Site
from actprune.compensation.rows import contracted
from actprune.compensation.walk import exclusive
from actprune.data.samples import Calibration
from actprune.distance import output_kind
from actprune.graph.program import op_name
from actprune.graph.run import run
from actprune.mapped import any_mapped
from actprune.plan import Plan
from actprune.rewrite import kept_units
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

FEWEST = 4
"""Rows for each column; with fewer the layer is left as it is."""

HELD = 4
"""One of so many samples is held out."""


@dataclass(frozen=True, eq=False)
class Head:
    """The linear layer whose outputs are the logits.

    Attributes:
        bias: its name, or None.
        columns: those of its weight matrix that stay.
    """

    site: Site
    node: Node
    bias: str | None
    columns: Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """What it reads in the cut network and what it gives in the dense one.

    Attributes:
        x: (rows, columns) whitened.
        p: (rows, classes) probabilities.
    """

    x: Tensor
    p: Tensor

    def divergence(self, weight: Tensor) -> Tensor:
        """Mean KL of the probabilities from those by (classes, columns), in nats."""
        found = torch.log_softmax(self.x @ weight.T, -1)
        return (torch.xlogy(self.p, self.p) - self.p * found).sum(-1).mean()

    def part(self, which: Tensor) -> Rows:
        return Rows(self.x[which], self.p[which])


def nearer_logits(
    graph: Graph, plan: Plan, data: Calibration, overrides: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The last layer's weight and bias, and what was done; nothing of both for networks that are no classifiers, where
    there are too few rows, or where it does not help.

    Args:
        overrides: the cut network; those of the last layer are where the fit starts.
    """
    head = find_head(graph, plan)
    if head is None or not any(overrides.keys() - graph.masks):
        return {}, {}
    tensors = {**graph.program.tensors, **overrides}
    stored = tensors[head.site.weight].detach()
    matrix = weight_matrix(head.site, stored)
    start = matrix[:, head.columns].double()
    if head.bias is not None:
        start = torch.cat([start, tensors[head.bias].detach()[:, None].double()], 1)
    seen = _seen(graph, head, data, overrides, int(WORK / (PASSES * start.numel())))
    if seen is None:
        return {}, {}
    x, logits, held = seen
    factor = _factor(x)
    rows = Rows(torch.linalg.solve_triangular(factor, x.T, upper=False).T, torch.softmax(logits, -1))
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
    program = graph.program
    if output_kind(program) == "values" or any_mapped(program.tensors.values()):
        return None
    node = next(out for out in program.outputs if isinstance(out, Node))
    if "softmax" in op_name(node):
        node = node.all_input_nodes[0]
    site = next((site for site in graph.sites if site.node == node.name and site.kind == "linear"), None)
    if site is None or contracted(node).op != "call_function" or not _free(graph, (site.weight, site.bias), node):
        return None
    weight = program.tensors[site.weight]
    kept = kept_indices(site.in_axis(graph.tensor_axes[site.weight]), kept_units(graph, plan))
    plain = weight.dim() == 2 and weight.dtype in (torch.float32, torch.float64)
    if not plain or not len(kept):
        return None
    return Head(site, node, site.bias, torch.as_tensor(kept, device=weight.device))


def _free(graph: Graph, names: Collection[str | None], node: Node) -> bool:
    """Whether this call alone reads these tensors, with nothing that scales them."""
    bindings = graph.program.bindings
    held = [[n for n in graph.program.nodes if bindings.get(n.name) == name] for name in names if name is not None]
    factors = (node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1))
    return factors == (1, 1) and all(exclusive(placeholders, node) for placeholders in held)


def _seen(
    graph: Graph, head: Head, data: Calibration, overrides: Mapping[str, Tensor], most: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """(rows, columns + a 1 for the bias) inputs, (rows, classes) dense logits, (rows,) held out or not; None where
    there are too few."""
    source, each = contracted(head.node), max(most // data.samples, 1)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    first = 0
    for batch in data.batches:
        x = _value(graph, batch, source, overrides).double()
        t = _value(graph, batch, head.node, {}).double()
        x, t = (value.reshape(len(value), -1, value.shape[-1]) for value in (x, t))
        places = slice(None, None, max(-(-x.shape[1] // each), 1))
        x, t = x[:, places, head.columns], t[:, places]
        number = torch.arange(first, first + len(x), device=x.device)[:, None].expand(x.shape[:2])
        parts.append((x.flatten(0, 1), t.flatten(0, 1), number.flatten() % HELD == HELD - 1))
        first += len(x)
    x, t, held = (torch.cat(list(values))[:most] for values in zip(*parts, strict=True))
    if head.bias is not None:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    enough = len(x) >= FEWEST * x.shape[1] and bool(held.any())
    return (x, t, held) if enough and bool(x.isfinite().all()) else None


def _value(graph: Graph, batch: Any, wanted: Node, overrides: Mapping[str, Tensor]) -> Tensor:
    found: list[Tensor] = []

    def observe(node: Node, _: tuple[Any, ...], value: Any) -> None:
        if node is wanted:
            found.append(value)

    run(graph.program, batch, overrides, observe=observe)
    return found[0]


def _factor(x: Tensor) -> Tensor:
    """L, with L Lᵀ the mean of x xᵀ and something for columns that never differ."""
    square = x.T @ x / len(x)
    return torch.linalg.cholesky(square + 1e-6 * square.diagonal().mean() * torch.eye(len(square)).to(square))


def _chosen(rows: Rows, start: Tensor, held: Tensor) -> tuple[Tensor | None, dict[str, Any]]:
    """The fit of all rows by the best λ, None where even that is not worth it."""
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
    return _fit(rows, start, found, size), {"ridge": size, "divergence_before": first, "divergence_after": best}


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

    with torch.enable_grad():
        optimizer.step(loss)
    return at.detach()
