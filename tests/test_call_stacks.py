"""Where the calls of a graph stand: short call stacks name the frames that torch's own name."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils._traceback import CapturedTraceback

from actprune.graph import export
from actprune.graph.call_stacks import no_call_stacks
from actprune.graph.keep import seed_all
from actprune.graph.names import Names
from nets import build


def frames() -> list[list[tuple[str, ...]]]:
    """Per call of the residual network: file, line and function of its frames."""
    model, example = build("residual")
    graph = export.exported(model, (example,), {}, Names(model)).graph
    traces = [node.meta.get("stack_trace", "") for node in graph.nodes if node.op == "call_function"]
    return [re.findall(r'File "(.*)", line (\d+), in (\w+)', trace) for trace in traces]


def test_the_frames_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = frames()
    assert all(any(file.endswith("nets.py") for file, *_ in each) for each in found)
    monkeypatch.setattr("actprune.graph.call_stacks._Frames", CapturedTraceback)
    assert frames() == found


def test_they_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "short_call_stacks", no_call_stacks)
    assert not any(frames())


@pytest.mark.skipif(torch.accelerator.current_accelerator() is not None, reason="for builds without an accelerator")
def test_seeds_leave_nothing_for_an_accelerator_that_never_starts() -> None:
    waiting = len(torch.cuda._queued_calls)
    seed_all(3)
    first = torch.rand(2)
    torch.default_generator.manual_seed(3)
    assert torch.equal(first, torch.rand(2))
    assert len(torch.cuda._queued_calls) == waiting
