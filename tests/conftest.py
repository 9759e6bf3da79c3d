"""What every test shares: one thread, and torchvision's networks where its package can be imported."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import settings

from actprune.compensation import gauss_newton
from actprune.latency import bench

os.environ["KERAS_BACKEND"] = "torch"  # before anybody imports Keras

# no deadline: a capture takes longer while other work shares the machine; the same examples on every run
settings.register_profile("actprune", deadline=None, derandomize=True)
settings.load_profile("actprune")

gc.set_threshold(50_000, 20, 20)  # a tracer makes many objects that stay; looking for cycles took a tenth of the time
torch.set_num_threads(1)  # the networks are tiny, and a second thread only makes timings and sums vary


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """torch draws the same numbers in every test, whatever ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def timed_for_a_moment() -> None:
    """The latencies of a report take as long as all the rest of a cut of a tiny network, and no test is about them."""
    bench.QUICK_SECONDS = 1e-3


@pytest.fixture(autouse=True)
def blocks_are_fitted_in_one_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to ten steps of Gauss and Newton are a quarter of a cut of a tiny network; tests of how near it comes take all
    of them (`accurate`)."""
    if request.node.get_closest_marker("accurate") is None:
        monkeypatch.setattr(gauss_newton, "WORTH", 0.0)


@pytest.fixture(scope="session")
def vision() -> ModuleType:
    """`torchvision.models`; the test is skipped where torchvision isn't installed.

    Its compiled operators may not load beside another build of torch. The networks need none of them, but two are
    given shapes while the package is imported, so these are then declared here.
    """
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor d, Tensor s, float t) -> Tensor")
        return importlib.import_module("torchvision.models")


@pytest.fixture(scope="session")
def hub(request: pytest.FixtureRequest) -> ModuleType:
    """`transformers`; the test is skipped where it isn't installed."""
    if importlib.util.find_spec("torchvision") is not None:
        request.getfixturevalue("vision")  # it is imported beside
    return pytest.importorskip("transformers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take longest come first, in the first process; the others take over what they keep it from."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
