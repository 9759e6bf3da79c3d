"""Calibration batches on which a forward pass does something else than on the one that it was captured with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from actprune.errors import EquivalenceError
from actprune.graph.keep import forked_random, in_eval
from actprune.graph.program import Batch, Program
from actprune.graph.run import called, run
from actprune.proof.difference import relative_error

MOST = 16
"""So many batches are looked at."""

TOLERANCE = 1e-3
"""Relative error of outputs; those of another branch are farther apart."""


def elsewhere(model: nn.Module, program: Program, batches: Sequence[Batch]) -> tuple[int, ...]:
    """The numbers of the batches, of the first ones, on which the model computes something else than its graph.

    Only the graph of a recorded run can be that of one branch. Where it is not the model's on the first batch either,
    the two differ by what they draw at random, and nothing can be told.
    """
    if program.source != "real":
        return ()
    others = tuple(n for n, batch in enumerate(batches[:MOST]) if _differs(model, program, batch))
    return () if 0 in others else others


def check_elsewhere(small: nn.Module, program: Program, batches: Sequence[Batch], others: Sequence[int]) -> None:
    """That a cut network runs on the batches that `elsewhere` gives, too: what they reach the proof has not seen.

    Raises:
        EquivalenceError: it doesn't run on one of them.
    """
    for number in others:
        try:
            _in_eval(small, program, batches[number])
        except Exception as error:  # whatever a layer says of an input that is too narrow
            raise EquivalenceError(
                f"The cut {program.model_name} does not run on calibration batch {number + 1}.",
                expected="a network for all calibration batches",
                got=f"{type(error).__name__}: {str(error)[:300]}; the dense model does something else there than on "
                "the first batch, with which it was captured",
                where="forward",
                hint="begin the calibration data with a batch that reaches every layer, or name in protect= the "
                "layers in front of those that it does not reach",
            ) from error


def _differs(model: nn.Module, program: Program, batch: Batch) -> bool:
    try:
        expected = _in_eval(model, program, batch)
    except Exception:  # there is nothing that the graph could be compared with
        return False
    try:
        with forked_random():
            found = run(program, batch, native=True)
    except Exception:  # a size of the first batch that does not fit this one
        return True
    return relative_error(expected, _tensors(found)) > TOLERANCE


def _in_eval(model: nn.Module, program: Program, batch: Batch) -> list[Tensor]:
    """What the model itself makes of a flat batch in eval mode; both are left as they were."""
    copies = tuple(value.clone() if isinstance(value, Tensor) else value for value in batch)
    with in_eval(model):
        return _tensors(called(model, program, copies))


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]
