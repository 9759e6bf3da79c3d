"""The two stages that train: recovery without labels, and fine-tune. Each trains a copy of what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from actprune.artifacts.journal import TRAINED, Trained
from actprune.axes.capture import Graph
from actprune.data.samples import Calibration
from actprune.errors import DataError
from actprune.graph.ambience import users_modes
from actprune.graph.keep import copied, preserved
from actprune.graph.unmoved import unmoved
from actprune.keeping import Keeping
from actprune.plan import Plan
from actprune.recovery.distill import Distill, Recovered
from actprune.recovery.sgd import SGD, recording
from actprune.recovery.steps import Losses, trained_network
from actprune.settings import Settings


@dataclass(frozen=True, eq=False)
class Training:
    """What both stages need.

    Attributes:
        teacher: the network that is aimed at.
        name: stage → its name in the journal.
    """

    settings: Settings
    teacher: nn.Module
    keeping: Keeping
    name: Callable[[str], str]

    def recovered(
        self, small: nn.Module, graph: Graph, plan: Plan | None, data: Calibration
    ) -> tuple[nn.Module, Recovered]:
        """A copy that was trained towards the teacher on the calibration inputs.

        Args:
            plan: by which `small` was cut from the teacher; None where it was cut from another network.
        """
        trained, asked = copied(small), self.settings

        def recover() -> Recovered:
            return cast("Distill", asked.recover).run(
                trained, self.teacher, graph.program, data, graph=graph, plan=plan,
                distance=asked.distance, seed=asked.seed, progress=lambda i, n: asked.tell("recover", i, n),
            )  # fmt: skip

        def step() -> Trained:
            done = asdict(recover())
            return trained.state_dict(keep_vars=True), done

        with preserved(trained):
            if asked.journal is None:
                return trained, recover()
            state, done = self.keeping.of_first(self.name("recovered"), TRAINED, step)
            trained.load_state_dict({**trained.state_dict(), **state})
            return trained, Recovered(**done)

    def finetuned(self, small: nn.Module, losses: Losses) -> tuple[nn.Module, Losses]:
        """A copy that all ranks have trained, in the modes of the original, and its losses: `losses` has them, too,
        unless they are those of an earlier run."""
        tuned, asked = copied(small), self.settings

        def finetune() -> nn.Module:
            returned: Any = None
            with preserved(tuned), unmoved(tuned, trained=True), users_modes(), torch.enable_grad():
                if isinstance(asked.finetune, SGD):
                    train = self._checkpointed(asked.finetune)
                    train.run(tuned, self.teacher, lambda i, n, _: asked.tell("fine-tune", i, n), losses)
                elif asked.finetune is not None:
                    with recording(losses):
                        returned = asked.finetune(tuned)
            return trained_network(returned, tuned)

        def step() -> Trained:
            returned = asked.ranks.together(finetune)
            if returned is not tuned:
                raise _AnotherNetworkError(returned) if asked.ranks.world == 1 else _one_network_each(returned)
            return tuned.state_dict(keep_vars=True), losses

        if asked.journal is None:
            return finetune(), losses
        try:
            state, found = self.keeping.of_all(self.name("fine-tuned"), TRAINED, step)
        except _AnotherNetworkError as error:  # whose weights say nothing of how to make it again
            return error.network, losses
        tuned.load_state_dict({**tuned.state_dict(), **state})
        return tuned, found

    def _checkpointed(self, train: SGD) -> SGD:
        """With a checkpoint beside the results of the stages, where it has no other place."""
        if self.settings.journal is None or train.checkpoint is not None:
            return train
        return replace(train, checkpoint=self.keeping.path(self.name("fine-tuning"), TRAINED))


class _AnotherNetworkError(Exception):
    """A fine-tune returned a network of its own; never seen by the caller of `prune`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def _one_network_each(returned: nn.Module) -> DataError:
    return DataError(
        "finetune returned a network of its own, which can't be sent to the other processes.",
        expected="the model that it was given, trained",
        got=f"another {type(returned).__name__}",
        where="prune(finetune=…) in a run of several processes",
        hint="train the model in place, or run on one process",
    )
