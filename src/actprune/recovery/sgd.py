"""The SGD fine-tune: Nesterov momentum, warm-up and cosine, distillation from the dense network.

Knowledge distillation after Hinton, Vinyals and Dean (2015); schedule after Loshchilov and Hutter (2017, SGDR) without
restarts; no weight decay on norms and biases, as is usual since He et al. 2019 (Bag of Tricks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from math import ceil
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.artifacts.files import content_digest
from actprune.data.batches import check_gives_batches
from actprune.data.parts import needed
from actprune.distributed import ALONE, Ranks
from actprune.graph.keep import apart, kept_buffers
from actprune.recovery.allowed import Allowed, above, at_least, between, check_settings, function, one_of, or_none
from actprune.recovery.batches import outputs_of, targets_of
from actprune.recovery.batchnorm import reestimate_batchnorm
from actprune.recovery.checkpoint import Checkpoint
from actprune.recovery.distillation import distillation
from actprune.recovery.modes import evaluating, nothing_to_train, training
from actprune.recovery.parallel import STRATEGIES, across, training_by
from actprune.recovery.place import to
from actprune.recovery.rehearsal import first_of, rehearsed, repeats
from actprune.recovery.steps import Epoch, Fit, Losses, Schedule

PRECISIONS: dict[str | None, torch.dtype | None] = {None: None, "bf16": torch.bfloat16}
"""What outputs are computed in, under autocast."""

_TOLD = (
    "lr epochs momentum nesterov weight_decay warmup distill temperature dropout clip accumulate precision"
).split()
"""The settings that make the steps of a fine-tune the same ones."""

_ALLOWED: dict[str, Allowed] = {
    "loader": Allowed(lambda x: hasattr(x, "__iter__") or hasattr(x, "__getitem__"), "an iterable of batches"),
    "loss": function(2, "(outputs, targets) → scalar").told(
        "is no loss", "for example F.cross_entropy, or an instance of a class: nn.CrossEntropyLoss()"
    ),
    "lr": at_least(0, Real, Tensor),
    "epochs": at_least(0, Integral),
    "momentum": at_least(0, Real),
    "weight_decay": at_least(0, Real),
    "warmup": between(0, 1),
    "distill": between(0, 1),
    "temperature": above(0),
    "clip": or_none(above(0)),
    "accumulate": at_least(1, Integral),
    "precision": one_of(*PRECISIONS),
    "strategy": one_of(*STRATEGIES, None),
    "checkpoint_every": or_none(at_least(1, Integral)),
}

_RECORD: ContextVar[Losses | None] = ContextVar("record", default=None)


@contextmanager
def recording(losses: Losses) -> Iterator[None]:
    """Have every `SGD` that runs inside write its losses there, also one inside a function of the user's."""
    before = _RECORD.set(losses)
    try:
        yield
    finally:
        _RECORD.reset(before)


@dataclass(frozen=True)
class SGD:
    """A fine-tune by stochastic gradient descent; also a callable `finetune(model)`.

    Processes that `torchrun` or `accelerate launch` has started share it out: each takes its share of the samples of
    every batch, and all come to what one would (docs/scaling.md). Every rank calls it, with the same model and loader.

    Attributes:
        loader: batches (inputs, targets), or dicts with "labels", iterated once per epoch; what a generator gives is
            kept for all epochs. A model whose `forward` needs two inputs takes (a, b, targets), or ((a, b), targets).
        loss: (outputs, targets) → scalar, a mean over the samples, for example `F.cross_entropy`.
        lr: peak learning rate; 0.1 to 0.5 times the rate of the original training is usual.
        epochs: passes over the loader.
        momentum, nesterov, weight_decay: as in `torch.optim.SGD`; norms and biases are not decayed.
        warmup: share of the steps in which the rate rises from near 0; then it falls along a cosine.
        distill: weight of the distillation loss against `loss`, where the dense network is known; 0 for none. Each of
            several outputs is compared with the dense network's.
        temperature: of the distillation.
        dropout: whether dropout stays on. A cut network has little to spare: off by default.
        batchnorm: re-estimate the running statistics at the end.
        clip: largest gradient norm; None for no limit.
        forward: (model, batch) → outputs, where `model(batch[0])`, or `model(**batch)` of a dict, is not right. Targets
            are `batch[1]`, or `batch["labels"]`.
        accumulate: so many batches of the loader make one step, which is that of one batch of all their samples.
        precision: "bf16" for outputs computed under autocast to bfloat16; losses and weights stay as they are.
        strategy: of several processes: "ddp", each holds the model, or "fsdp", parameters, gradients and momentum are
            sharded (FSDP2). The dense network that is distilled from is whole in every process. None: each process
            trains by itself, whatever the others do.
        checkpoint: a file for the state of the fine-tune (safetensors), from which the same call goes on after an
            interruption, to the same end; it is removed at the end. `prune(save_to=…)` keeps one by itself.
        checkpoint_every: steps between two checkpoints; None for one at the end of every epoch.

    Raises:
        DataError: a setting that is none.
    """

    loader: Iterable[Any]
    loss: Callable[[Any, Any], Tensor]
    lr: float = 0.01
    epochs: int = 3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    warmup: float = 0.05
    distill: float = 0.5
    temperature: float = 4.0
    dropout: bool = False
    batchnorm: bool = True
    clip: float | None = 5.0
    forward: Callable[[Any, Any], Any] | None = None
    accumulate: int = 1
    precision: str | None = None
    strategy: str | None = "ddp"
    checkpoint: str | Path | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        check_settings(self, _ALLOWED)

    def __call__(self, model: nn.Module) -> nn.Module:
        return self.run(model)

    def run(
        self,
        model: nn.Module,
        teacher: nn.Module | None = None,
        progress: Epoch | None = None,
        losses: Losses | None = None,
    ) -> nn.Module:
        """Fine-tune `model` in place.

        Args:
            teacher: the dense network to distil from; it is used in eval mode and not changed.
            losses: gets about a hundred pairs (steps done, loss); None: that of `recording`, if there is one.

        Returns:
            The same model, in the modes that it came in.

        Raises:
            DataError: an empty loader, batches without targets, nothing to train, a loss that is not finite, or
                processes whose loaders give different batches.
            ArtifactError: the checkpoint can't be written or read, or is that of another fine-tune.
            DistributedError: another process has failed, is gone, or has another model or other settings.
        """
        if self.epochs == 0:
            return model
        _check_trains(model)
        losses = _RECORD.get() if losses is None else losses

        def fit(ranks: Ranks) -> None:
            self._fit(model, teacher if self.distill else None, ranks, progress, losses)

        with evaluating(teacher), torch.enable_grad():
            if self.strategy is None:
                fit(ALONE)
            else:
                across(next(model.parameters()).device, fit)
        return model

    def check_on(self, model: nn.Module) -> None:
        """Take a batch of the loader through the model and the loss, in training mode and without a step.

        Only lists, tuples and data loaders over a data set are looked into, which give the same batches again: the
        random state that they draw from is put back.

        Raises:
            DataError: one of them can't do it; the message says which.
        """
        check_gives_batches(self.loader, "SGD(loader=…)")
        if self.epochs == 0 or not repeats(self.loader):
            return
        _check_trains(model)
        batch = to(first_of(self.loader), next(model.parameters()).device)
        with apart(0), kept_buffers(model), training(model, self.dropout), torch.enable_grad():
            outputs, targets = rehearsed(model, batch, self._precise, self._targets, self.loss)
            if self.distill:
                self._distillation(outputs, outputs, targets)

    def told(self) -> dict[str, Any]:
        """What was asked for, but for the data, the place of the checkpoint and the way of sharing out the work."""
        return {name: getattr(self, name) for name in (*_TOLD, "loss", "batchnorm", "forward")}

    def _fit(
        self, model: nn.Module, teacher: nn.Module | None, ranks: Ranks, progress: Epoch | None, losses: Losses | None
    ) -> None:
        """What every rank does."""
        device = next(model.parameters()).device
        loader = list(self.loader) if isinstance(self.loader, Iterator) else self.loader
        steps = self.epochs * ceil(_length(loader) / self.accumulate)
        checkpoint = self._checkpoint(model, teacher, ranks, steps)
        with (
            training_by(self.strategy, model, partial(self._loss, teacher), ranks) as trained,
            training(trained.model, self.dropout),
        ):
            optimizer = self._optimizer(trained.model)
            Fit(
                self._schedule, trained, optimizer, loader, steps, device, checkpoint, progress, self._inputs(model)
            ).run(losses)
        if self.batchnorm:  # every rank alike, of whole batches
            reestimate_batchnorm(model, (self._outputs, loader, device))
        for buffer in model.buffers():  # each has seen its own samples
            ranks.first_(buffer)
        if checkpoint is not None:
            checkpoint.remove(ranks)

    def _checkpoint(self, model: nn.Module, teacher: nn.Module | None, ranks: Ranks, steps: int) -> Checkpoint | None:
        """Where the state is kept, of a fine-tune that is the same on every rank."""
        if self.checkpoint is None and ranks.world == 1:
            return None
        asked = {
            **{name: getattr(self, name) for name in _TOLD},
            "steps": steps,
            "model": content_digest(model.state_dict().items()),
            "teacher": None if teacher is None else content_digest(teacher.state_dict().items()),
        }
        ranks.check_same({**asked, "strategy": self.strategy, "checkpoint": self.checkpoint is not None})
        return None if self.checkpoint is None else Checkpoint(Path(self.checkpoint), asked)

    @property
    def _schedule(self) -> Schedule:
        return Schedule(self.lr, self.epochs, self.warmup, self.clip, self.accumulate, self.checkpoint_every)

    def _optimizer(self, model: nn.Module) -> torch.optim.SGD:
        nesterov = self.nesterov and self.momentum > 0
        groups = _parameter_groups(model, self.weight_decay)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=nesterov)

    def _outputs(self, model: nn.Module, batch: Any) -> Any:
        return self.forward(model, batch) if self.forward is not None else outputs_of(model, batch)

    def _targets(self, model: nn.Module, batch: Any) -> Any:
        return targets_of(batch, self._inputs(model))

    def _inputs(self, model: nn.Module) -> int:
        """How many of them stand before the targets in a batch."""
        return needed(model) if self.forward is None else 1

    def _precise(self, model: nn.Module, batch: Any) -> Any:
        """Outputs in the precision that was asked for; they are float32 then."""
        dtype = PRECISIONS[self.precision]
        if dtype is None:
            return self._outputs(model, batch)
        with torch.autocast(next(model.parameters()).device.type, dtype):
            outputs = self._outputs(model, batch)
        return pytree.tree_map_only(Tensor, lambda x: x.float() if x.dtype == dtype else x, outputs)

    def _loss(self, teacher: nn.Module | None, model: nn.Module, batch: Any) -> Tensor:
        outputs = self._precise(model, batch)
        targets = self._targets(model, batch)
        loss = self.loss(outputs, targets)
        if teacher is None:
            return loss
        with torch.no_grad():
            wanted = self._precise(teacher, batch)
        return (1 - self.distill) * loss + self.distill * self._distillation(outputs, wanted, targets)

    def _distillation(self, outputs: Any, wanted: Any, targets: Any) -> Tensor:
        told = [target for target in pytree.tree_leaves(targets) if isinstance(target, Tensor)]
        classes = bool(told) and not any(target.is_floating_point() for target in told)
        return distillation(outputs, wanted, self.temperature, classes)


def _check_trains(model: nn.Module) -> None:
    if not any(p.requires_grad for p in model.parameters()):
        raise nothing_to_train(model, "fine-tune", "SGD", "finetune")


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _length(loader: Iterable[Any]) -> int:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return sum(1 for _ in loader)
