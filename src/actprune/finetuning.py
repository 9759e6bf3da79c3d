"""A run that is over, fine-tuned further: what `actprune finetune` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from actprune.distributed import Ranks
from actprune.graph.keep import copied, preserved
from actprune.graph.unmoved import unmoved
from actprune.joining import joined
from actprune.recovery.sgd import recording
from actprune.recovery.steps import Losses, trained_network
from actprune.report.record import Report
from actprune.settings import Evaluate, measured


@dataclass(frozen=True, eq=False)
class Tuned:
    """What a further fine-tune came to.

    Attributes:
        model: the network that it is to be from now on: the trained one, or, where the metric fell, the one before.
        report: of the run, with what was done.
        before, after: the metric of the network before and after the training; None where there is no `evaluate`.
        kept: whether `model` is the trained one.
    """

    model: nn.Module = field(repr=False)
    report: Report = field(repr=False)
    before: float | None
    after: float | None
    kept: bool

    def to_data(self) -> dict[str, Any]:
        """JSON values: the outcome, without the report."""
        return {"before": self.before, "after": self.after, "kept": self.kept}


def finetuned(
    small: nn.Module, report: Report, finetune: Callable[[nn.Module], Any], evaluate: Evaluate | None
) -> Tuned:
    """Train a copy of the network of a run; it is kept unless the metric says that it is worse.

    Of several processes all train, and rank 0 measures.

    Args:
        small: the network of the run; left as it was.
        report: of the run.
        finetune: trains the model that it is given, and may return another one of the same shapes.
        evaluate: model → metric, higher is better.
    """
    with joined(next((p.device for p in small.parameters()), torch.device("cpu"))) as ranks:
        return _finetuned(small, report, finetune, evaluate, ranks)


def _finetuned(
    small: nn.Module, report: Report, finetune: Callable[[nn.Module], Any], evaluate: Evaluate | None, ranks: Ranks
) -> Tuned:
    before = ranks.from_first(lambda: measured(evaluate, small))
    losses: Losses = [[step, float("nan") if loss is None else loss] for step, loss in report.losses]
    trained = copied(small)
    with preserved(trained), unmoved(trained, trained=True), torch.enable_grad(), recording(losses):
        trained = ranks.together(lambda: trained_network(finetune(trained), trained))
    after = ranks.from_first(lambda: measured(evaluate, trained))
    if before is not None and after is not None and after < before:
        return Tuned(small, report, before, after, kept=False)
    told = "not measured" if after is None else f"metric {before:.4g} → {after:.4g}"
    again = replace(
        report,
        finetuned=replace(report.final, accuracy=after),
        losses=tuple((int(step), None if loss != loss else loss) for step, loss in losses),
        notes=(*report.notes, f"Fine-tuned after the run: {told}."),
    )
    return Tuned(trained, again, before, after, kept=True)
