"""Where and how networks are timed, and every op's time so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.errors import BudgetError
from actprune.graph.ambience import users_modes
from actprune.graph.keep import copied, kept_buffers, preserved
from actprune.graph.program import Program
from actprune.latency.hooks import unwatched
from actprune.latency.timing import call_ms, side_by_side

QUICK_SECONDS = 0.2
"""Spent on a network whose time is only told."""


@dataclass(frozen=True)
class Latency:
    """What milliseconds are meant.

    Attributes:
        device: where the network will run, such as "cuda:0"; None: where it is.
        batch: samples of one forward pass; None: those of a calibration batch.
        channels_last: whether images and kernels lie channels last in memory.
        seconds: spent on one entry of the table of ops. Networks are compared for a hundred times as long.

    Raises:
        BudgetError: an unknown device, or numbers that are no samples or seconds.
    """

    device: str | torch.device | None = None
    batch: int | None = None
    channels_last: bool = False
    seconds: float = 0.02

    def __post_init__(self) -> None:
        if self.batch is not None and (not isinstance(self.batch, int) or self.batch < 1):
            raise _wrong("batch", "a number of samples, 1 or more, or None", self.batch)
        if not isinstance(self.seconds, int | float) or not self.seconds > 0:
            raise _wrong("seconds", "a number > 0", self.seconds)
        try:
            if self.device is not None:
                torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
            raise _wrong("device", "a device that this machine and this torch have", str(self.device)) from error

    @property
    def moves(self) -> bool:
        """Whether a network has to be copied to be timed so."""
        return self.device is not None or self.channels_last

    def laid_out(self, value: Any) -> Any:
        """A tensor, or a module, on the device and in the layout."""
        if self.device is not None:
            value = value.to(self.device)
        no_image = isinstance(value, Tensor) and (value.dim() != 4 or not value.is_floating_point())
        if no_image or not self.channels_last:
            return value
        return value.to(memory_format=torch.channels_last)


@dataclass(eq=False)
class Bench:
    """Times networks and ops as one `Latency` says.

    Attributes:
        program: the captured model, for the form of its inputs.
        inputs: of one forward pass: positional ones, and those by name.
        ops: what was measured of ops; None for one that does not run so.
    """

    program: Program
    setting: Latency = field(default_factory=Latency)
    ops: dict[Any, float | None] = field(default_factory=dict[Any, "float | None"])

    def __post_init__(self) -> None:
        flat = self.program.example if self.setting.batch is None else self.program.resized(self.setting.batch)
        placed = [self.setting.laid_out(v.clone()) if isinstance(v, Tensor) else v for v in flat]
        self.device = next(v.device for v in placed if isinstance(v, Tensor))
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(placed, self.program.in_spec)

    @property
    def batch(self) -> int:
        return self.setting.batch or self.program.batch_size

    def models(self, models: Sequence[nn.Module], *, quick: bool = False) -> list[float]:
        """Milliseconds of one forward pass of each, in eval mode without gradients, timed in turns; without the user's
        hooks that only watch (see `unwatched`).

        Args:
            quick: for figures that nothing is decided by.
        """
        args, kwargs = self.inputs
        placed = [self.setting.laid_out(copied(m)) if self.setting.moves else m for m in models]
        with ExitStack() as stack:
            for model in placed:
                stack.enter_context(preserved(model))
                stack.enter_context(kept_buffers(model))  # a counter of calls, a cache
                model.eval()
            stack.enter_context(torch.no_grad())
            stack.enter_context(users_modes())
            seconds = QUICK_SECONDS if quick else 100 * self.setting.seconds
            calls = [partial(m, *args, **kwargs) for m in placed]
            for model, call in zip(placed, calls, strict=True):
                stack.enter_context(unwatched(model, call))
            return side_by_side(calls, seconds, self.device, least=1 if quick else 3)

    def op(self, key: Any, make: Callable[[], Callable[[], Any]]) -> float | None:
        """Milliseconds of one op, measured when it is asked for the first time; None where it does not run.

        Args:
            key: tells it from every other op and shape.
            make: allocates its arguments and returns the call.
        """
        if key not in self.ops:
            try:
                with torch.no_grad():
                    self.ops[key] = call_ms(make(), self.setting.seconds, self.device)
            except Exception:  # whatever an op raises on sizes that it can't take
                self.ops[key] = None
        return self.ops[key]

    def about(self) -> Mapping[str, Any]:
        """What milliseconds these are, for the report."""
        return {
            "device": str(self.device),
            "batch_size": self.batch,
            "threads": torch.get_num_threads(),
            "channels_last": self.setting.channels_last,
        }


def _wrong(name: str, expected: str, got: Any) -> BudgetError:
    return BudgetError(
        "Latency can't be measured so.",
        expected=expected,
        got=repr(got),
        where=f"Latency({name}=…)",
        hint='for example Latency(device="cpu", batch=1)',
    )
