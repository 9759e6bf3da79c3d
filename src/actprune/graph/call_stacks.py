"""Where each call of a graph stands: file and line of every frame, or nothing of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from traceback import FrameSummary, StackSummary
from typing import Any

from torch.fx import config, proxy


class _Frames:
    """What `torch.fx` asks for at every call that it notes, without the text of the lines: a tenth of a trace's time
    would go into looking it up, and messages only name file and line."""

    @staticmethod
    def extract() -> _Frames:
        return _Frames()

    def summary(self) -> StackSummary:
        """The frames from the outermost `forward` on; none where there isn't one."""
        frames, outermost = [], 0
        frame = sys._getframe(1)
        while frame is not None:
            frames.append(frame)
            if frame.f_code.co_name == "forward":
                outermost = len(frames)
            frame = frame.f_back
        return StackSummary(
            FrameSummary(at.f_code.co_filename, at.f_lineno, at.f_code.co_name, lookup_line=False, line="")
            for at in reversed(frames[:outermost])
        )


@contextlib.contextmanager
def short_call_stacks() -> Iterator[None]:
    """Calls that are traced note their frames without the text of lines."""
    module: Any = proxy
    whole = module.CapturedTraceback
    module.CapturedTraceback = _Frames
    try:
        yield
    finally:
        module.CapturedTraceback = whole


@contextlib.contextmanager
def no_call_stacks() -> Iterator[None]:
    """They take time, and those of a rebuilt model end in its framework: see `rebuilt.LINE`."""
    before = config.do_not_emit_stack_traces
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before
