"""What a call of `prune` was asked for, and what of it can be checked before the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from actprune.allocation.budget import Amount, Budget, Keep, read_keep
from actprune.allocation.correct import check_drop, checked
from actprune.allocation.space import check_multiple
from actprune.artifacts.files import content_digest
from actprune.artifacts.journal import Journal
from actprune.compensation.refit import check_batchnorm
from actprune.distance import Distance
from actprune.distributed import ALONE, Ranks
from actprune.errors import BudgetError
from actprune.graph.ambience import users_modes
from actprune.graph.keep import preserved
from actprune.graph.unmoved import unmoved
from actprune.latency.bench import Latency
from actprune.memory import MemoryLimit, limit_bytes
from actprune.methods import Method
from actprune.plan import Plan
from actprune.recovery.allowed import Allowed, at_least, check_settings, either, function, one_of, or_none
from actprune.recovery.distill import Distill
from actprune.recovery.sgd import SGD
from actprune.stats.gradients import Loss

Evaluate = Callable[[nn.Module], float]
"""model → metric, higher is better, on validation data."""

Progress = Callable[[str, int, int], None]
"""(stage, done, total): called as stages go on."""


def _function(arguments: int, kind: str) -> Allowed:
    allowed = or_none(function(arguments, kind))
    return allowed.told("can't be called", "pass such a function, not its name or what it returns")


_SWITCH = Allowed(lambda value: isinstance(value, bool | np.bool_), "True or False").told(
    "is no switch", "leave it out for the default"
)

_ALLOWED: dict[str, Allowed] = {
    "evaluate": _function(1, "model → metric"),
    "finetune": _function(1, "of the model, or an SGD"),
    "progress": _function(3, "of (stage, done, total)"),
    "loss": _function(2, "(outputs, labels) → scalar"),
    "protect": Allowed(
        lambda value: all(isinstance(pattern, str) for pattern in value), "patterns of module paths"
    ).told("holds what is no pattern", 'for example protect=["layer1.*"]'),
    "recover": or_none(Allowed(lambda value: isinstance(value, Distill), "an actprune.Distill")).told(
        "is no recovery", "for example recover=actprune.Distill(steps=400)"
    ),
    "latency": or_none(Allowed(lambda value: isinstance(value, Latency), "an actprune.Latency")).told(
        "is no setting of how to measure", 'for example latency=actprune.Latency(batch=1), with keep="latency=50%"'
    ),
    "seed": Allowed(  # what NumPy takes
        lambda value: isinstance(value, Integral) and 0 <= int(value) < 1 << 32, "a whole number from 0 to 2³² − 1"
    ).told("is no number that random draws could start from", "leave it out for 0"),
    "confidence": either(at_least(0, Integral), one_of("auto")).told(
        "is no number of resamples", "5 resamples take five times as long as the guide"
    ),
    "equal_widths": _SWITCH,
    "norms": either(_SWITCH, one_of("auto")),
}


@dataclass(frozen=True, eq=False)
class Settings:
    """The arguments of `prune` that its stages share; `name` is that of the method.

    Where several processes do the run (`ranks`), each has a journal: that of rank 0 is the run's, the others' are of
    what rank 0 has sent them.
    """

    method: Method
    name: str
    keep: Keep | Plan
    max_drop: float | None
    evaluate: Evaluate | None
    recover: Distill | None
    finetune: SGD | Callable[[nn.Module], Any] | None
    batchnorm: bool | str
    protect: tuple[str, ...]
    round_to: int | str
    equal_widths: bool
    memory_limit: MemoryLimit
    confidence: int | str
    latency: Latency | None
    distance: str | Distance
    threshold: float | None
    loss: Loss | None
    norms: bool | str
    form: str
    seed: int
    progress: Progress | None
    journal: Journal | None = None
    ranks: Ranks = ALONE

    def budget(self) -> Budget | Amount | None:
        """The budget as it was given, once all that can be checked before the work is checked."""
        check_settings(self, _ALLOWED, "prune")
        if self.round_to != "auto":
            check_multiple(self.round_to)
        check_batchnorm(self.batchnorm)
        limit_bytes(self.memory_limit)
        if self.max_drop is not None:
            check_drop(self.max_drop)
            self._check_drop_decides()
        return None if self.keep is None or isinstance(self.keep, Mapping | Plan) else read_keep(self.keep)

    def told(self) -> dict[str, Any]:
        """What is asked for, as JSON values: runs of which all of it is the same come to the same."""
        keep = self.keep.digest if isinstance(self.keep, Plan) else self.keep
        return {
            "method": self.name, "compensate": self.method.compensate, "allocation": self.method.allocation,
            "keep": dict(keep) if isinstance(keep, Mapping) else None if keep is None else str(keep),
            "max_drop": self.max_drop, "evaluate": self.evaluate is not None,
            "recover": _told(vars(self.recover)) if self.recover else None, "finetune": _told(self.finetune),
            "batchnorm": self.batchnorm, "protect": list(self.protect), "round_to": _told(self.round_to),
            "equal_widths": bool(self.equal_widths), "memory_limit": limit_bytes(self.memory_limit),
            "latency": str(self.latency) if self.latency else None, "threshold": self.threshold,
            "distance": _told(self.distance), "loss": _told(self.loss), "form": self.form,
            "norms": _told(self.norms), "seed": _told(self.seed), "torch": torch.__version__,
        }  # fmt: skip

    def _check_drop_decides(self) -> None:
        if self.evaluate is None:
            raise BudgetError(
                "max_drop needs a metric.",
                expected="evaluate=, a function model → metric on validation data",
                got="None",
                where="prune(max_drop=…)",
                hint="pass evaluate=, or a budget with keep=",
            )
        if isinstance(self.keep, Mapping | Plan):
            raise BudgetError(
                "max_drop has nothing to decide where all widths are given.",
                expected="max_drop, or keep={group: units}",
                got="both",
                where="prune(keep=…, max_drop=…)",
                hint="leave one of them out",
            )

    def metric(self, model: nn.Module) -> float | None:
        """What `evaluate` says of a network in eval mode; None where there is no `evaluate`."""
        return measured(self.evaluate, model)

    def tell(self, stage: str, done: int, total: int) -> None:
        """Pass on how far a stage is."""
        if self.progress is not None:
            self.progress(stage, done, total)


def _told(value: Any) -> Any:
    """As a JSON value; of a function its name, which is the same in the next process, as its address is not."""
    if isinstance(value, Mapping):
        return {key: _told(one) for key, one in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, SGD):
        return _told(value.told())
    if isinstance(value, Tensor | np.generic):
        return value.tolist()
    if isinstance(value, partial):
        return [_told(part) for part in (value.func, *value.args, value.keywords)]
    if isinstance(value, nn.Module):
        return [repr(value), content_digest(value.state_dict().items())]
    if isinstance(value, Integral):
        return value if isinstance(value, bool) else int(value)
    if isinstance(value, Real) and not isinstance(value, float):
        return float(value)
    if callable(value):
        kind = value if hasattr(value, "__qualname__") else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"
    return value


def measured(evaluate: Evaluate | None, model: nn.Module) -> float | None:
    """The metric of a network in eval mode, which is then as it was, and where; None where there is no `evaluate`."""
    if evaluate is None:
        return None
    with preserved(model), unmoved(model), users_modes():
        model.eval()
        return checked(evaluate(model))
