"""Medians of calls that are timed in turns: whatever else the machine does meanwhile hits all of them alike.

On a single thread of a CPU its processor time is taken: on a machine that does nothing else it is the same, and on a
busy one it does not count the turns of others. That of the process would advance in ticks of milliseconds while a
profiler has set a timer on it (`ITIMER_PROF`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as default_timer

ROUNDS = 25
"""Turns of a comparison: fewer where a single call takes long."""

CPU = torch.device("cpu")

Timed = Callable[[], Any]


def side_by_side(calls: Sequence[Timed], seconds: float, device: torch.device = CPU, least: int = 3) -> list[float]:
    """Milliseconds of each call after a warm-up (torch.utils.benchmark).

    The first is the reference. The others are its median times the median over the rounds of their ratio to it: a
    machine that is slower for a while slows both sides of a ratio.

    Args:
        seconds: spent on each call, about.
        device: where they run.
        least: rounds that are taken however long they last.
    """
    timers = [_timer(call, device) for call in calls]
    each = [_seconds(call) for call in calls]
    turns = max(least, min(ROUNDS, int(seconds / max(each))))
    blocks = [max(1, round(seconds / turns / once)) for once in each]
    found = [[timer.timeit(n).mean for timer, n in zip(timers, blocks, strict=True)] for _ in range(turns)]
    reference = median(row[0] for row in found)
    return [1e3 * reference * median(row[i] / row[0] for row in found) for i in range(len(calls))]


def call_ms(call: Timed, seconds: float, device: torch.device = CPU) -> float:
    """Median milliseconds of one short call, repeated for so many seconds."""
    return 1e3 * _timer(call, device).blocked_autorange(min_run_time=seconds).median


def _timer(call: Timed, device: torch.device) -> Timer:
    threads = torch.get_num_threads()
    clock = time.thread_time if threads == 1 and device.type == "cpu" else default_timer
    return Timer("call()", globals={"call": call}, num_threads=threads, timer=clock)


def _seconds(call: Timed) -> float:
    """Of one call that is warm; roughly, for an accelerator may go on behind it."""
    call()
    started = time.perf_counter()
    call()
    return max(time.perf_counter() - started, 1e-7)
