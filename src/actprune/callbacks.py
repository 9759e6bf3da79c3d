"""Distillation from the dense network inside loops of others: the Trainer of Hugging Face, and Lightning.

Those loops do by themselves what `actprune.SGD` does besides: several processes (DDP, FSDP), accumulated batches, mixed
precision and checkpoints. What they lack is the dense network as a teacher, and BatchNorm re-estimated at the end.
Neither package is imported before its callback is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from actprune.errors import DataError
from actprune.graph.keep import copied
from actprune.recovery.batches import outputs_of
from actprune.recovery.batchnorm import reestimate_batchnorm
from actprune.recovery.distillation import distillation
from actprune.recovery.modes import evaluating


def trainer_callback(teacher: nn.Module, distill: float = 0.5, temperature: float = 4.0, batchnorm: bool = True) -> Any:
    """A `transformers.TrainerCallback`: the model's own loss becomes (1 − distill) · loss + distill · distillation.

        Trainer(small, arguments, train_dataset=…, callbacks=[trainer_callback(dense)]).train()

    Args:
        teacher: the dense network. It is whole in every process, and runs on the samples of that process.
        distill: weight of the distillation against the model's loss.
        temperature: of the distillation.
        batchnorm: re-estimate BatchNorm statistics at the end, on the training batches of rank 0.

    The divergence is over all logits, or over those whose `attention_mask` is not 0 (behind an encoder: whose label is
    not -100); squares where labels are no classes. Where the Trainer counts tokens over several batches
    (`num_items_in_batch`), it is weighed alike.
    """
    from transformers import TrainerCallback  # pyright: ignore[reportMissingImports]

    held = _Teacher(teacher, distill, temperature)

    def hook(model: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> Any:
        if model.training and torch.is_grad_enabled():
            output.loss = held.with_distillation(_loss_of(output), *_of_trainer(held, args, given, output))
        return output

    class Distillation(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            held.watch(model, hook)

        def on_train_end(
            self, args: Any, state: Any, control: Any, model: Any = None, train_dataloader: Any = None, **kwargs: Any
        ) -> None:
            held.release()
            if batchnorm and train_dataloader is not None:
                _reestimate(model, train_dataloader, lambda network, batch: network(**batch))

    return Distillation()


def lightning_callback(
    teacher: nn.Module,
    distill: float = 0.5,
    temperature: float = 4.0,
    batchnorm: bool = True,
    module: str = "",
    classes: bool = True,
) -> Any:
    """A `pytorch_lightning.Callback`: the loss of a step becomes (1 − distill) · loss + distill · distillation.

        Trainer(callbacks=[lightning_callback(dense)], …).fit(small, loader)

    Args:
        teacher: the dense network; it gets what the pruned one is called with in `training_step`. It is whole in every
            process, and runs on the samples of that process.
        distill, temperature: as for `trainer_callback`.
        batchnorm: re-estimate BatchNorm statistics at the end, on the training batches of rank 0: (inputs, …).
        module: path of the pruned network in the Lightning module; "" for the Lightning module itself.
        classes: whether outputs are logits of classes; else squares are compared.
    """
    from pytorch_lightning import Callback  # pyright: ignore[reportMissingImports]

    held = _Teacher(teacher, distill, temperature)
    calls: list[tuple[Any, Any]] = []
    watching: list[bool] = []

    def hook(network: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        if watching:  # not what validation calls, nor the call of a wrapper (DDP) around the whole step
            calls.append((output, held.outputs(*args, **given)))

    def distilling(step: Callable[..., Any]) -> Callable[..., Any]:
        def training_step(*args: Any, **given: Any) -> Any:
            calls.clear()
            watching.append(True)
            try:
                found = step(*args, **given)
            finally:
                watching.clear()
            if found is None:  # a step that is left out
                return None
            loss = found["loss"] if isinstance(found, Mapping) else found
            output, wanted = (x.flatten(0, -2) if classes else x for x in _one(calls, module))
            loss = held.with_distillation(loss, output, wanted, classes)
            return {**found, "loss": loss} if isinstance(found, Mapping) else loss

        return training_step

    class Distillation(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            held.watch(pl_module.get_submodule(module), hook)
            pl_module.training_step = distilling(pl_module.training_step)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self._end(pl_module)
            if batchnorm:
                network = pl_module.get_submodule(module)
                _reestimate(network, trainer.train_dataloader, outputs_of)

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self._end(pl_module)

        def _end(self, pl_module: Any) -> None:
            held.release()
            vars(pl_module).pop("training_step", None)

    return Distillation()


@dataclass
class _Teacher:
    """The dense network, and the hook on the pruned one by which it is asked."""

    network: nn.Module
    distill: float
    temperature: float
    handles: list[Any] = field(default_factory=list[Any])

    def watch(self, model: nn.Module, hook: Callable[..., Any]) -> None:
        """Have every call of the model seen, until `release`."""
        self.release()
        device, own = (next(one.parameters()).device for one in (model, self.network))
        if own != device:
            self.network = copied(self.network).to(device)
        self.handles.append(model.register_forward_hook(hook, with_kwargs=True))

    def release(self) -> None:
        """Leave the model as it was."""
        while self.handles:
            self.handles.pop().remove()

    def outputs(self, *args: Any, **given: Any) -> Any:
        """Of the dense network, in eval mode."""
        with torch.no_grad(), evaluating(self.network):
            return self.network(*args, **given)

    def with_distillation(
        self, loss: Tensor, output: Tensor, wanted: Tensor, classes: bool, weight: Tensor | float = 1.0
    ) -> Tensor:
        """Both losses, by their weights."""
        far = distillation(output.float(), wanted.float(), self.temperature, classes)
        return (1 - self.distill) * loss + self.distill * weight * far


def _of_trainer(
    held: _Teacher, args: tuple[Any, ...], given: dict[str, Any], output: Any
) -> tuple[Tensor, Tensor, bool, Tensor | float]:
    """Logits of the pruned and of the dense network as matrices, whether they are of classes, and their weight."""
    labels, items = given.get("labels"), given.get("num_items_in_batch")
    translates = getattr(getattr(held.network, "config", None), "is_encoder_decoder", False)
    left = {"num_items_in_batch"} if translates else {"num_items_in_batch", "labels"}  # a decoder starts from labels
    same = {key: value for key, value in given.items() if key not in left}
    pair = output.logits, held.outputs(*args, **same).logits
    classes = not isinstance(labels, Tensor) or not labels.is_floating_point()
    weight = 1.0 if items is None or labels is None else labels.ne(-100).sum() / items
    if not classes:
        return *pair, False, weight
    mask = given.get("attention_mask")
    if translates:  # that one is of what the encoder reads
        mask = None if labels is None else labels.ne(-100)
    if mask is not None and mask.shape == output.logits.shape[:-1]:
        return pair[0][mask != 0], pair[1][mask != 0], True, weight
    return pair[0].flatten(0, -2), pair[1].flatten(0, -2), True, weight


def _loss_of(output: Any) -> Tensor:
    loss = getattr(output, "loss", None)
    if isinstance(loss, Tensor) and isinstance(getattr(output, "logits", None), Tensor):
        return loss
    raise DataError(
        "The model gives no loss that distillation could be added to.",
        expected="an output with loss and logits, as models of transformers give when they get labels",
        got=type(output).__name__ if loss is None else f"{type(output).__name__} without logits",
        where="trainer_callback",
        hint="give the model labels in the data set, without label smoothing or a loss function of the Trainer's",
    )


def _one(calls: list[tuple[Any, Any]], module: str) -> tuple[Tensor, Tensor]:
    """The outputs of the one call of the network in a training step."""
    if len(calls) == 1 and all(isinstance(held, Tensor) for held in calls[0]):
        return calls[0]
    raise DataError(
        "The training step does not call the pruned network once, for a tensor.",
        expected=f"one call of {f'self.{module}' if module else 'self(…)'} in training_step",
        got=f"{len(calls)} calls" if len(calls) != 1 else " and ".join(type(held).__name__ for held in calls[0]),
        where="lightning_callback",
        hint='name the part of the Lightning module that training_step calls: lightning_callback(dense, module="net")',
    )


def _reestimate(model: nn.Module, loader: Iterable[Any], outputs: Callable[[nn.Module, Any], Any]) -> None:
    """On each rank's own batches; the statistics of rank 0 are the model's."""
    reestimate_batchnorm(model, (outputs, loader, next(model.parameters()).device))
    if dist.is_available() and dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
