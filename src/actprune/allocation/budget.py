"""Budgets: what a user asks for, checked and in one form."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from actprune.errors import BudgetError

COSTS = ("macs", "params", "bytes", "latency", "units")


@dataclass(frozen=True)
class Budget:
    """How much may stay.

    Attributes:
        cost: "macs" (multiply-adds), "params", "bytes", "latency" (measured), or "units" (of every group alike).
        keep: fraction of the dense network's cost, in (0, 1].

    Raises:
        BudgetError: an unknown cost, or a fraction outside (0, 1].
    """

    cost: str
    keep: float

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise BudgetError(
                "The budget names an unknown cost.",
                expected=f"one of {', '.join(COSTS)}",
                got=repr(self.cost),
                where="keep",
                hint='write for example keep="macs=50%"',
            )
        number = isinstance(self.keep, Real) and not isinstance(self.keep, bool)
        if not (number and 0 < self.keep <= 1):  # NaN is neither
            raise BudgetError(
                "The budget is out of range.",
                expected="more than 0 and at most 100 % of the dense network",
                got=f"{self.cost}={100 * self.keep:g}%" if number else f"{self.cost}={self.keep!r}",
                where="keep",
                hint='a bare number is a fraction: write 0.5 or "macs=50%" for one half',
            )

    @property
    def slug(self) -> str:
        """As the name of a folder: `macs-50`."""
        return f"{self.cost}-{100 * self.keep:.6g}"

    def __str__(self) -> str:
        return f"{self.cost}={100 * self.keep:g}%"


Keep = Budget | str | float | Mapping[str, int] | None
"""What `keep=` takes: a Budget, "macs=50%", "params=0.1", a fraction of MACs, or explicit widths by group name."""

_FORM = re.compile(r"\s*(?:([A-Za-z_]+)\s*=)?\s*([-+.\deE]+)\s*(%?)\s*")


def parse(keep: Budget | str | float) -> Budget:
    """The budget that `keep` writes down.

    Raises:
        BudgetError: no budget can be read from it.
    """
    if isinstance(keep, Budget):
        return keep
    if isinstance(keep, Real) and not isinstance(keep, bool):
        return Budget("macs", float(keep))
    match = _FORM.fullmatch(keep) if isinstance(keep, str) else None
    try:
        number = float(match[2]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or math.isnan(number):
        raise BudgetError(
            "The budget can't be read.",
            expected='COST=NUMBER%, for example "macs=50%", "params=10%", "bytes=0.25" or "units=70%"',
            got=repr(keep),
            where="keep",
            hint=f"the costs are {', '.join(COSTS)}",
        )
    return Budget((match[1] or "macs").lower(), number / 100 if match[3] else number)
