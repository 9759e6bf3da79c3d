"""Random networks as plain data: drawn by Hypothesis or by a seed, and built of real torch.nn modules.

A network is a `Net` of `Step`s. Both can be pasted from a failing test: `eval` of what is printed is the network.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from random_blocks import ANYWHERE, ROWS, Here, Make
from random_maps import MAPS, RESIZE
from random_tokens import BRIDGES, LENGTHEN, TOKENS

T = TypeVar("T")
Pick = Callable[[Sequence[Any]], Any]
"""Chooses one of several: Hypothesis shrinks towards the first."""

VOCABULARY, CLASSES, SECOND = 11, 3, 2


class Step(NamedTuple):
    """One block. `width` and `number` are what its maker takes them for; `body` stands within it."""

    op: str
    width: int = 4
    number: int = 2
    body: tuple[Step, ...] = ()


class Net(NamedTuple):
    """One network.

    Attributes:
        domain: what it gets: "rows", "tokens", "ids" (numbers that are looked up) or "maps".
        sample: the shape of one sample, without the batch.
        batch: samples in the example batch.
        steps: the blocks in order.
        outputs: "one", "tuple", "dict", "auxiliary" (a second head in training mode), or "tied" (of an embedding).
        given: how the inputs are passed, "tensor", "tuple" or "dict"; the last two add a second input.
        held: what holds the blocks, "Sequential", "ModuleList" or "ModuleDict".
    """

    domain: str
    sample: tuple[int, ...]
    batch: int
    steps: tuple[Step, ...]
    outputs: str = "one"
    given: str = "tensor"
    held: str = "Sequential"


# -- drawing -------------------------------------------------------------------------------------------------

WIDTHS, COUNTS, BATCHES = (4, 6, 3, 5, 8), (2, 3, 4), (2, 3, 4, 1)
SAMPLES: dict[str, tuple[tuple[int, ...], ...]] = {
    "rows": ((6,), (5,)),
    "tokens": ((4, 6), (3, 8)),
    "ids": ((4,), (5,)),
    "maps": ((3, 4, 4), (3, 8), (4, 5, 5), (3, 4, 4, 4), (8, 6, 4)),
}
OWN: dict[str, Mapping[str, Make]] = {"rows": ROWS, "tokens": TOKENS, "maps": MAPS}
CHANGING: dict[str, Mapping[str, Make]] = {"rows": {}, "tokens": LENGTHEN, "maps": RESIZE}
AROUND = ("residual", "joined", "twice", "zero_gain", "branch")
"""Steps with a body."""


def random_net(pick: Pick, most: int = 6) -> Net:
    """A network of at most so many steps, by a row of choices."""
    domain = pick(("rows", "maps", "tokens", "maps", "ids", "tokens"))
    here = "tokens" if domain == "ids" else domain
    steps: list[Step] = []
    for _ in range(pick(range(1, most + 1))):
        steps.append(_step(pick, here, 0))
        here = BRIDGES[steps[-1].op][1] if steps[-1].op in BRIDGES else here
    outputs = ("one", "tuple", "dict", "auxiliary", *(("tied",) * 2 if domain == "ids" and here == "tokens" else ()))
    return Net(
        domain,
        pick(SAMPLES[domain]),
        pick(BATCHES),
        tuple(steps),
        pick(outputs),
        pick(("tensor", "tensor", "tuple", "dict")),
        pick(("Sequential", "ModuleList", "ModuleDict")),
    )


def _step(pick: Pick, domain: str, depth: int) -> Step:
    """One step; within a body only those that keep the space."""
    kinds = ("anywhere", "own", "own", *(("around", "around", "changing", "bridge") if depth == 0 else ("own",)))
    kind = pick(kinds)
    if kind == "around":
        body = tuple(_step(pick, domain, depth + 1) for _ in range(pick((1, 2, 3))))
        return Step(pick(AROUND), pick(WIDTHS), pick(COUNTS), body)
    tables = {
        "anywhere": ANYWHERE,
        "own": OWN[domain],
        "changing": CHANGING[domain] or ANYWHERE,
        "bridge": {name: bridge[2] for name, bridge in BRIDGES.items() if bridge[0] == domain},
    }
    return Step(pick(tuple(tables[kind])), pick(WIDTHS), pick(COUNTS))


def nets(most: int = 3) -> st.SearchStrategy[Net]:
    """The networks of at most so many steps, as Hypothesis draws and shrinks them."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Net:
        return random_net(lambda options: draw(st.sampled_from(options)), most)

    return drawn()


def numbered_net(seed: int, index: int, most: int = 6) -> Net:
    """The network of this number, the same on every machine and in every version of Hypothesis."""
    return random_net(random.Random(f"{seed}/{index}").choice, most)


def smaller(net: Net) -> Iterator[Net]:
    """The same network with one step less, or with a step replaced by its body; some can't be built."""
    yield from (net._replace(steps=steps) for steps in _fewer(net.steps) if steps)
    plain = {"outputs": "one", "given": "tensor", "held": "Sequential", "batch": 2}
    yield from (net._replace(**{name: value}) for name, value in plain.items() if getattr(net, name) != value)


def _fewer(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    for i, step in enumerate(steps):
        yield steps[:i] + steps[i + 1 :]
        if step.body:
            yield steps[:i] + step.body + steps[i + 1 :]
            yield from ((*steps[:i], step._replace(body=body), *steps[i + 1 :]) for body in _fewer(step.body) if body)


# -- building ----------------------------------------------------------------------------------------------


class Around(nn.Module):
    """A body, and what happens around it: see `AROUND`."""

    def __init__(self, here: Here, step: Step) -> None:
        super().__init__()
        self.kind, self.dim = step.op, here.dim
        blocks, after = build(here, step.body)
        self.body = nn.Sequential(*blocks)
        same = after.channels == here.channels
        self.project: nn.Module = nn.Identity()
        self.last: nn.Module = nn.Identity()
        if step.op == "branch":
            self.side = here.layer(step.width)
        elif step.op in ("residual", "zero_gain") and step.number == 3 and not same:
            self.project = here.layer(after.channels, bias=False)
        elif step.op != "joined" and not same:
            self.last = here.layer(here.channels, after.channels)
        if step.op == "zero_gain":
            self.gain = nn.Parameter(torch.zeros(after.channels if step.number == 3 else here.channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "twice":
            return self.last(self.body(self.last(self.body(x))))
        if self.kind == "branch":  # the body first: it may change x in place
            return torch.cat([self.last(self.body(x)), torch.relu(self.side(x))], self.dim)
        if self.kind == "joined":
            return torch.cat([x, self.body(x)], self.dim)
        y = self.last(self.body(x))
        if self.kind == "zero_gain":
            y = y * self.gain.view(-1, *[1] * (y.dim() - self.dim - 1))
        return self.project(x) + y


def build(here: Here, steps: Sequence[Step]) -> tuple[list[nn.Module], Here]:
    """The blocks, and the place behind them."""
    blocks: list[nn.Module] = []
    for step in steps:
        domain, make = _maker(here.domain, step)
        block = make(here, step.width, step.number)
        blocks.append(block)
        with torch.no_grad():
            here = Here(domain, block.eval()(here.value.clone()))
        block.train()
    return blocks, here


def _maker(domain: str, step: Step) -> tuple[str, Make]:
    """Where the step leads, and what makes it."""
    if step.body:
        return domain, lambda here, width, count: Around(here, step)
    if step.op in BRIDGES:
        start, end, make = BRIDGES[step.op]
        if start != domain:
            raise ValueError(f"{step.op} starts from {start}, not from {domain}")
        return end, make
    return domain, {**ANYWHERE, **OWN[domain], **CHANGING[domain]}[step.op]


class Random(nn.Module):
    """The network that a description stands for; its weights follow from the description."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.domain, self.outputs = net.domain, net.outputs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._build(net)
            _settle(self)

    def _build(self, net: Net) -> None:
        value = torch.zeros(2, *net.sample, dtype=torch.long if net.domain == "ids" else torch.float32)
        if net.domain == "ids":
            self.embedding = nn.Embedding(VOCABULARY, 6)
            value = self.embedding(value).detach()
        here = Here("tokens" if net.domain == "ids" else net.domain, value)
        if net.given != "tensor":
            self.second = nn.Linear(SECOND, here.channels)
        blocks, there = build(here, net.steps)
        named = {f"{step.op}{i}": block for i, (step, block) in enumerate(zip(net.steps, blocks, strict=True))}
        self.blocks = {
            "Sequential": lambda: nn.Sequential(*blocks),
            "ModuleList": lambda: nn.ModuleList(blocks),
            "ModuleDict": lambda: nn.ModuleDict(named),
        }[net.held]()
        self.axis = here.dim
        self.head = there.layer(6 if net.outputs == "tied" else CLASSES)
        if net.outputs in ("tuple", "dict", "auxiliary"):
            self.other = there.layer(2)

    def forward(self, x: Tensor, second: Tensor | None = None) -> Any:
        if self.domain == "ids":
            x = self.embedding(x)
        if second is not None:
            condition = self.second(second)
            x = x + condition.view(x.shape[0], *(-1 if d == self.axis else 1 for d in range(1, x.dim())))
        for block in self.blocks.values() if isinstance(self.blocks, nn.ModuleDict) else self.blocks:  # type: ignore[union-attr]
            x = block(x)
        if self.outputs == "tied":
            return F.linear(self.head(x), self.embedding.weight)
        if self.outputs == "tuple":
            return self.head(x), self.other(x)
        if self.outputs == "dict":
            return {"logits": self.head(x), "rest": [self.other(x), x.shape[0]]}
        return (self.head(x), self.other(x)) if self.outputs == "auxiliary" and self.training else self.head(x)


def _settle(model: nn.Module) -> None:
    """Statistics and gains as after some training, so that no norm is the identity."""
    for module in model.modules():
        mean, variance = (getattr(module, name, None) for name in ("running_mean", "running_var"))
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            mean.normal_()
            variance.uniform_(0.5, 2.0)
        gain = getattr(module, "weight", None)
        if "Norm" in type(module).__name__ and isinstance(gain, nn.Parameter):
            nn.init.normal_(gain, 1.0, 0.3)


def inputs(net: Net, batch: int, seed: int = 0) -> Any:
    """A batch of inputs, in the form that the description says."""
    generator = torch.Generator().manual_seed(seed)
    first = (
        torch.randint(VOCABULARY, (batch, *net.sample), generator=generator)
        if net.domain == "ids"
        else torch.randn(batch, *net.sample, generator=generator)
    )
    if net.given == "tensor":
        return first
    second = torch.randn(batch, SECOND, generator=generator)
    return (first, second) if net.given == "tuple" else {"second": second, "x": first}


def leaves(outputs: Any) -> list[Tensor]:
    """The tensors among a network's outputs."""
    return [out for out in pytree.tree_leaves(outputs) if isinstance(out, Tensor)]
