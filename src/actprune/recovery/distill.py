"""Recovery without labels: gradient steps on the calibration inputs alone, towards the dense network's outputs.

Knowledge distillation after Hinton, Vinyals and Dean (2015), between the closed-form refit and a fine-tune with labels.
Everything stays in eval mode: BatchNorm statistics are those of the refit, and there is no dropout. What is returned is
the best state that held-out calibration samples have seen, so it is never farther from the dense network than before.
States are looked at as they are and as a running average (Polyak and Juditsky 1992), which the noise of the steps has
left. Where both have gone far off, the steps go on from the best state so far at a lower rate: one that is right for a
small network is too high for one of fifty layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from actprune.axes.capture import Graph
from actprune.data.samples import Calibration
from actprune.distance import Distance, Outputs, judge, objective, resolve, unit
from actprune.graph.program import Batch, Program
from actprune.graph.rebuilt import Rebuilt
from actprune.graph.run import called
from actprune.plan import Plan
from actprune.recovery.allowed import Allowed, above, at_least, between, check_settings, or_none
from actprune.recovery.features import features
from actprune.recovery.modes import evaluating, nothing_to_train
from actprune.recovery.rate import warm_cosine
from actprune.recovery.relative import RelativeSteps
from actprune.recovery.step_loss import StepLoss, marked
from actprune.stats.padding import Padding

Augment = Callable[[Any], Any]
"""A batched input tensor → one of the same shape, for example shifted and flipped at random."""

FAR, LOWER = 1.2, 1 / 3
"""A state whose distance is so many times the best one has gone far off; the rate is then multiplied by this."""

MEMORY = 20
"""Steps."""

_ALLOWED: dict[str, Allowed] = {
    "steps": at_least(1, Integral),
    "lr": above(0),
    "batch_size": or_none(at_least(1, Integral)),
    "warmup": between(0, 1),
    "holdout": between(0, 1),
    "checks": at_least(1, Integral),
    "features": at_least(0, Real),
}


@dataclass(frozen=True)
class Distill:
    """Label-free recovery: `prune(..., recover=Distill(steps=400))`.

    Attributes:
        steps: gradient steps.
        lr: first peak rate; a third of it where held-out samples show that it is too high. A step moves a weight by
            about `lr` times the size that is usual in its row and column (`relative`).
        batch_size: samples in a step; None for that of the calibration batches.
        warmup: share of the steps in which the rate rises; then it falls along a cosine.
        augment: changes the batched inputs of a step at random. The dense network sees the same ones.
        holdout: share of the calibration batches that no step sees. They choose the state that is returned.
        checks: how often held-out samples are looked at.
        features: what the mean relative error of values inside counts, beside that of the outputs; 0 for the outputs
            alone. See `actprune.recovery.features`.
    """

    steps: int = 400
    lr: float = 0.005
    batch_size: int | None = None
    warmup: float = 0.05
    augment: Augment | None = None
    holdout: float = 0.1
    checks: int = 20
    features: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self, _ALLOWED)

    def run(
        self,
        model: nn.Module,
        dense: nn.Module,
        program: Program,
        data: Calibration,
        *,
        graph: Graph | None = None,
        plan: Plan | None = None,
        distance: str | Distance = "auto",
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Recovered:
        """Train `model` in place towards `dense` on the inputs of `data`.

        Args:
            program: the captured dense network, which knows how to call both and what their outputs are.
            graph, plan: of `dense`, and by which `model` was cut; without them only outputs are compared.
            distance: what held-out states are compared by, and what is trained by, see `actprune.distance`.

        Raises:
            DataError: nothing to train.
        """
        fitted, held = data.holdout(self.holdout)
        how = resolve(program, "auto" if callable(distance) else distance, held)
        far, loss = judge(program, distance if callable(distance) else how), objective(program, how)
        padding = None if graph is None else Padding(graph)
        trained = _trained(model)
        optimizer = RelativeSteps(trained, outputs_last=isinstance(model, Rebuilt))
        batches = _batches(program, fitted, self.batch_size, seed)

        with evaluating(model, differentiable=True), evaluating(dense):
            wanted = _outputs_of(dense, program, held, padding)

            inside = None
            if graph is not None and plan is not None and self.features:
                inside = features(graph, plan, dense, model, next(_batches(program, fitted, self.batch_size, seed)))
            towards = StepLoss(program, dense, model, loss, padding, inside, self.features, partial(unit, program, how))

            def next_loss() -> Tensor:
                return towards(_augmented(program, next(batches), self.augment))

            def distance_now() -> float:
                return far(wanted, _outputs_of(model, program, held, padding))

            first, best = _Descent(self, trained, optimizer, distance_now).best(next_loss, progress)
        _put(trained, best.values)
        return Recovered(first, best.distance, best.step, self.steps, len(inside.left) if inside else 0)


@dataclass(frozen=True, eq=False)
class _Descent:
    """Steps, and the best of the states on their way.

    Attributes:
        trained: the parameters, which the optimizer moves.
        distance: of the network as it is, on held-out samples.
    """

    asked: Distill
    trained: list[nn.Parameter]
    optimizer: RelativeSteps
    distance: Callable[[], float]

    def best(self, loss: Callable[[], Tensor], progress: Callable[[int, int], None] | None) -> tuple[float, _State]:
        """(the distance before the first step, the best state)."""
        asked, trained = self.asked, self.trained
        best, peak, average = self._state(_copies(trained), 0), asked.lr, _Average(trained)
        first, every = best.distance, max(1, asked.steps // asked.checks)
        for step in range(1, asked.steps + 1):
            loss().backward()
            self.optimizer.step(peak * warm_cosine(step - 1, asked.steps, asked.warmup))
            average.add(trained)
            if progress is not None:
                progress(step, asked.steps)
            if step % every and step < asked.steps:
                continue
            now = _copies(trained)
            found = [self._state(average.copied(), step), self._state(now, step)]
            nearer = min(found, key=lambda state: state.distance if isfinite(state.distance) else inf)
            best = min(best, nearer, key=lambda state: state.distance)
            if not nearer.distance <= FAR * best.distance:  # nor is it a number, perhaps
                _put(trained, best.values)
                self.optimizer.restart()
                peak, average = peak * LOWER, _Average(trained)
        return first, best

    def _state(self, values: list[Tensor], step: int) -> _State:
        """The network with these values, which it has then."""
        _put(self.trained, values)
        return _State(self.distance(), step, values)


@dataclass(frozen=True)
class _State:
    """A state of the network: its distance on held-out samples, and the values of its parameters."""

    distance: float
    step: int
    values: list[Tensor]


class _Average:
    """The running average of the parameters after each step: of all at first, then mostly of the last `MEMORY`."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.values, self.count = _copies(parameters), 0

    @torch.no_grad()
    def add(self, parameters: list[nn.Parameter]) -> None:
        self.count += 1
        for value, parameter in zip(self.values, parameters, strict=True):
            value.lerp_(parameter, 1 / min(self.count, MEMORY))

    def copied(self) -> list[Tensor]:
        return [value.clone() for value in self.values]


@dataclass(frozen=True)
class Recovered:
    """What a recovery did.

    Attributes:
        distance_before, distance_after: to the dense network, on held-out calibration samples.
        best_step: after which the returned state was found; 0 where no step brought it nearer.
        steps: that were taken.
        values: inside, that were compared beside the outputs.
    """

    distance_before: float
    distance_after: float
    best_step: int
    steps: int
    values: int = 0


def _trained(model: nn.Module) -> list[nn.Parameter]:
    found = [p for p in model.parameters() if p.requires_grad and p.is_floating_point()]
    if not found:
        raise nothing_to_train(model, "recover", "Distill", "recover")
    return found


def _batches(program: Program, data: Calibration, size: int | None, seed: int) -> Iterator[Batch]:
    """Batches of samples in random order, for ever; each sample once in a round.

    Batches that can't be mixed, for another input differs between them, come whole, in whatever size was asked for.
    """
    draw = torch.Generator().manual_seed(seed)
    batched = [program.is_batched(i) for i in range(len(data.batches[0]))]
    while _differ(data, batched):
        for number in torch.randperm(len(data.batches), generator=draw).tolist():
            yield data.batches[number]
    whole = tuple(
        torch.cat([batch[i] for batch in data.batches]) if of_samples else data.batches[0][i]
        for i, of_samples in enumerate(batched)
    )
    step = min(size or program.batch_size, data.samples)
    while True:
        order = torch.randperm(data.samples, generator=draw)
        for start in range(0, data.samples - step + 1, step):
            chosen = order[start : start + step]
            yield tuple(x[chosen.to(x.device)] if b else x for x, b in zip(whole, batched, strict=True))


def _differ(data: Calibration, batched: Sequence[bool]) -> bool:
    """Whether an input that holds no samples is another one from batch to batch, so that they can't be mixed."""
    first = data.batches[0]
    others = [i for i, of_samples in enumerate(batched) if not of_samples and isinstance(first[i], Tensor)]
    return any(batch[i] is not first[i] for batch in data.batches for i in others)


def _augmented(program: Program, batch: Batch, augment: Augment | None) -> Batch:
    if augment is None:
        return batch
    return tuple(augment(x) if program.is_batched(i) else x for i, x in enumerate(batch))


def _outputs_of(network: nn.Module, program: Program, data: Calibration, padding: Padding | None) -> list[Outputs]:
    with torch.no_grad():
        return [marked(padding, called(network, program, batch), batch) for batch in data.batches]


@torch.no_grad()
def _put(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _copies(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]
