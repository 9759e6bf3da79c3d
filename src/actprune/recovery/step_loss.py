"""What one step of a label-free recovery brings down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actprune.distance import Objective, Outputs, batch_error
from actprune.graph.program import Batch, Program
from actprune.graph.run import called
from actprune.recovery.features import Features
from actprune.stats.padding import Padding


@dataclass(eq=False)
class StepLoss:
    """What a step brings down: the error of the outputs, and of values inside where there are some.

    Attributes:
        padding: what does not count.
        share: what the latter count.
        unit: outputs of the dense network → what the loss would be if a network gave their mean for every sample: 1 on
            the scale of relative errors. It is taken from the first batch.
    """

    program: Program
    dense: nn.Module
    small: nn.Module
    loss: Objective
    padding: Padding | None
    inside: Features | None
    share: float
    unit: Callable[[Outputs], float]
    weight: float | None = None

    def __call__(self, batch: Batch) -> Tensor:
        if self.inside is None:
            with torch.no_grad():
                target = marked(self.padding, called(self.dense, self.program, batch), batch)
            with torch.enable_grad():
                return self.loss(target, marked(self.padding, called(self.small, self.program, batch), batch))
        with torch.no_grad():
            target, wanted = self._of_both(*self.inside.wanted(batch), batch)
        if self.weight is None:
            self.weight = self.share * self.unit(target)
        with torch.enable_grad():
            outputs, values = self._of_both(*self.inside.found(batch), batch)
            return self.loss(target, outputs) + self.weight * batch_error(wanted, values)

    def _of_both(self, outputs: Sequence[Any], values: Sequence[Tensor], batch: Batch) -> tuple[Outputs, Outputs]:
        """Outputs and values without padding."""
        if self.padding is None or self.inside is None:
            return tuple(outputs), tuple(values)
        return (
            self.padding.marked(tuple(outputs), batch),
            self.padding.marked_values(self.inside.names, values, batch),
        )


def marked(padding: Padding | None, outputs: Outputs, batch: Batch) -> Outputs:
    """The outputs without padding."""
    return outputs if padding is None else padding.marked(outputs, batch)
