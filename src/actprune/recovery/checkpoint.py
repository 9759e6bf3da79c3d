"""The state of a fine-tune in one safetensors file, from which it goes on when it was interrupted.

    model.NAME      the state dict, whole, however many processes there are
    momentum.NAME   of every trained parameter that has one

and in the metadata, as JSON: what was asked for, how far it is, the losses, and the random states of the data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from actprune.artifacts.files import new_file, unreadable
from actprune.artifacts.weights import read_weights, write_weights
from actprune.distributed import Ranks
from actprune.errors import ArtifactError
from actprune.recovery.parallel import Training
from actprune.recovery.streams import put_states

SCHEMA = "actprune.finetune/1"
MOMENTUM = "momentum_buffer"


@dataclass
class Begun:
    """How far a fine-tune is.

    Attributes:
        done: optimizer steps.
        epoch, within: the epoch, and the steps that were done in it.
        base: of the seeds of the steps.
        drawn: the random states of the data at the beginning of the epoch.
        losses: pairs (steps done, loss).
    """

    done: int = 0
    epoch: int = 0
    within: int = 0
    base: int = 0
    drawn: dict[str, Any] = field(default_factory=dict[str, Any])
    losses: list[list[float]] = field(default_factory=list[list[float]])

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Begun:
        """What a file says; `ValueError`, `KeyError` or `TypeError` where that is nothing."""
        done, epoch, within, base = (int(told[name]) for name in ("done", "epoch", "within", "base"))
        if min(done, epoch, within) < 0:
            raise ValueError("steps below 0")
        losses = [[int(step), float(loss)] for step, loss in told["losses"]]
        return cls(done, epoch, within, base, dict(told["drawn"]), losses)


@dataclass(frozen=True)
class Checkpoint:
    """The file of a fine-tune; rank 0 writes and reads it.

    Attributes:
        path: where it is.
        asked: what the fine-tune is asked for, and given: only the same one goes on.
    """

    path: Path
    asked: Mapping[str, Any]

    def save(self, training: Training, optimizer: torch.optim.Optimizer, begun: Begun) -> None:
        """Write it whole, in the place of the one before. Called on every rank.

        Raises:
            ArtifactError: it can't be written; the one before is as it was.
        """
        state = {f"model.{name}": held for name, held in training.state().items()}
        for name, held in _momenta(training, optimizer).items():
            state[f"momentum.{name}"] = training.whole(held)
        if not training.ranks.first:
            return
        record = json.dumps({"schema": SCHEMA, "asked": dict(self.asked), "begun": vars(begun)})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(self.path) as scratch:
                write_weights(scratch, state, {"record": record})
        except (OSError, SafetensorError) as error:
            raise ArtifactError(
                "The checkpoint of the fine-tune can't be written; the one before is as it was.",
                expected="a file that can be written",
                got=f"{type(error).__name__}: {error}",
                where=str(self.path),
                hint="make room, or name another place: SGD(checkpoint=…)",
            ) from error

    def restore(self, training: Training, optimizer: torch.optim.Optimizer, loader: Iterable[Any]) -> Begun | None:
        """Go on from the file, if there is one: the values of the model, the momentum, and the random states of the
        loader. Called on every rank.

        Raises:
            ArtifactError: it is damaged, or that of another fine-tune.
        """
        ranks = training.ranks
        if not ranks.from_first(self.path.exists):
            return None
        with TemporaryDirectory(prefix="actprune-") as scratch:
            path = self.path if ranks.first else Path(scratch) / self.path.name
            ranks.send_file(path)
            return self._read(path, training, optimizer, loader)

    def remove(self, ranks: Ranks) -> None:
        """The fine-tune is through."""
        if ranks.first:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path, training: Training, optimizer: torch.optim.Optimizer, loader: Iterable[Any]) -> Begun:
        hint = f"remove {self.path} to begin anew"
        weights = read_weights(path, hint)
        try:
            record = json.loads(weights.metadata["record"])
            if record["schema"] != SCHEMA:
                raise ValueError(f"schema {record['schema']}")
            begun = Begun.of(record["begun"])
            self._check_same(dict(record["asked"]), hint)
            put_states(loader, begun.drawn)
        except (ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
            raise unreadable(self.path, "a checkpoint of SGD", f"{type(error).__name__}: {error}", hint) from error
        state = weights.state()
        try:
            training.put({name: state[f"model.{name}"] for name in training.state()})
            for name, parameter in _trained(training, optimizer).items():
                if (momentum := state.get(f"momentum.{name}")) is not None:
                    optimizer.state[parameter][MOMENTUM] = training.part(parameter, momentum).detach().clone()
        except (KeyError, RuntimeError) as error:
            raise unreadable(
                self.path, "the tensors of this model", f"{type(error).__name__}: {error}", hint
            ) from error
        return begun

    def _check_same(self, known: Mapping[str, Any], hint: str) -> None:
        for key, value in self.asked.items():
            if known.get(key) != value:
                raise ArtifactError(
                    "The checkpoint is that of another fine-tune.",
                    expected=f"{key}={known.get(key)}, as when it began",
                    got=f"{key}={value}",
                    where=str(self.path),
                    hint=f"give the model and the settings of then, or {hint}",
                )


def _trained(training: Training, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The parameters of the optimizer by their names."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in training.model.named_parameters() if id(p) in held}


def _momenta(training: Training, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {name: optimizer.state[p].get(MOMENTUM) for name, p in _trained(training, optimizer).items()}
    return {name: momentum for name, momentum in found.items() if momentum is not None}
