"""Normal equations of a layer, its samples dealt to folds: λ is chosen on those that a fit has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from actprune.compensation.ridge import MAX_CHOSEN, Normal, absorbed
from actprune.compensation.rows import InputRows, contracted
from actprune.stats.moments import Centred, Moments
from actprune.stats.padding import counted

FOLDS = 3


def folds_of(columns: int) -> int:
    """λ is not chosen where there are too many columns."""
    return FOLDS if columns <= MAX_CHOSEN else 1


class Rows(Protocol):
    """Input rows of one layer."""

    @property
    def there(self) -> Sequence[Tensor | None]:
        """(n, positions) of every batch, which of these count; None: all."""
        ...

    def __call__(self) -> Iterable[Centred]:
        """(rows, columns) of every batch: those that count."""
        ...


class Dealer:
    """Deals the rows of one layer after the other.

    Attributes:
        last: what the layer before was given, and the moments of these inputs.
    """

    def __init__(self) -> None:
        self.last: tuple[Any, Moments] | None = None

    def __call__(self, rows: Rows, targets: Sequence[Tensor], columns: int) -> list[Normal]:
        """Normal equations of the samples, dealt to the folds whole: the positions of one sample are alike.

        By batch where there are many, by position where there are few samples. All to one where there are too many
        columns for λ to be chosen.
        """
        count = folds_of(columns)
        parts: list[Normal | None] = [None] * count
        few = len(targets) < 2 * FOLDS
        alone = few and sum(map(len, targets)) < 2 * FOLDS
        known = self._known(rows) if count == 1 and not alone else None
        seen = 0
        for i, (x, t, there) in enumerate(zip(rows(), targets, rows.there, strict=True)):
            if count == 1 and not alone:  # without folds there is nothing to be dealt
                parts[0] = absorbed(parts[0], x, counted(t, there), known)
                continue
            if not few:
                parts[i % count] = absorbed(parts[i % count], x, counted(t, there))
                continue
            if there is not None:
                # as below, by the number of a row's sample, or of its position
                numbers = torch.arange(there.shape[alone], device=there.device)
                whose = (numbers if alone else numbers[:, None]).expand(there.shape)[there] + seen
                known_rows, wanted = x.rows + x.mean.to(x.rows.dtype), t[there]
                for f in range(count):
                    own = whose % count == f
                    parts[f] = absorbed(parts[f], known_rows[own], wanted[own])
                seen += there.shape[alone]
                continue
            x = (x.rows + x.mean.to(x.rows.dtype)).view(*t.shape[:2], x.rows.shape[1])
            x, t = (x.transpose(0, 1), t.transpose(0, 1)) if alone else (x, t)
            for f in range(count):
                own = slice((f - seen) % count, None, count)
                parts[f] = absorbed(parts[f], x[own].flatten(0, 1), t[own].flatten(0, 1))
            seen += len(x)
        found = [part for part in parts if part is not None and part.inner.count]
        if count == 1 and not alone and found and (key := self._key(rows)) is not None:
            self.last = key, found[0].inner
        return found

    def _known(self, rows: Rows) -> Moments | None:
        """The moments of these inputs, where the consumer before had the same: queries, keys and values, say."""
        known, self.last = self.last, None
        return known[1] if known is not None and known[0] == self._key(rows) else None

    @staticmethod
    def _key(rows: Rows) -> Any:
        if not isinstance(rows, InputRows) or rows.site.kind != "linear":
            return None
        return contracted(rows.node), rows.stride, tuple(rows.units.tolist())
