"""Every file of `examples/` runs, and leaves a smaller network that is proved."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"

NEEDS = {
    "torch_loop": ("torch",), "hf_trainer": ("transformers", "accelerate"), "lightning_module": ("pytorch_lightning",),
    "timm_model": ("timm", "torchvision"), "keras_model": ("keras",),
    "serve_onnx": ("onnx", "onnxscript", "onnxruntime"),
}  # fmt: skip


def test_every_example_is_listed() -> None:
    listed = (FOLDER / "README.md").read_text("utf-8")
    assert {path.stem for path in FOLDER.glob("*.py")} - {"data"} == NEEDS.keys()
    assert all(f"`{name}.py`" in listed for name in NEEDS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NEEDS)
def test_it_runs(name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if name in ("hf_trainer", "timm_model", "lightning_module") and importlib.util.find_spec("torchvision") is not None:
        request.getfixturevalue("vision")  # they import it
    monkeypatch.syspath_prepend(str(FOLDER))
    try:
        result = importlib.import_module(name).main()
    finally:
        for own in (*NEEDS, "data"):
            sys.modules.pop(own, None)
    assert result.proof.passed and result.report.final.params < result.report.dense.params
