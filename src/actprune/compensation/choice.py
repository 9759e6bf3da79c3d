"""Which blocks are fitted, and on how many batches: what they may cost, and the fewest samples that say something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from actprune.compensation.blocks import Block
from actprune.compensation.effort import (
    ENOUGH,
    FEWEST,
    FEWEST_OF_ROWS,
    FEWEST_OF_SEVERAL,
    FIRST,
    GRAPHS,
    PASSES,
    PLENTY,
    ROUNDS,
    SEVERAL,
    WORK,
    Enough,
)


def chosen(blocks: Sequence[Block], most: int, room: int) -> tuple[list[Block], dict[Block, int], int]:
    """Those that are fitted, and what `_affordable` says of them.

    One that lies within another is fitted with that, unless there are too few samples for it, or too much work.
    """
    while True:
        outer = [one for one in blocks if not any(map(one.lies_within, blocks))]
        whole = {one for one in outer if any(other.lies_within(one) for other in blocks)}
        fewest = {one: _fewest(one, one in whole) for one in outer}
        batches, rounds = _affordable(fewest, most, room)
        dear = [one for one in outer if not batches[one]]
        if whole.isdisjoint(dear):
            return outer, batches, rounds
        blocks = [one for one in blocks if one not in dear]


def _fewest(block: Block, whole: bool) -> float:
    """Residuals for each weight that is fitted, at least.

    Args:
        whole: whether blocks lie within it, which may be fitted instead.
    """
    if block.reads_tables:
        return FEWEST_OF_ROWS
    return FEWEST_OF_SEVERAL if whole or block.recurrent else FEWEST


def _affordable(fewest: Mapping[Block, float], most: int, room: int) -> tuple[dict[Block, int], int]:
    """How many of `most` batches each block is fitted on, 0 where those would be too few; and the rounds.

    One round on all the samples that are of use comes first, then further rounds.

    Args:
        fewest: block → residuals for each weight that is fitted, at least.
    """

    def wanted(block: Block, enough: Enough) -> int:
        samples = min(enough.samples, block.unknowns / enough.weights) if enough.weights else enough.samples
        batches = max(enough.residuals * block.unknowns / max(block.residuals, 1), samples / block.samples)
        return min(most - 1, ceil(batches), room // (GRAPHS * block.values + 1))

    found: dict[Block, int] = {}
    rounds = 0
    for enough in (PLENTY, ENOUGH):
        counts = {block: wanted(block, enough) for block in fewest}
        work = max(sum(block.macs * count for block, count in counts.items()) * PASSES, 1)
        rounds, share = min(ROUNDS, max(1, int(WORK / work))), min(1.0, FIRST / work)
        found = {block: round(share * count) for block, count in counts.items()}
        if rounds >= SEVERAL:
            break
    least = {block: fewest[block] * block.unknowns / max(block.residuals, 1) for block in fewest}
    return {block: count if count >= least[block] else 0 for block, count in found.items()}, rounds
