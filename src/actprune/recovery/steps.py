"""The steps of a fine-tune, from wherever it is: an interrupted one goes on to the same end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from actprune.errors import DataError
from actprune.graph.keep import apart
from actprune.recovery.batches import targets_of
from actprune.recovery.checkpoint import Begun, Checkpoint
from actprune.recovery.parallel import Training, check_same_batch
from actprune.recovery.place import to
from actprune.recovery.rate import warm_cosine
from actprune.recovery.streams import put_states, states

Epoch = Callable[[int, int, str], None]
"""(steps done, all steps, a line about the state)."""

Losses = list[list[float]]
"""Pairs (steps done, loss)."""


@dataclass(frozen=True)
class Schedule:
    """What the steps of a fine-tune go by; `SGD` says what each of it is."""

    lr: float
    epochs: int
    warmup: float
    clip: float | None
    accumulate: int
    checkpoint_every: int | None


@dataclass
class Fit:
    """One fine-tune that goes on: what its steps share."""

    asked: Schedule
    trained: Training
    optimizer: torch.optim.SGD
    loader: Iterable[Any]
    steps: int
    device: torch.device
    checkpoint: Checkpoint | None
    progress: Epoch | None
    inputs: int

    def run(self, losses: Losses | None) -> None:
        """All steps that are left, from wherever the fine-tune is."""
        ranks, checkpoint = self.trained.ranks, self.checkpoint
        begun = checkpoint.restore(self.trained, self.optimizer, self.loader) if checkpoint is not None else None
        begun = begun or Begun(base=ranks.from_first(torch.initial_seed))
        first = int(losses[-1][0]) if losses else 0  # one run after the other makes one curve
        every = self.asked.checkpoint_every or self.steps // self.asked.epochs
        if losses is not None:
            losses.extend([first + done, loss] for done, loss in begun.losses)
        while begun.epoch < self.asked.epochs:
            for batches in self._batches(begun):
                loss = self._step(batches, begun)
                if begun.done % max(1, self.steps // 100) == 0 or begun.done == self.steps:
                    begun.losses.append([begun.done, loss])
                    if losses is not None:
                        losses.append([first + begun.done, loss])
                if self.progress is not None and (begun.done % 50 == 0 or begun.done == self.steps):
                    self.progress(begun.done, self.steps, f"epoch {begun.epoch + 1}, loss {loss:.4f}")
                if checkpoint is not None and begun.done % every == 0 and begun.done < self.steps:
                    checkpoint.save(self.trained, self.optimizer, begun)
            begun.epoch, begun.within, begun.drawn = begun.epoch + 1, 0, {}
        self.optimizer.zero_grad(set_to_none=True)
        if begun.done == 0:
            raise empty()

    def _batches(self, begun: Begun) -> Iterator[list[Any]]:
        """Those of every step that is left of an epoch; every rank draws them as rank 0 does."""
        begun.drawn = self.trained.ranks.from_first(lambda: begun.drawn or states(self.loader))
        put_states(self.loader, begun.drawn)
        batches, done = iter(self.loader), begun.within
        while group := [to(batch, self.device) for batch in islice(batches, self.asked.accumulate)]:
            if done > 0:  # an earlier process has taken this step
                done -= 1
                continue
            for batch in group:
                targets_of(batch, self.inputs)  # before any rank waits for the others
            if begun.within == 0:
                check_same_batch(group[0], self.trained.ranks)
            yield group

    def _step(self, batches: list[Any], begun: Begun) -> float:
        """One step; not taken where the loss is not finite. Returns the loss before it."""
        asked, optimizer, parameters = self.asked, self.optimizer, self.trained.model.parameters()
        for group in optimizer.param_groups:
            group["lr"] = asked.lr * warm_cosine(begun.done, self.steps, asked.warmup)
        optimizer.zero_grad(set_to_none=True)
        with apart(begun.base, begun.done, self.trained.ranks.rank):
            loss = self.trained.backward(batches)
        if not isfinite(loss):
            raise _diverged(begun.epoch, loss, asked.lr)
        if asked.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, asked.clip)
        optimizer.step()
        begun.done, begun.within = begun.done + 1, begun.within + 1
        return loss


def empty() -> DataError:
    """Of a loader without a batch."""
    return DataError(
        "The fine-tune loader is empty.",
        expected="at least one batch (inputs, targets)",
        got="none",
        where="SGD.loader",
        hint="a generator that was used up before gives nothing: pass a list or a data loader",
    )


class DivergedError(DataError):
    """The loss of a fine-tune, or what it made of the weights, is not finite any more."""


def _diverged(epoch: int, loss: float, lr: float) -> DivergedError:
    return DivergedError(
        "The fine-tune diverged.",
        expected="a finite loss",
        got=f"{loss} in epoch {epoch + 1}",
        where="SGD",
        hint=f"lower the learning rate (now {lr:g})",
    )


def trained_network(returned: Any, given: nn.Module) -> nn.Module:
    """The network that a fine-tune has trained: what it returned, or else what it was given.

    Raises:
        DataError: it returned one with other tensors, such as the dense network.
        DivergedError: a parameter that is trained is not finite, or a buffer holds NaN.
    """
    network = returned if isinstance(returned, nn.Module) else given
    if not any(module is given for module in network.modules()):  # neither itself nor wrapped
        _check_same_form(network, given)
    if (broken := _broken(network)) is not None:
        raise DivergedError(
            "The fine-tune diverged.",
            expected="finite weights",
            got=f"NaN or infinite values in {broken}",
            where="finetune",
            hint="lower the learning rate",
        )
    return network


def _broken(network: nn.Module) -> str | None:
    """The first tensor that training has ruined. One of infinities that nobody trains may be a mask."""
    trained = ((name, p.isfinite()) for name, p in network.named_parameters() if p.requires_grad)
    held = ((name, ~b.isnan()) for name, b in network.named_buffers() if b.is_floating_point() and b.dtype.itemsize > 1)
    return next((name for name, fine in (*trained, *held) if not bool(fine.all())), None)


def _check_same_form(returned: nn.Module, given: nn.Module) -> None:
    expected, found = ({name: _form(t) for name, t in one.state_dict().items()} for one in (given, returned))
    if found != expected:
        wrong = next(name for name in (*expected, *found) if expected.get(name) != found.get(name))
        raise DataError(
            "finetune returned another network than the pruned one.",
            expected=f"{wrong} of {expected.get(wrong, 'no shape: there is none')}",
            got=found.get(wrong, "no such tensor"),
            where="finetune",
            hint="train the model that the function is given, in place, and return it or nothing",
        )


def _form(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
