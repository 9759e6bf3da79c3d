"""How many blocks may stay: what a user asks for, checked and in one form."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from actprune.allocation.budget import Amount, Budget, read_keep
from actprune.errors import BudgetError


@dataclass(frozen=True)
class Depth:
    """How much may stay.

    Attributes:
        blocks: number of blocks, at least 1; or None.
        share: fraction, in (0, 1], of the parameters of the network, where `blocks` is None.
        most: number of parameters; or None.
    """

    blocks: int | None = None
    share: float = 1.0
    most: float | None = None

    def met(self, blocks: int, params: int, dense_params: int) -> bool:
        """Whether a network with so many blocks and parameters is within it."""
        if self.blocks is not None:
            return blocks <= self.blocks
        return params <= (self.share * dense_params if self.most is None else self.most)


_SHARE = re.compile(r"\s*blocks\s*=\s*([.\d]+)\s*(%?)\s*")


def read_depth(keep: Any) -> Depth | float:
    """What `keep` asks for: blocks or parameters, or (a float) the share of the blocks.

    Raises:
        BudgetError: it is no such budget.
    """
    if isinstance(keep, int) and not isinstance(keep, bool):
        if keep < 1:
            raise _unreadable(keep)
        return Depth(blocks=keep)
    if isinstance(keep, str) and (match := _SHARE.fullmatch(keep)):
        return _share(keep, match[1], bool(match[2]))
    if not isinstance(keep, str | Budget | Amount):
        raise _unreadable(keep)  # a bare fraction could be one of blocks or of parameters
    budget = read_keep(keep)
    if budget.cost != "params":
        raise _unreadable(keep)
    return Depth(most=budget.most) if isinstance(budget, Amount) else Depth(share=budget.keep)


def of_blocks(asked: Depth | float, blocks: int, removable: int) -> Depth:
    """The budget for a network with so many blocks that can be left out, of which so many may go.

    Raises:
        BudgetError: more have to go than may.
    """
    depth = asked if isinstance(asked, Depth) else Depth(blocks=max(1, math.floor(asked * blocks + 1e-9)))
    if depth.blocks is not None and not blocks - removable <= depth.blocks <= blocks:
        raise BudgetError(
            "So many blocks can't stay.",
            expected=f"{blocks - removable} to {blocks}: of {blocks} blocks that can be left out, those that protect= "
            "names stay, and one item in every container",
            got=str(depth.blocks),
            where="keep",
            hint="only blocks that can be left out are counted, the others always stay",
        )
    return depth


def out_of_reach(asked: Any, left: int, dense: int) -> BudgetError:
    """Every block that may go is gone."""
    return BudgetError(
        "The budget can't be met by leaving out blocks.",
        expected=f"params={100 * left / dense:.4g}% or more: {left:,} are in what always stays",
        got=str(asked),
        where="keep",
        hint="keep more, and cut the widths of the shorter network with actprune.prune",
    )


def _share(keep: str, number: str, percent: bool) -> float:
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        raise _unreadable(keep) from None
    if not 0 < share <= 1:
        raise _unreadable(keep)
    return share


def _unreadable(keep: Any) -> BudgetError:
    return BudgetError(
        "The number of blocks can't be read.",
        expected='how many blocks stay (keep=8), their share ("blocks=75%"), or that of all parameters ("params=80%", '
        '"params=5M")',
        got=repr(keep),
        where="keep",
        hint="multiply-adds, bytes and milliseconds are budgets of actprune.prune",
    )
