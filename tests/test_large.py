"""Models whose weights lie in files: the same results as in memory, and clear errors where something fails."""

from __future__ import annotations

import errno
import json
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actprune as ap
from actprune import mapped, shards
from actprune.artifacts.journal import Journal
from actprune.compensation.walk import Walk
from actprune.errors import ArtifactError, DataError
from actprune.mapped import alongside, any_mapped, is_mapped, let_go, on_disk
from actprune.plan import make_plan
from actprune.rewrite import zero_columns
from actprune.shards import open_weights, write_shards, write_tensors


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "SMALL", 1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16, bias=False)
        self.norm = nn.RMSNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


def stack() -> nn.Module:
    return nn.Sequential(nn.Embedding(50, 16), *(Block() for _ in range(3)), nn.Linear(16, 50))


def tokens() -> list[Tensor]:
    return list(torch.randint(0, 50, (32, 7), generator=torch.Generator().manual_seed(1)).split(8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "dense"
    path.mkdir()
    assert len(write_shards(path, stack().state_dict(), 4000)) > 2
    return path


def opened(folder: Path) -> nn.Module:
    with torch.device("meta"):
        model = stack()
    model.load_state_dict(open_weights(folder), assign=True)
    return model.eval()


def in_memory(folder: Path) -> nn.Module:
    model = stack()
    model.load_state_dict(open_weights(folder))
    return model.eval()


# ---- the files


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_tensors_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    given = {
        "a": torch.randn(3, 5).to(dtype), "odd": torch.ones(3, dtype=torch.bool), "one": torch.tensor(1).to(dtype),
        "none": torch.empty(0, 4, dtype=dtype),
    }  # fmt: skip
    write_tensors(tmp_path / "x.safetensors", given, {"format": "pt"})
    found = open_weights(tmp_path / "x.safetensors")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) and found[name].dtype == given[name].dtype for name in given)
    from safetensors.torch import load_file

    assert all(torch.equal(value, given[name]) for name, value in load_file(tmp_path / "x.safetensors").items())


def test_tensors_are_written_over_the_file_that_they_lie_in(tmp_path: Path) -> None:
    """Which would end the process, if the file shrank under them."""
    path, x = tmp_path / "one.safetensors", torch.arange(100_000.0)
    write_tensors(path, {"x": x}, {})
    write_tensors(path, open_weights(path), {})
    torch.testing.assert_close(open_weights(path)["x"], x, rtol=0, atol=0)


def test_files_of_the_library_with_a_tensor_at_an_odd_place(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(header).encode()
    data = torch.tensor([1.5, -2.0])
    raw = len(text).to_bytes(8, "little") + text + b"\1\2\3" + data.numpy().tobytes()
    (tmp_path / "x.safetensors").write_bytes(raw)
    assert torch.equal(open_weights(tmp_path / "x.safetensors")["b"], data)


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, {"a": torch.ones(3)})
    assert path.name == "model.safetensors" and open_weights(tmp_path)["a"].tolist() == [1, 1, 1]


def missing(folder: Path) -> None:
    next(folder.glob("model-00002*")).unlink()


def truncated(folder: Path) -> None:
    path = next(folder.glob("model-00002*"))
    path.write_bytes(path.read_bytes()[:-5])


def no_header(folder: Path) -> None:
    next(folder.glob("model-00002*")).write_bytes(b"\xff" * 40)


def leads_away(folder: Path) -> None:
    (folder / shards.INDEX).write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))


def contradicts(folder: Path) -> None:
    data = json.loads((folder / shards.INDEX).read_text())
    del data["weight_map"]["4.bias"]
    (folder / shards.INDEX).write_text(json.dumps(data))


def overlapping(folder: Path) -> None:
    path = next(folder.glob("model-00002*"))
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    header[name]["shape"] = [2**40]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (missing, "1 of"), (truncated, "truncated"), (no_header, "no header"), (leads_away, "same folder"),
        (contradicts, "only one of the two"), (overlapping, "one behind the other"),
    ],
)  # fmt: skip
def test_damaged_folders(folder: Path, damage: Any, said: str) -> None:
    damage(folder)
    with pytest.raises(ArtifactError, match=said):
        open_weights(folder)


# ---- memory


def test_what_is_made_of_files_goes_to_files(folder: Path) -> None:
    own = open_weights(folder)["1.up.weight"]
    assert is_mapped(own) and not is_mapped(torch.ones(3)) and not is_mapped(own.double())
    made = alongside(own.detach() * 2, own)
    assert is_mapped(made) and not is_mapped(alongside(torch.ones(3), torch.ones(3)))
    made.add_(1)
    let_go([made, own])
    assert torch.equal(made, own * 2 + 1)
    with torch.no_grad():
        own.add_(1)  # private to this process, so it must not be let go of
    before = own.clone()
    let_go([own])
    assert torch.equal(own, before)


def test_a_tensor_inside_vmap_lies_in_no_file() -> None:
    """While another one does."""
    own = on_disk(torch.ones(3, 4))
    seen: list[bool] = []
    made = torch.vmap(lambda row: (seen.append(is_mapped(row)), 2 * row)[1])(torch.ones(3, 4))
    assert seen == [False] and is_mapped(own) and torch.equal(made, 2 * own)


def test_networks_that_are_called_as_they_are_give_every_layer_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8)))
    for module in (model[0], model[1][1]):
        module.weight = nn.Parameter(on_disk(module.weight.detach()))
    given: list[int] = []
    monkeypatch.setattr(mapped, "let_go", lambda values: given.extend(map(id, values)))
    with mapped.letting_go():
        model(torch.randn(2, 8))
    model(torch.randn(2, 8))
    assert given == [id(p) for p in model.parameters()]


def test_files_are_forgotten_with_their_tensors() -> None:
    count = len(mapped._MAPPINGS)
    held = on_disk(torch.ones(10))
    assert len(mapped._MAPPINGS) == count + 1
    del held
    assert len(mapped._MAPPINGS) == count


def test_a_run_folder_is_written_tensor_by_tensor(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library makes a copy of every tensor before it writes the first one."""
    monkeypatch.setattr("actprune.artifacts.weights.save_file", None)
    place = tmp_path / "run"
    result = ap.prune(opened(folder), tokens(), keep="units=60%", method="l2", save_to=place)
    loaded = ap.load(place, in_memory(folder)).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in result.model.state_dict().items())


@pytest.mark.parametrize("method", ["least_squares", "reconstruct"])
def test_what_a_refit_replaces_is_not_held(folder: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would take its memory until the end: with many layers, more than all else."""
    graph = ap.capture(opened(folder), tokens()[0])
    plan = make_plan(graph, {group.name: range(group.width // 2) for group in graph.groups})
    first: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def zeros(*args: Any) -> dict[str, Tensor]:
        found = zero_columns(*args)
        first.extend(map(weakref.ref, found.values()))
        return found

    def run(self: Walk) -> None:
        Walk.advance(self, self.last + 1)
        left.append(sum(ref() is not None for ref in first))

    monkeypatch.setattr("actprune.compensation.refit.zero_columns", zeros)
    monkeypatch.setattr(Walk, "run", run)
    rewrite = ap.compensate(graph, plan, tokens(), method=method)
    assert len(first) == 3 and left == [0]
    assert {f"{i}.down.weight" for i in (1, 2, 3)} <= rewrite.tensors.keys()


def test_the_same_plan_and_weights_as_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"keep": "units=60%", "allocation": "uniform", "method": "greedy"}
    plain = ap.prune(in_memory(folder), tokens(), **settings)
    monkeypatch.setattr("actprune.stats.patches.MAX_COLUMNS", 8)  # which is no limit where one layer is held at a time
    model = opened(folder)
    result = ap.prune(model, tokens(), **settings)
    assert result.plan.groups == plain.plan.groups
    assert result.proof.passed
    for name, value in plain.model.state_dict().items():
        own = result.model.state_dict()[name]
        assert is_mapped(own)
        torch.testing.assert_close(own, value, rtol=1e-6, atol=1e-6)
    assert result.report.dense.latency_ms is None
    dense = in_memory(folder).state_dict()
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        result.model[0].weight.add_(1)  # nothing of it is the dense model's own
    assert torch.equal(model[0].weight, dense["0.weight"])


def test_batches_go_through_in_parts_where_there_is_no_room_for_all(folder: Path) -> None:
    graph = ap.capture(opened(folder), tokens()[0])
    whole, parts = (ap.collect(graph, tokens(), memory_limit=limit) for limit in (None, needed(graph)))
    for name, folds in whole.sites.items():
        for a, b in zip(folds, parts.sites[name], strict=True):
            torch.testing.assert_close(a.scatter, b.scatter)
    assert whole.samples == parts.samples == 32


def needed(graph: ap.Graph) -> int:
    from actprune.compensation.room import needed_bytes

    return needed_bytes(graph)


def test_a_limit_below_what_one_layer_needs_is_refused_before_the_work(folder: Path) -> None:
    model, told = opened(folder), []
    with pytest.raises(DataError, match="memory limit") as caught:
        ap.prune(model, tokens(), keep="units=60%", memory_limit=1000, progress=lambda *a: told.append(a[0]))
    assert "at least" in str(caught.value) and "statistics" not in told


def test_sensitivity_only_where_it_is_asked_for(folder: Path) -> None:
    assert ap.prune(opened(folder), tokens(), keep="params=80%").plan.note["allocation"] == "uniform"


@pytest.mark.parametrize("stage", ["statistics", "guide", "plan", "rewrite"])
def test_an_interrupted_run_goes_on(stage: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Journal.keep
    made: list[str] = []

    def stopping(self: Journal, name: str, kind: Any, make: Any) -> Any:
        found = keep(self, name, kind, lambda: (made.append(name.partition("-")[0]), make())[1])
        if name.startswith(stage) and len(made) == len(set(made)) and not (tmp_path / "seen").exists():
            (tmp_path / "seen").touch()
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Journal, "keep", stopping)
    with pytest.raises(KeyboardInterrupt):
        ap.prune(opened(folder), tokens(), keep="units=60%", save_to=tmp_path / "run")
    result = ap.prune(opened(folder), tokens(), keep="units=60%", save_to=tmp_path / "run", resume=True)
    assert len(made) == len(set(made)), "no stage is made twice"
    assert any_mapped(result.model.parameters())
    plain = ap.prune(opened(folder), tokens(), keep="units=60%", save_to=tmp_path / "plain")
    assert result.plan.digest == plain.plan.digest
    runs = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("run", "plain")]
    assert runs[0] == runs[1]


# ---- the disk


class Full:
    """A disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, file: Any, tensor: Tensor) -> None:
        self.room -= tensor.nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        _write(file, tensor)


_write = mapped.write_bytes


def test_a_full_disk_while_a_model_is_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(folder)
    monkeypatch.setattr(mapped, "write_bytes", Full(20_000))
    with pytest.raises(ArtifactError, match="No space left on device") as caught:
        ap.prune(model, tokens(), keep="units=60%")
    assert "TMPDIR" in str(caught.value.hint)


def test_half_precision_is_summed_in_float32() -> None:
    from actprune.graph import narrow

    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).bfloat16().eval()
    x = torch.randn(4, 8).bfloat16()
    graph = ap.capture(model, x)
    from actprune.graph.run import run

    node = next(n for n in graph.program.nodes if n.target in narrow.PRODUCTS)
    found = narrow.in_float32(node, (x, model[0].weight, model[0].bias), {}, torch.bfloat16)
    torch.testing.assert_close(found, model[0](x), rtol=2e-2, atol=2e-2)
    (quick,), (native,) = run(graph.program, (x,)), run(graph.program, (x,), native=True)
    assert torch.equal(native, model(x)) and quick.dtype == torch.bfloat16


# ---- transformers


def llama(hub: ModuleType, **more: Any) -> Any:
    torch.manual_seed(0)
    return hub.LlamaForCausalLM(
        hub.LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=16, **more,
        )
    ).eval()  # fmt: skip


def ids() -> list[dict[str, Tensor]]:
    return [{"input_ids": x % 40} for x in tokens()]


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_folder_in_and_out(hub: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = llama(hub, tie_word_embeddings=True)
    dense.save_pretrained(tmp_path / "dense", max_shard_size="4KB")
    assert (tmp_path / "dense" / shards.INDEX).exists()
    model = ap.open_pretrained(tmp_path / "dense")
    assert any_mapped(model.parameters()) and type(model) is type(dense)
    with torch.no_grad():
        torch.testing.assert_close(model(**ids()[0]).logits, dense(**ids()[0]).logits)
    settings = {"keep": "units=50%", "equal_widths": True, "allocation": "uniform", "method": "greedy"}
    plain, result = (ap.prune(net, ids(), **settings) for net in (dense, model))
    assert result.plan.groups == plain.plan.groups
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("actprune.artifacts.pretrained.SHARD_BYTES", 4000)
    out = result.save_pretrained(tmp_path / "small")
    assert len(list(out.glob("model-*.safetensors"))) > 1
    loaded = type(dense).from_pretrained(out).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**ids()[0]).logits, result.model(**ids()[0]).logits)
    monkeypatch.setattr(shards, "write_bytes", Full(10_000))
    with pytest.raises(ArtifactError, match="No space left"):
        result.save_pretrained(tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "small"]


@pytest.mark.filterwarnings("ignore")
def test_folders_that_can_not_be_opened(hub: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="with config"):
        ap.open_pretrained(tmp_path)
    dense = llama(hub)
    dense.save_pretrained(tmp_path / "dense")
    with torch.no_grad():
        torch.testing.assert_close(ap.open_pretrained(tmp_path / "dense")(**ids()[0]).logits, dense(**ids()[0]).logits)
    state = open_weights(tmp_path / "dense")
    state.pop("model.layers.1.mlp.up_proj.weight")
    write_shards(tmp_path / "dense", {name: value.clone() for name, value in state.items()})
    with pytest.raises(ArtifactError, match=r"no model.layers.1.mlp.up_proj.weight"):
        ap.open_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model.safetensors can't be read"):
        ap.open_pretrained(tmp_path / "dense")
