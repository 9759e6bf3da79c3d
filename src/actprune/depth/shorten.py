"""`shorten`: from a trained model to one with fewer blocks, proved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from actprune.allocation.budget import Amount, Budget
from actprune.allocation.cost import Cost, cost
from actprune.artifacts.pretrained import save_pretrained
from actprune.axes.capture import Graph, capture
from actprune.data.calls import Forward
from actprune.data.samples import Samples
from actprune.data.take import fit, take
from actprune.depth.blocks import containers, find_blocks
from actprune.depth.budget import Depth, of_blocks, out_of_reach, read_depth
from actprune.depth.bypass import Block
from actprune.depth.plan import DepthPlan, make_depth_plan
from actprune.depth.proof import prove
from actprune.depth.search import Removal, Search, removable
from actprune.depth.surgery import twin_of
from actprune.distance import Distance, Outputs, judge, resolve
from actprune.errors import PlanError, UnsupportedModelError
from actprune.graph.keep import kept_buffers, preserved
from actprune.graph.trace import call_arguments
from actprune.plan import Plan
from actprune.proof.check import Proof
from actprune.stats.padding import Padding

SIZE = 128
"""Calibration samples: every one is run once for every block that is tried."""


@dataclass(frozen=True, eq=False)
class Shorter:
    """What `shorten` gives back.

    Attributes:
        model: the user's own class with fewer blocks; all other weights are the dense ones.
        plan: which blocks stay; `plan.to_json()`, and `plan.apply(dense_model)` make the same cut again.
        proof: that this is the dense network with the others left out.
        removals: what went, in this order, with the distance after each.
        blocks: module paths, in the dense network, of the blocks that could have gone and stay.
        refused: module path → why a block can't be left out.
        before: exact costs of the dense network; those of `model` are in the proof.
        samples: the calibration samples.
    """

    model: nn.Module = field(repr=False)
    plan: DepthPlan
    proof: Proof
    removals: tuple[Removal, ...]
    blocks: tuple[str, ...] = field(repr=False)
    refused: Mapping[str, str] = field(repr=False)
    before: Cost
    samples: Samples = field(repr=False)

    def __str__(self) -> str:
        rows = [f"without {step.block}: distance {step.distance:.4g}" for step in self.removals]
        costs = (
            f"{self.proof.params / max(self.before.params, 1):.1%} of the parameters, "
            f"{self.proof.macs / max(self.before.macs, 1):.1%} of the multiply-adds"
        )
        count = f"{len(self.blocks)} of {len(self.blocks) + len(self.removals)} blocks that can be left out stay"
        return "\n".join([*rows, f"{count}: {costs}", str(self.proof)])

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a Hugging Face folder, for `from_pretrained` of stock transformers.

        Raises:
            ArtifactError: the folder exists, or no configuration of the class has these blocks.
        """
        nothing = Plan({}, {}, {}, self.plan.architecture, self.plan.model)  # no width was changed
        instead = "keep the state dict, and plan.to_json(), which makes the same network of a dense one"
        return save_pretrained(self.model, nothing, self.samples.inputs, folder, instead=instead)


def shorten(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    keep: int | str | Budget | Amount,
    protect: Sequence[str] = (),
    distance: str | Distance = "auto",
    calibration_size: int = SIZE,
    forward: Forward | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Shorter:
    """Leave out whole blocks, those first without which the outputs change least, and prove what is left.

        result = actprune.shorten(llama, batches, keep=24)  # of 32 layers
        result = actprune.prune(result.model, batches, keep="params=80%")  # and then the widths

    A block is an item of an `nn.ModuleList` or `nn.Sequential` that can be left out (`actprune.depth.blocks`): a layer
    of a transformer, a residual block that keeps its shape. No weight is changed; fine-tune afterwards.

    Args:
        model: any module that `actprune.capture` takes; it is left as it was.
        calibration: as for `prune`. For n blocks of which r go, about r (n − r / 2) passes of all samples are made,
            and the outputs of all samples are held twice.
        keep: how many of the blocks that can be left out stay (24), their share, rounded down but at least one
            ("blocks=75%"), or at most how much of all parameters ("params=80%", "params=700M"). Every container keeps
            an item.
        protect: patterns of module paths (as in `fnmatch`) of blocks that stay.
        distance: between outputs, as for `prune`.
        calibration_size: samples taken from `calibration`.
        forward: `forward(model, batch)`, where a batch isn't called as usual.
        seed: of the redrawn weights of the proof.
        progress: called with ("depth", tried, to be tried) in every step.

    Raises:
        BudgetError: `keep` can't be read, or met.
        UnsupportedModelError: no block can be left out; the message says why of the first ones.
        PlanError: a pattern of `protect` matches no block.
        CaptureError, DataError: the model can't be captured on this data.
        EquivalenceError: the shorter class does not run, or computes something else (one that calls its blocks by
            number, or whose blocks depend on their number).
    """
    asked = read_depth(keep)
    samples = take(model, calibration, calibration_size, forward)
    inputs = samples.inputs
    net = twin_of(model).eval()
    with preserved(net), kept_buffers(net):
        graph = capture(net, inputs)
        blocks, refused = find_blocks(net, *call_arguments(net, inputs))
        if not blocks:
            raise _no_block(model, refused)
        free = _unprotected(blocks, protect)
        search = _search(net, graph, samples, distance, progress)
        depth = of_blocks(asked, len(blocks), _most(free, search.sizes))
        removals = search(free, lambda gone: _met(net, depth, blocks, gone))
        gone = [block for step in removals for block in free if block.path == step.block]
        if not _met(net, depth, blocks, gone):
            raise out_of_reach(keep, params_left(net, gone), params_left(net, ()))
        plan = make_depth_plan(
            model,
            gone,
            {"keep": str(keep), "removals": {r.block: r.distance if isfinite(r.distance) else None for r in removals}},
        )
        small = plan.apply(model)
        proof = prove(net, gone, small, plan, inputs, seed=seed)
    stay = tuple(block.path for block in blocks if block not in gone)
    return Shorter(small, plan, proof, tuple(removals), stay, refused, cost(graph), samples)


def params_left(net: nn.Module, gone: Iterable[Block]) -> int:
    """Parameters of a network without some blocks; tied ones once."""
    out = {id(module) for block in gone for module in net.get_submodule(block.path).modules()}
    held = (own for module in net.modules() if id(module) not in out for own in module._parameters.values())
    return sum({id(own): own.numel() for own in held if own is not None}.values())


def _met(net: nn.Module, depth: Depth, blocks: Sequence[Block], gone: Sequence[Block]) -> bool:
    return depth.met(len(blocks) - len(gone), params_left(net, gone), params_left(net, ()))


def _search(
    net: nn.Module,
    graph: Graph,
    samples: Samples,
    distance: str | Distance,
    progress: Callable[[str, int, int], None] | None,
) -> Search:
    data = fit(graph.program, samples)
    calls = [pytree.tree_unflatten(list(batch), graph.program.in_spec) for batch in data.batches]
    sizes = {path: len(container._modules) for path, container in containers(net)}
    tell = progress or (lambda stage, done, total: None)
    how, padding = judge(graph.program, resolve(graph.program, distance, data)), Padding(graph)

    def marked(outputs: Sequence[Outputs]) -> list[Outputs]:
        return [padding.marked(*pair) for pair in zip(outputs, data.batches, strict=True)]

    return Search(net, calls, marked, how, sizes, lambda done, total: tell("depth", done, total))


def _most(free: Sequence[Block], sizes: Mapping[str, int]) -> int:
    """How many of these may go together."""
    gone: list[Block] = []
    while left := removable(free, gone, sizes):
        gone.append(left[0])
    return len(gone)


def _unprotected(blocks: Sequence[Block], protect: Sequence[str]) -> list[Block]:
    patterns = (protect,) if isinstance(protect, str) else tuple(protect)
    for pattern in patterns:
        if not any(fnmatchcase(block.path, pattern) for block in blocks):
            raise PlanError(
                "A pattern of protect matches no block that can be left out.",
                expected=f"module paths such as {blocks[0].path}",
                got=repr(pattern),
                where="shorten(protect=…)",
                hint="patterns are those of fnmatch: '*.layers.0' is the first layer",
            )
    return [block for block in blocks if not any(fnmatchcase(block.path, pattern) for pattern in patterns)]


def _no_block(model: nn.Module, refused: Mapping[str, str]) -> UnsupportedModelError:
    said = [f"{path}: {reason}" for path, reason in list(refused.items())[:5]]
    return UnsupportedModelError(
        f"No block of {type(model).__name__} can be left out.",
        expected="a list or sequence of modules of one class, each called once, that return one tensor of the shape "
        "of their first one and have a way past their weights",
        got="; ".join(said) or "no such list",
        where="shorten",
        hint="cut widths with actprune.prune",
    )
