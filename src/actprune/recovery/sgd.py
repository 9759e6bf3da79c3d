"""The SGD fine-tune: Nesterov momentum, warm-up and cosine, distillation from the dense network.

Knowledge distillation after Hinton, Vinyals and Dean (2015); schedule after Loshchilov and Hutter (2017, SGDR) without
restarts; no weight decay on norms and biases, as is usual since He et al. 2019 (Bag of Tricks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from actprune.errors import DataError
from actprune.recovery.modes import evaluating, nothing_to_train, training
from actprune.recovery.rate import warm_cosine

Epoch = Callable[[int, int, str], None]
"""(steps done, all steps, a line about the state)."""

Losses = list[list[float]]
"""Pairs (steps done, loss)."""

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

    Attributes:
        loader: batches (inputs, targets), iterated once per epoch; what a generator gives is kept for all epochs.
        loss: (outputs, targets) → scalar, for example `F.cross_entropy`.
        lr: peak learning rate; 0.1 to 0.5 times the rate of the original training is usual.
        epochs: passes over the loader.
        momentum, nesterov, weight_decay: as in `torch.optim.SGD`; norms and biases are not decayed.
        warmup: share of the steps in which the rate rises from near 0; then it falls along a cosine.
        distill: weight of the distillation loss against `loss`, where the dense network is known; 0 for none.
        temperature: of the distillation.
        dropout: whether dropout stays on. A cut network has little to spare: off by default.
        batchnorm: re-estimate the running statistics at the end.
        clip: largest gradient norm; None for no limit.
        forward: (model, batch) → outputs, where `model(batch[0])` is not right. Targets are `batch[1]`.
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
            DataError: an empty loader, batches without targets, nothing to train, or a loss that is not finite.
        """
        if self.epochs == 0:
            return model
        losses = _RECORD.get() if losses is None else losses
        first = int(losses[-1][0]) if losses else 0  # one run after the other makes one curve
        loader = list(self.loader) if isinstance(self.loader, Iterator) else self.loader
        steps = self.epochs * _length(loader)
        optimizer = self._optimizer(model)
        device = next(model.parameters()).device
        done = 0
        with training(model, self.dropout), evaluating(teacher), torch.enable_grad():
            for epoch in range(self.epochs):
                for batch in loader:
                    rate = self.lr * warm_cosine(done, steps, self.warmup)
                    loss = self._step(model, teacher, _checked(_to(batch, device)), optimizer, rate)
                    if not isfinite(loss):
                        raise _diverged(epoch, loss, self.lr)
                    done += 1
                    if losses is not None and (done % max(1, steps // 100) == 0 or done == steps):
                        losses.append([first + done, loss])
                    if progress is not None and (done % 50 == 0 or done == steps):
                        progress(done, steps, f"epoch {epoch + 1}, loss {loss:.4f}")
        optimizer.zero_grad(set_to_none=True)
        if done == 0:
            raise DataError(
                "The fine-tune loader is empty.",
                expected="at least one batch (inputs, targets)",
                got="none",
                where="SGD.loader",
                hint="a generator that was used up before gives nothing: pass a list or a data loader",
            )
        if self.batchnorm:
            reestimate_batchnorm(model, (self._outputs, loader, device))
        return model

    def _optimizer(self, model: nn.Module) -> torch.optim.SGD:
        groups = _parameter_groups(model, self.weight_decay)
        if not any(group["params"] for group in groups):
            raise nothing_to_train(model, "fine-tune", "SGD", "finetune")
        nesterov = self.nesterov and self.momentum > 0
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=nesterov)

    def _step(
        self, model: nn.Module, teacher: nn.Module | None, batch: Any, optimizer: torch.optim.SGD, rate: float
    ) -> float:
        """One step; not taken where the loss is not finite. Returns the loss before it."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(model, teacher, batch)
        value = float(loss.detach())
        if isfinite(value):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
        return value

    def _outputs(self, model: nn.Module, batch: Any) -> Any:
        return self.forward(model, batch) if self.forward is not None else model(batch[0])

    def _loss(self, model: nn.Module, teacher: nn.Module | None, batch: Any) -> Tensor:
        outputs = self._outputs(model, batch)
        loss = self.loss(outputs, batch[1])
        if teacher is None or self.distill == 0:
            return loss
        with torch.no_grad():
            wanted = self._outputs(teacher, batch)
        classes = isinstance(batch[1], Tensor) and not batch[1].is_floating_point()
        return (1 - self.distill) * loss + self.distill * distillation(outputs, wanted, self.temperature, classes)


def distillation(outputs: Any, wanted: Any, temperature: float, classes: bool = True) -> Tensor:
    """T² · KL at temperature T for matrices of logits, mean squared error for anything else.

    Args:
        classes: whether a matrix of outputs is one of logits; targets that are class numbers say so.
    """
    if not isinstance(outputs, Tensor) or not isinstance(wanted, Tensor):
        raise DataError(
            "Distillation needs outputs that are one tensor.",
            expected="a tensor",
            got=type(outputs).__name__,
            where="SGD.distill",
            hint="pass distill=0, or forward= that returns the logits",
        )
    if classes and outputs.dim() == 2 and outputs.shape[1] > 1:
        student = F.log_softmax(outputs / temperature, -1)
        dense = F.log_softmax(wanted / temperature, -1)
        return temperature**2 * F.kl_div(student, dense, log_target=True, reduction="batchmean")
    return F.mse_loss(outputs, wanted)


def reestimate_batchnorm(
    model: nn.Module, how: tuple[Callable[..., Any], Iterable[Any], torch.device], batches: int = 50
) -> None:
    """Population statistics of every BatchNorm as plain averages over up to `batches` training batches."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    outputs, loader, device = how
    momenta = [norm.momentum for norm in norms]
    with training(model, dropout=False), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the cumulative average
        try:
            for batch in islice(loader, batches) if norms else ():
                outputs(model, _to(batch, device))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


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


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_to(item, device) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _checked(batch: Any) -> Any:
    """A tensor alone would pass for a pair: its first sample for the inputs, its second for the targets."""
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch
    raise DataError(
        "A fine-tune batch has no targets.",
        expected="(inputs, targets)",
        got=f"{len(batch)} of them" if isinstance(batch, tuple | list) else type(batch).__name__,
        where="SGD.loader",
        hint="pass a loader of pairs, or a function of your own as finetune",
    )


def _diverged(epoch: int, loss: float, lr: float) -> DataError:
    return DataError(
        "The fine-tune diverged.",
        expected="a finite loss",
        got=f"{loss} in epoch {epoch + 1}",
        where="SGD",
        hint=f"lower the learning rate (now {lr:g})",
    )
