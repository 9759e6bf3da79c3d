"""The SGD fine-tune: Nesterov momentum, warm-up and cosine, distillation from the dense network.

Knowledge distillation after Hinton, Vinyals and Dean (2015); schedule after Loshchilov and Hutter (2017, SGDR) without restarts;
no weight decay on norms and biases, as is usual since He et al. 2019 (Bag of Tricks).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from actprune.errors import DataError

Epoch = Callable[[int, int, str], None]
"""(steps done, all steps, a line about the state)."""


@dataclass(frozen=True)
class SGD:
    """A fine-tune by stochastic gradient descent; also a callable `finetune(model)`.

    Attributes:
        loader: batches (inputs, targets), iterated once per epoch.
        loss: (outputs, targets) → scalar, for example `F.cross_entropy`.
        lr: peak learning rate; 0.1 to 0.5 times the rate of the original training is usual.
        epochs: passes over the loader.
        momentum, nesterov, weight_decay: as in `torch.optim.SGD`; norms and biases are not decayed.
        warmup: share of the steps in which the rate rises from 0; then it falls along a cosine.
        distill: weight of the distillation loss against `loss`, where the dense network is known; 0 for none.
        temperature: of the distillation.
        dropout: whether dropout stays on. A cut network has little to spare: off by default.
        batchnorm: re-estimate the running statistics at the end.
        clip: largest gradient norm; None for no limit.
        forward: (model, batch) → outputs, where `model(batch[0])` is not right; targets are then `batch[1]`.
    """

    loader: Iterable[Any]
    loss: Callable[[Any, Any], Tensor]
    lr: float = 0.01
    epochs: int = 3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    warmup: float = 0.05
    distill: float = 0.9
    temperature: float = 4.0
    dropout: bool = False
    batchnorm: bool = True
    clip: float | None = 5.0
    forward: Callable[[Any, Any], Any] | None = None

    def __call__(self, model: nn.Module) -> nn.Module:
        return self.run(model)

    def run(self, model: nn.Module, teacher: nn.Module | None = None, progress: Epoch | None = None) -> nn.Module:
        """Fine-tune `model` in place.

        Args:
            teacher: the dense network to distil from; it is used in eval mode and not changed.

        Returns:
            The same model, in the modes that it came in.

        Raises:
            DataError: an empty loader, or a loss that is not finite.
        """
        steps = self.epochs * _length(self.loader)
        optimizer = torch.optim.SGD(
            _parameter_groups(model, self.weight_decay), lr=self.lr, momentum=self.momentum, nesterov=self.nesterov
        )
        device = next(model.parameters()).device
        done = 0
        with training(model, self.dropout), _evaluating(teacher):
            for epoch in range(self.epochs):
                for batch in self.loader:
                    batch = _to(batch, device)
                    for group in optimizer.param_groups:
                        group["lr"] = self.lr * _rate(done, steps, self.warmup)
                    loss = self._loss(model, teacher, batch)
                    if not bool(torch.isfinite(loss)):
                        raise _diverged(epoch, float(loss), self.lr)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    if self.clip is not None:
                        torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
                    optimizer.step()
                    done += 1
                    if progress is not None and (done % 50 == 0 or done == steps):
                        progress(done, steps, f"epoch {epoch + 1}, loss {float(loss.detach()):.4f}")
            if done == 0 and self.epochs > 0:
                raise DataError(
                    "The fine-tune loader is empty.",
                    expected="at least one batch (inputs, targets)",
                    got="none",
                    where="SGD.loader",
                    hint="a generator can be used only once: pass a list or a data loader",
                )
        if self.batchnorm and done:
            reestimate_batchnorm(model, (self._outputs, self.loader, device))
        return model

    def _outputs(self, model: nn.Module, batch: Any) -> Any:
        return self.forward(model, batch) if self.forward is not None else model(batch[0])

    def _loss(self, model: nn.Module, teacher: nn.Module | None, batch: Any) -> Tensor:
        outputs = self._outputs(model, batch)
        loss = self.loss(outputs, batch[1])
        if teacher is None or self.distill == 0:
            return loss
        with torch.no_grad():
            wanted = self._outputs(teacher, batch)
        return (1 - self.distill) * loss + self.distill * distillation(outputs, wanted, self.temperature)


def distillation(outputs: Any, wanted: Any, temperature: float) -> Tensor:
    """T² · KL at temperature T for matrices of logits, mean squared error for anything else."""
    if not isinstance(outputs, Tensor) or not isinstance(wanted, Tensor):
        raise DataError(
            "Distillation needs outputs that are one tensor.",
            expected="a tensor",
            got=type(outputs).__name__,
            where="SGD.distill",
            hint="pass distill=0, or forward= that returns the logits",
        )
    if outputs.dim() == 2 and outputs.shape[1] > 1:
        student = F.log_softmax(outputs / temperature, -1)
        dense = F.log_softmax(wanted / temperature, -1)
        return temperature**2 * F.kl_div(student, dense, log_target=True, reduction="batchmean")
    return F.mse_loss(outputs, wanted)


def reestimate_batchnorm(
    model: nn.Module, how: tuple[Callable[..., Any], Iterable[Any], torch.device], batches: int = 50
) -> None:
    """Population statistics of every BatchNorm as plain averages over up to `batches` training batches."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    outputs, loader, device = how
    momenta = [norm.momentum for norm in norms]
    with training(model, dropout=False), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the cumulative average
        try:
            for i, batch in enumerate(loader):
                if i == batches:
                    break
                outputs(model, _to(batch, device))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@contextlib.contextmanager
def training(model: nn.Module, dropout: bool) -> Iterator[None]:
    """Training mode, with dropout only if asked for; the modes are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    if not dropout:
        for module in model.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _evaluating(model: nn.Module | None) -> Iterator[None]:
    if model is None:
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at a step."""
    rising = max(int(warmup * steps), 1)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + cos(pi * (step - rising) / max(steps - rising, 1)))


def _length(loader: Iterable[Any]) -> int:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return sum(1 for _ in loader)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_to(item, device) for item in value)
    return value


def _diverged(epoch: int, loss: float, lr: float) -> DataError:
    return DataError(
        "The fine-tune diverged.",
        expected="a finite loss",
        got=f"{loss} in epoch {epoch + 1}",
        where="SGD",
        hint=f"lower the learning rate (now {lr:g})",
    )
