"""`model.onnx` and `model.pt2`: executed for other batch sizes too, or not written."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import actprune as ap
from actprune.artifacts.export import FORMATS, export
from actprune.errors import ArtifactError
from nets import build

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks import exports  # noqa: E402

MISSING = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
ONNX = pytest.param(".onnx", marks=pytest.mark.skipif(bool(MISSING), reason="onnx is not installed"))


@pytest.mark.parametrize("ending", [".pt2", ONNX])
@pytest.mark.parametrize("name", ["residual", "two_inputs"])
def test_any_batch_size(name: str, ending: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    model.train()
    path = export(model, inputs, tmp_path / f"model{ending}")
    assert model.training and [entry.name for entry in tmp_path.iterdir()] == [path.name]
    model.eval()
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    more = tuple(torch.cat([x, x, x]) for x in args)
    found, expected = FORMATS[ending][1](path, more, {}), model(*more)
    for one, other in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ending", [".pt2", ONNX])
def test_no_warning_of_torch_about_itself_is_shown(ending: str, tmp_path: Path) -> None:
    model, inputs = build("residual")
    small = ap.prune(model, [inputs], keep="units=50%", method="l2", form="graph").model
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for one in (model, small):
            export(one, inputs, tmp_path / f"model{ending}")
    assert not [one for one in shown if one.category is FutureWarning]


@pytest.mark.parametrize("ending", [".pt2", ONNX])
def test_a_pruned_network_of_the_benchmark(ending: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = exports.NETWORKS["LeNet-5"]()
    with torch.no_grad():
        small = exports.pruned(model.eval(), inputs, round_to=1).eval()
        path = export(small, inputs, tmp_path / f"model{ending}")
        assert exports.worst(path, small, inputs) <= exports.TOLERANCE


def test_the_published_errors_are_small() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "exports.json").read_text("utf-8"))["rows"]
    assert rows and {row["network"] for row in rows} <= exports.NETWORKS.keys()
    for row in rows:
        assert max(row["errors"].values()) <= exports.TOLERANCE and row["params"][1] < row["params"][0]


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 6).sum(1)


class Counted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 2, 3).sum(1)


class Scores(NamedTuple):
    logits: Tensor


class Named(nn.Module):
    def forward(self, x: Tensor) -> Scores:
        return Scores(2 * x)


def test_outputs_of_a_class_that_no_file_knows(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="next: put the model into a module whose forward returns"):
        export(Named(), torch.randn(4, 6), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


class Graphs(nn.Module):
    """Nodes (N, 4) and edges (2, E)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        return torch.zeros(x.shape[0], 3).index_add(0, target, self.fc(x)[source])


@pytest.mark.parametrize("ending", [".pt2", ONNX])
def test_edges_are_no_samples(ending: str, tmp_path: Path) -> None:
    model, edges = Graphs(), torch.tensor([[0, 1, 5], [3, 0, 4]])
    path = export(model, (torch.randn(6, 4), edges), tmp_path / f"model{ending}")
    more = torch.randn(9, 4), edges + 3
    torch.testing.assert_close(FORMATS[ending][1](path, more, {})[0], model(*more).detach(), rtol=1e-4, atol=1e-5)


class Determined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.eye(6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w + torch.linalg.slogdet(self.w)[1]


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"in": nn.Linear(6, 2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["in"](x)


@pytest.mark.parametrize(
    ("make", "ending", "got", "hint"),
    [
        pytest.param(Determined, ".onnx", "No ONNX function found for .*slogdet", "pt2 instead", marks=ONNX.marks),
        (Keyword, ".pt2", "SyntaxError", "rename it"),
    ],
)
def test_what_an_exporter_can_not_write(
    make: type[nn.Module], ending: str, got: str, hint: str, tmp_path: Path
) -> None:
    """The message has the cause, without the exporter's advice around it, and what to do."""
    with pytest.raises(ArtifactError) as caught:
        export(make(), torch.randn(4, 6), tmp_path / f"model{ending}")
    assert re.search(got, str(caught.value.got)) and hint in str(caught.value.hint)
    assert "This is step" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_nothing_is_written_that_is_not_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = build("chain")
    with pytest.raises(ArtifactError, match="is not written"):
        export(model, inputs, tmp_path / "model.pth")
    with pytest.raises(ArtifactError, match="any batch size"):
        export(Fixed(), torch.randn(4, 6), tmp_path / "model.pt2")
    with pytest.raises(ArtifactError, match=r"write x.shape\[0\] for len\(x\)"):
        export(Counted(), torch.randn(4, 6), tmp_path / "model.pt2")
    write, run = FORMATS[".pt2"]
    monkeypatch.setitem(FORMATS, ".pt2", (write, lambda *a: [1.01 * out for out in run(*a)]))
    with pytest.raises(ArtifactError, match="relative error"):
        export(model, inputs, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
