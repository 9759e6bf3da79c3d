"""Budgets: what a user asks for, checked and in one form."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import cast

from actprune.errors import BudgetError

COSTS = ("macs", "params", "bytes", "latency", "units")

_BLOCKS = (
    'whole blocks are left out by actprune.shorten(model, data, keep="blocks=75%"); narrower ones are asked for by an '
    'amount of the whole network, such as "params=500K"'
)

_ONE = (
    "a network has one budget: ask for the scarcest, and see in the report what the others come to; "
    "sweep(model, data, [...]) makes a network for each of several"
)


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
                hint=_BLOCKS if self.cost == "blocks" else 'write for example keep="macs=50%"',
            )
        number = isinstance(self.keep, Real) and not isinstance(self.keep, bool)
        if not (number and 0 < self.keep <= 1):  # NaN is neither
            raise BudgetError(
                "The budget is out of range.",
                expected="more than 0 and at most 100 % of the dense network",
                got=f"{self.cost}={100 * self.keep:g}%" if number else f"{self.cost}={self.keep!r}",
                where="keep",
                hint='a bare number is a fraction: write 0.5 or "macs=50%" for one half, "params=500K" for an amount',
            )

    @property
    def slug(self) -> str:
        """As the name of a folder: `macs-50`."""
        return f"{self.cost}-{100 * self.keep:.6g}"

    def __str__(self) -> str:
        return f"{self.cost}={100 * self.keep:g}%"


@dataclass(frozen=True)
class Amount:
    """How much may stay, counted: a `Budget` once the dense network is known.

    Attributes:
        cost: "macs", "params", "bytes" or "latency".
        most: multiply-adds of a sample, parameters, bytes, or milliseconds of a forward pass.

    Raises:
        BudgetError: another cost, or nothing would stay.
    """

    cost: str
    most: float

    def __post_init__(self) -> None:
        if self.cost not in UNITS:
            raise BudgetError(
                "There are no amounts of this cost.",
                expected=f"one of {', '.join(UNITS)}",
                got=repr(self.cost),
                where="keep",
                hint='"units=70%" is a share of every group',
            )
        number = isinstance(self.most, Real) and not isinstance(self.most, bool)
        if not (number and 0 < self.most < math.inf):
            raise BudgetError(
                "The budget is out of range.",
                expected="more than 0",
                got=f"{self.cost}={self.most!r}",
                where="keep",
                hint='write for example keep="params=500K"',
            )

    def of(self, dense: float) -> Budget:
        """The same as a share of what the dense network takes; all of it where that is less."""
        return Budget(self.cost, self.most / dense if dense > self.most else 1.0)

    @property
    def text(self) -> str:
        """The number with the largest unit that leaves 1 or more."""
        units = TOLD[self.cost]
        unit = next((unit for unit in reversed(units) if self.most >= UNITS[self.cost][unit.lower()]), units[0])
        return f"{self.most / UNITS[self.cost][unit.lower()]:.12g}{unit}"

    @property
    def slug(self) -> str:
        """As the name of a folder: `params-500K`."""
        return f"{self.cost}-{self.text}"

    def __str__(self) -> str:
        return f"{self.cost}={self.text}"


Keep = Budget | Amount | str | float | Mapping[str, int] | None
"""What `keep=` takes: a Budget or an Amount, "macs=50%", "params=0.1", "bytes=256KB", a fraction of MACs, or explicit
widths by group name."""

_FORM = re.compile(r"\s*(?:([A-Za-z_]+)\s*=)?\s*([-+.\deE]+)\s*(%?)\s*")
_AMOUNT = re.compile(r"\s*([A-Za-z_]+)\s*=\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-zµμ]+)\s*")
_COUNT = re.compile(r"\s*(macs|params|bytes)\s*=\s*([1-9]\d{2,})()\s*", re.IGNORECASE)
"""A whole number of three digits or more, which can be no share of the network; "macs=50" may be one without its %."""

_COUNTS = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_SIZES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_TIMES = {"us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
UNITS = {"macs": _COUNTS, "params": _COUNTS, "bytes": _SIZES, "latency": _TIMES}
"""Cost → unit of an amount, in small letters → what it stands for."""

TOLD = {
    "macs": ("K", "M", "G", "T"), "params": ("K", "M", "G", "T"), "bytes": ("B", "KB", "MB", "GB"),
    "latency": ("us", "ms", "s"),
}  # fmt: skip
"""Cost → the units that are written, ascending."""


def read_keep(keep: Budget | Amount | str | float) -> Budget | Amount:
    """What `keep` writes down: a share of the dense network, or an amount.

    Raises:
        BudgetError: neither can be read from it.
    """
    if isinstance(keep, Amount):
        return keep
    match = _amount(keep) if isinstance(keep, str) else None
    if match is None:
        return parse(cast("Budget | str | float", keep))
    cost, unit = match[1].lower(), match[3].lower()
    if not unit:
        return Amount(cost, float(match[2]))
    if unit not in UNITS.get(cost, ()):
        raise BudgetError(
            "The budget can't be read.",
            expected=f"an amount in {', '.join(TOLD[cost])}" if cost in UNITS else f"one of {', '.join(UNITS)}",
            got=repr(keep),
            where="keep",
            hint='for example "params=500K", "macs=1.5G", "bytes=256KB" or "latency=5ms"; a share has a %',
        )
    return Amount(cost, float(match[2]) * UNITS[cost][unit])


def _hint(keep: object) -> str:
    if isinstance(keep, list | tuple | set) or (isinstance(keep, str) and len(re.findall(r"\w+\s*=", keep)) > 1):
        return _ONE
    if isinstance(keep, str) and keep.endswith(".json"):
        return f"the units of a saved plan: keep=Plan.from_json(Path({keep!r}).read_text())"
    return f'the costs are {", ".join(COSTS)}; an amount has a unit: "params=500K"'


def _amount(keep: str) -> re.Match[str] | None:
    """Cost, number and unit (or none) of what writes down an amount."""
    return _AMOUNT.fullmatch(keep) or _COUNT.fullmatch(keep)


def parse(keep: Budget | str | float) -> Budget:
    """The share of the dense network that `keep` writes down.

    Raises:
        BudgetError: no share can be read from it.
    """
    if isinstance(keep, Budget):
        return keep
    if isinstance(keep, str) and _amount(keep):
        raise BudgetError(
            "An amount can't be asked for here.",
            expected='a share of the dense network, such as "params=10%"',
            got=repr(keep),
            where="keep",
            hint="prune and allocate take amounts as well",
        )
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
            hint=_hint(keep),
        )
    cost = (match[1] or "macs").lower()
    if number > 1 and not match[3] and cost in COSTS:
        raise BudgetError(
            "The budget is out of range.",
            expected="more than 0 and at most 1, or a number with a %",
            got=repr(keep),
            where="keep",
            hint=f'write "{cost}={number:g}%" for a share, "params=500K" for an amount',
        )
    return Budget(cost, number / 100 if match[3] else number)
