"""Run folders: whole or not at all, loaded exactly or refused, and never executed."""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from actprune.artifacts import checkpoint, files, folder, weights
from actprune.artifacts.checkpoint import check_output, load, save
from actprune.axes.capture import capture
from actprune.axes.expr import Leaf
from actprune.errors import ArtifactError
from actprune.forms import capture_form
from actprune.plan import GroupPlan, Plan, make_plan
from actprune.surgery.slicing import cut
from nets import NETS, Chain, Residual, Tied, TiedHeads, build

RUN = ("plan.json", "report.json", "weights.safetensors")


def pruned(name: str) -> tuple[nn.Module, nn.Module, Plan, Any]:
    """The dense network, the cut one with other values than any replay gives, the plan, and a batch."""
    dense, batch = build(name)
    graph = capture(dense, batch)
    plan = make_plan(graph, {group.name: range(0, group.width, 2) for group in graph.groups}, method="every other unit")
    small = cut(dense, plan)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return dense, small, plan, batch


def call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**{key: value for key, value in batch.items() if key != "label"})
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def leaves_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in values for tensor in leaves_of(part)]


def content(state: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (t.shape, t.dtype, t.detach().clone().flatten().tolist()) for name, t in state.items()}


def ties(model: nn.Module) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


def refused(run: Path, model: nn.Module, match: str = ".") -> ArtifactError:
    """The error of `load`: complete, and with the model as it was."""
    before = content(model.state_dict())
    with pytest.raises(ArtifactError, match=match) as caught:
        load(run, model)
    assert content(model.state_dict()) == before
    error = caught.value
    assert error.expected and error.got and error.where and error.hint
    return error


def temporaries(place: Path) -> list[Path]:
    return list(place.rglob(".actprune-*"))


@pytest.fixture(scope="module")
def chain() -> tuple[nn.Module, Plan]:
    _, small, plan, _ = pruned("chain")
    return small, plan


@pytest.fixture
def run(tmp_path: Path, chain: tuple[nn.Module, Plan]) -> Path:
    """A run folder of the network Chain."""
    return save(tmp_path / "run", *chain, {"drop": 0.1})


# ---- what is saved is what is loaded


@pytest.mark.parametrize("name", NETS)
def test_every_network_comes_back_exactly(tmp_path: Path, name: str) -> None:
    _, small, plan, batch = pruned(name)
    save(tmp_path / "run", small, plan, {})
    fresh = NETS[name].make().eval()
    before = content(fresh.state_dict())
    loaded = load(tmp_path / "run", fresh)
    assert type(loaded) is type(small)
    assert content(loaded.state_dict()) == content(small.state_dict())
    assert ties(loaded) == ties(small)
    assert repr(loaded) == repr(small)
    assert content(fresh.state_dict()) == before
    pairs = zip(leaves_of(call(loaded, batch)), leaves_of(call(small, batch)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Twice(Chain):
    """The tensors of `Chain`, another graph."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.fixture
def graph_run(tmp_path: Path) -> tuple[Path, nn.Module, Tensor]:
    """A run folder of a network as a captured graph, the network, and a batch."""
    dense, batch = build("chain")
    form = capture_form(dense, batch, "graph")
    plan = make_plan(form.graph, {group.name: [0, 2] for group in form.graph.groups}, **form.note)
    small = form.cut(dense, plan)
    return save(tmp_path / "run", small, plan, {}), small, batch


def test_a_graph_comes_back_exactly(graph_run: tuple[Path, nn.Module, Tensor]) -> None:
    run, small, batch = graph_run
    fresh = Chain().eval()
    loaded = load(run, fresh, batch)
    assert content(loaded.state_dict()) == content(small.state_dict())
    assert torch.equal(loaded(batch), small(batch))
    assert not loaded.training and load(run, fresh.train(), batch).training
    assert torch.equal(load(run, Chain().eval(), batch[:1])(batch), small(batch))


def test_a_graph_is_not_loaded_without_inputs(graph_run: tuple[Path, nn.Module, Tensor]) -> None:
    error = refused(graph_run[0], Chain(), "it takes inputs to capture it again")
    assert str(list(graph_run[2].shape)) in str(error.expected) and "load(folder, model, inputs)" in str(error.hint)


@pytest.mark.parametrize(("make", "size"), [(Twice, 6), (Chain, 5)])
def test_another_graph_is_refused(graph_run: tuple[Path, nn.Module, Tensor], make: type[nn.Module], size: int) -> None:
    run, _, batch = graph_run
    with pytest.raises(ArtifactError, match="can't be made again") as caught:
        load(run, make().eval(), batch[:, :size] if make is Chain else batch)
    assert caught.value.expected and caught.value.got and caught.value.hint


def test_the_three_files(run: Path, chain: tuple[nn.Module, Plan]) -> None:
    assert sorted(path.name for path in run.iterdir()) == sorted(RUN)
    assert temporaries(run.parent) == []
    plan = Plan.from_json((run / "plan.json").read_text())
    note = dict(plan.note)
    assert note.pop("weights_sha256") == hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()
    assert replace(plan, note=note) == chain[1]
    with safe_open(run / "weights.safetensors", "pt") as file:
        assert file.metadata() == {"schema": "actprune.weights/1", "plan": chain[1].digest, "tied": "{}"}
    assert json.loads((run / "report.json").read_text()) == {"drop": 0.1}


def test_tied_tensors_are_saved_once(tmp_path: Path) -> None:
    _, small, plan, _ = pruned("tied_heads")
    path = save(tmp_path / "run", small, plan, {}) / "weights.safetensors"
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["tied"]) == {"left.weight": ["right.weight"]}
        assert "right.weight" not in file.keys()  # noqa: SIM118


def test_everybody_may_read_what_the_umask_lets_them(run: Path) -> None:
    (run.parent / "file").touch()
    (run.parent / "folder").mkdir()
    modes = {name: (run / name).stat().st_mode for name in RUN}
    assert modes == dict.fromkeys(RUN, (run.parent / "file").stat().st_mode)
    assert run.stat().st_mode == (run.parent / "folder").stat().st_mode


def test_the_same_model_makes_the_same_files(run: Path, chain: tuple[nn.Module, Plan], tmp_path: Path) -> None:
    for n in range(4):  # the order in which safetensors writes metadata is random
        again = save(tmp_path / f"again{n}", *chain, {"drop": 0.1})
        assert [(again / name).read_bytes() for name in RUN] == [(run / name).read_bytes() for name in RUN]


def test_modes_and_flags_are_those_of_the_given_model(run: Path) -> None:
    dense = Chain()
    dense.fc2.eval()
    dense.fc1.weight.requires_grad_(False)
    dense(torch.ones(1, 6)).sum().backward()
    loaded: Any = load(run, dense)
    assert [m.training for m in loaded.modules()] == [m.training for m in dense.modules()] == [True, True, False, True]
    assert [p.requires_grad for p in loaded.parameters()] == [False] + [True] * 5
    assert [p.grad for p in loaded.parameters()] == [None] * 6
    assert dense.fc2.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["residual", "tied", "reused"])
def test_the_saved_precision_is_kept(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    _, small, plan, batch = pruned(name)
    small.to(dtype)
    loaded = load(save(tmp_path / "run", small, plan, {}), NETS[name].make().eval())
    assert content(loaded.state_dict()) == content(small.state_dict())
    assert ties(loaded) == ties(small)
    assert torch.equal(call(loaded, batch.to(dtype)), call(small, batch.to(dtype)))


def test_views_strides_and_numbers_that_are_not_finite(tmp_path: Path, chain: tuple[nn.Module, Plan]) -> None:
    small = copy.deepcopy(chain[0])
    bias, weight = small.get_parameter("fc1.bias"), small.get_parameter("fc1.weight")
    flat = torch.randn(100)
    weight.data = flat[3 : 3 + weight.numel()].view(weight.shape[1], weight.shape[0]).t()
    bias.data = flat[50 : 50 + bias.numel()]
    bias.data[:2] = torch.tensor([float("nan"), -0.0])
    loaded = load(save(tmp_path / "run", small, chain[1], {}), Chain())
    assert torch.equal(loaded.get_parameter("fc1.weight"), weight)
    assert loaded.get_parameter("fc1.bias").tolist()[1:] == bias.tolist()[1:]
    assert loaded.get_parameter("fc1.bias")[0].isnan()
    assert str(loaded.get_parameter("fc1.bias")[1].item()) == "-0.0"


def test_notes_and_reports_are_json_values(tmp_path: Path, chain: tuple[nn.Module, Plan]) -> None:
    """Numbers as keys become text, which sorts in another order: the digest has to be of what is read."""
    plan = chain[1].with_note(curve={2: 1.5, 10: float("inf")}, shape=(1, 2))
    path = save(tmp_path / "run", chain[0], plan, {"b": [float("nan"), 1.0], "a": {"c": (-float("inf"), True)}})
    load(path, Chain())
    text = (path / "report.json").read_text()
    assert json.loads(text) == {"b": [None, 1.0], "a": {"c": [None, True]}}
    assert text.index('"b"') < text.index('"a"')  # the report keeps its order


def test_a_plan_that_was_read_can_be_saved_again(run: Path, chain: tuple[nn.Module, Plan], tmp_path: Path) -> None:
    plan = Plan.from_json((run / "plan.json").read_text())
    again = save(tmp_path / "again", chain[0], plan, {"drop": 0.1})
    assert (again / "plan.json").read_bytes() == (run / "plan.json").read_bytes()


def test_extra_state_that_is_nothing_is_no_obstacle(tmp_path: Path, chain: tuple[nn.Module, Plan]) -> None:
    class Extra(Chain):
        def get_extra_state(self) -> Any:
            return None

        def set_extra_state(self, state: Any) -> None:
            assert state is None

    small: Any = copy.deepcopy(chain[0])
    small.__class__ = Extra
    loaded = load(save(tmp_path / "run", small, chain[1], {}), Extra())
    assert content({k: v for k, v in loaded.state_dict().items() if v is not None}) == content(chain[0].state_dict())


class Described(Chain):
    """Says in its state dict how it was made, as neural operators do."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {**super().state_dict(*args, **kwargs), "_metadata": {"activation": torch.relu}}

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({k: v for k, v in state_dict.items() if k != "_metadata"}, *args, **kwargs)


def test_what_a_class_says_of_itself_is_not_of_its_weights(tmp_path: Path, chain: tuple[nn.Module, Plan]) -> None:
    small: Any = copy.deepcopy(chain[0])
    small.__class__ = Described
    loaded = load(save(tmp_path / "run", small, chain[1], {}), Described())
    assert loaded.state_dict().pop("_metadata") == {"activation": torch.relu}
    assert content(dict(loaded.named_parameters())) == content(dict(small.named_parameters()))


# ---- where it may be written


def test_parents_are_made(tmp_path: Path, chain: tuple[nn.Module, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_output("a/b/run") == tmp_path / "a" / "b" / "run"
    assert list(tmp_path.iterdir()) == []
    assert save("a/b/run", *chain, {}) == tmp_path / "a" / "b" / "run"


def not_here(path: Path | str, chain: tuple[nn.Module, Plan], overwrite: bool) -> ArtifactError:
    """The error of `check_output`, which `save` gives too."""
    with pytest.raises(ArtifactError, match="can't be written here") as early:
        check_output(path, overwrite)
    with pytest.raises(ArtifactError) as late:
        save(path, *chain, {}, overwrite=overwrite)
    error = early.value
    assert (late.value.expected, late.value.where, late.value.hint) == (error.expected, error.where, error.hint)
    assert error.expected and error.got and error.where and error.hint
    return error


def test_an_existing_folder_needs_overwrite(run: Path, chain: tuple[nn.Module, Plan]) -> None:
    before = (run / "weights.safetensors").read_bytes()
    assert "overwrite=True" in str(not_here(run, chain, False))
    assert (run / "weights.safetensors").read_bytes() == before


def test_a_run_is_overwritten_with_all_its_files(run: Path, chain: tuple[nn.Module, Plan]) -> None:
    (run / "report.html").write_text("old")
    small = copy.deepcopy(chain[0]).double()
    assert save(run, small, chain[1], {}, overwrite=True) == run
    assert sorted(path.name for path in run.iterdir()) == sorted(RUN)
    assert content(load(run, Chain()).state_dict()) == content(small.state_dict())
    assert temporaries(run.parent) == []


def test_an_empty_folder_is_overwritten(tmp_path: Path, chain: tuple[nn.Module, Plan]) -> None:
    (tmp_path / "run").mkdir()
    not_here(tmp_path / "run", chain, False)
    load(save(tmp_path / "run", *chain, {}, overwrite=True), Chain())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


FOREIGN: dict[str, Callable[[Path], object]] = {
    "somebody's folder": lambda path: (path / "plan.json").unlink(),
    "another plan.json": lambda path: (path / "plan.json").write_text('{"schema": "floor plan"}'),
    "not JSON": lambda path: (path / "plan.json").write_text("{"),
    "not an object": lambda path: (path / "plan.json").write_text("[1]"),
    "a file beside it": lambda path: (path / "notes.txt").write_text("mine"),
    "a folder beside it": lambda path: (path / "model.keras").mkdir(),
    "a link in it": lambda path: (path / "report.html").symlink_to(path.parent / "elsewhere"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_nothing_else_is_ever_overwritten(run: Path, chain: tuple[nn.Module, Plan], kind: str) -> None:
    FOREIGN[kind](run)
    before = sorted(run.iterdir())
    assert "deletes nothing that it has not written" in str(not_here(run, chain, True))
    assert sorted(run.iterdir()) == before
    assert temporaries(run.parent) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_and_links_are_no_folders(run: Path, chain: tuple[nn.Module, Plan], overwrite: bool) -> None:
    (run.parent / "file").write_text("mine")
    (run.parent / "link").symlink_to(run)
    (run.parent / "dangling").symlink_to(run.parent / "nowhere")
    for name in ("file", "link", "dangling", "file/run", "nul\0"):
        not_here(run.parent / name, chain, overwrite)
    assert (run.parent / "file").read_text() == "mine"


def test_a_mount_point_is_not_replaced(
    run: Path, chain: tuple[nn.Module, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == run)
    assert "mount point" in str(not_here(run, chain, True).got)
    not_here("/", chain, True)


def test_a_place_that_is_read_only(
    tmp_path: Path, chain: tuple[nn.Module, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert "Read-only file system" in str(not_here(tmp_path / "a" / "run", chain, False).got)


def test_what_comes_between_is_not_overwritten(
    tmp_path: Path, chain: tuple[nn.Module, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(path: Path) -> None:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "mine").touch()

    monkeypatch.setattr(folder, "sync", sync)
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match="can't be written here"):
            save(tmp_path / "run", *chain, {}, overwrite=overwrite and not (tmp_path / "run").exists())
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "mine"]


# ---- whole or not at all


def failing(error: BaseException, after: int) -> Callable[..., Any]:
    """A function that does nothing `after` times, then raises."""
    calls = iter(range(after))

    def fail(*args: Any, **kwargs: Any) -> None:
        if next(calls, None) is None:
            raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
FAILURES: dict[str, tuple[object, str, BaseException, int]] = {
    "weights": (weights, "save_file", SafetensorError("I/O error: No space left on device"), 0),
    "plan": (checkpoint, "_write_text", FULL, 0),
    "report": (checkpoint, "_write_text", FULL, 1),
    "first flush": (os, "fsync", FULL, 0),
    "last file's flush": (os, "fsync", FULL, 2),
    "name": (folder, "_rename", PermissionError(errno.EACCES, "Permission denied"), 0),
    "interrupted": (os, "fsync", KeyboardInterrupt(), 1),
    "interrupted before the name": (folder, "_rename", KeyboardInterrupt(), 0),
    "out of memory": (checkpoint, "write_weights", MemoryError(), 0),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("stage", FAILURES)
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, chain: tuple[nn.Module, Plan], stage: str, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, old = tmp_path / "run", copy.deepcopy(chain[0]).double()
    if overwrite:
        save(run, old, chain[1], {})
    place, name, error, after = FAILURES[stage]
    with monkeypatch.context() as patch:
        if place is checkpoint and name == "_write_text" and after:
            write, fail = checkpoint._write_text, failing(error, after)
            patch.setattr(place, name, lambda *args: (fail(), write(*args)))
        else:
            patch.setattr(place, name, failing(error, after))
        expected = ArtifactError if isinstance(error, OSError | SafetensorError) else type(error)
        with pytest.raises(expected) as caught:
            save(run, *chain, {}, overwrite=overwrite)
    if expected is ArtifactError:
        assert str(error) in str(caught.value)
        assert "what was there before is as it was" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == (["run"] if overwrite else [])
    if overwrite:
        assert content(load(run, Chain()).state_dict()) == content(old.state_dict())


def test_the_old_run_comes_back_when_the_new_one_cannot_take_its_name(
    run: Path, chain: tuple[nn.Module, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = Path.rename, iter((True, False, True))

    def second_fails(self: Path, target: Path) -> Path:
        if not next(calls):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", second_fails)
        with pytest.raises(ArtifactError, match="Input/output error"):
            save(run, copy.deepcopy(chain[0]).double(), chain[1], {}, overwrite=True)
    assert [path.name for path in run.parent.iterdir()] == ["run"]
    assert content(load(run, Chain()).state_dict()) == content(chain[0].state_dict())


def test_an_old_run_that_cannot_be_deleted_is_named(
    run: Path, chain: tuple[nn.Module, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = folder._rename

    def somebody_adds_a_file(written: Path, target: Path) -> Path | None:
        (target / "notes.txt").write_text("mine")
        return rename(written, target)

    monkeypatch.setattr(folder, "_rename", somebody_adds_a_file)
    with pytest.warns(UserWarning, match="could not be deleted and is now"):
        save(run, *chain, {}, overwrite=True)
    (left,) = temporaries(run.parent)
    if left.is_dir():
        assert [path.read_text() for path in left.iterdir()] == ["mine"]
    load(run, Chain())


def child(code: str, run: Path) -> subprocess.CompletedProcess[str]:
    """Save Chain in another process, after `code`."""
    program = f"""
import os, sys
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
import torch
from test_artifacts import pruned
from actprune.artifacts.checkpoint import save
_, small, plan, _ = pruned("chain")
{code}
save({str(run)!r}, small, plan, {{}})
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to be killed by")
def test_killed_in_the_middle(tmp_path: Path) -> None:
    done = child("os.fsync = lambda handle: os.kill(os.getpid(), 9)", tmp_path / "run")
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files")
def test_no_room_for_the_weights(tmp_path: Path) -> None:
    """A file that the system refuses to let grow, which is as near to a full disk as a test gets."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))"
    done = child(limit, tmp_path / "run")
    assert done.returncode == 1
    assert "ArtifactError: The run folder can't be written" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- what can't be saved


def test_a_model_that_is_not_the_plans(tmp_path: Path, chain: tuple[nn.Module, Plan]) -> None:
    with pytest.raises(ArtifactError, match="not the one that the plan makes") as caught:
        save(tmp_path / "run", Chain(), chain[1], {})
    assert (caught.value.expected, caught.value.got) == ("fc1.weight of shape (4, 6)", "shape (8, 6)")
    with pytest.raises(ArtifactError, match="without a wrapper"):
        save(tmp_path / "run", nn.Sequential(chain[0]), chain[1], {})
    assert list(tmp_path.iterdir()) == []


class Extra(Chain):
    def get_extra_state(self) -> Any:
        return {"scale": 2}

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda model: setattr(model, "__class__", Extra), "dict"),
        (lambda model: model.register_buffer("mask", torch.eye(2).to_sparse()), "torch.sparse_coo"),
        (lambda model: model.register_buffer("mask", torch.ones(2, device="meta")), "on meta"),
    ],
)
def test_state_that_safetensors_cannot_hold(
    tmp_path: Path, chain: tuple[nn.Module, Plan], change: Callable[[nn.Module], object], got: str
) -> None:
    small = copy.deepcopy(chain[0])
    change(small)
    with pytest.raises(ArtifactError, match="something that a weights file can't") as caught:
        save(tmp_path / "run", small, chain[1], {})
    assert got in str(caught.value.got)
    assert caught.value.where in ("_extra_state", "mask")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("report", [{"path": Path("x")}, {(1, 2): 3}, {"tensor": torch.ones(2)}])
def test_a_report_that_is_no_json(tmp_path: Path, chain: tuple[nn.Module, Plan], report: Any) -> None:
    with pytest.raises(ArtifactError, match="TypeError"):
        save(tmp_path / "run", *chain, report)
    assert list(tmp_path.iterdir()) == []


# ---- models that do not fit


def test_another_architecture(run: Path, chain: tuple[nn.Module, Plan]) -> None:
    small = copy.deepcopy(chain[0])
    error = refused(run, small, "for another architecture")
    assert "fc1.bias of shape (8,)" in str(error.expected)
    assert "fc1.bias of shape (4,)" in str(error.got)
    assert error.where == str(run / "plan.json")
    error = refused(run, Chain().double(), "for another architecture")
    assert "a dense Chain with state dict " in str(error.expected)
    assert "dtype" in str(error.hint)
    assert "Residual with state dict" in str(refused(run, Residual(), "for another architecture").got)


def test_a_class_instead_of_a_model(run: Path) -> None:
    model: Any = Chain
    with pytest.raises(ArtifactError, match=r"for example load\(folder, Chain\(\)\)"):
        load(run, model)


def test_a_model_without_memory(run: Path) -> None:
    with torch.device("meta"):
        model = Chain()
    with pytest.raises(ArtifactError, match="on the meta device"):
        load(run, model)


def test_a_model_with_its_weights_untied(tmp_path: Path) -> None:
    dense, batch = build("tied_heads")
    path = save(tmp_path / "run", dense, make_plan(capture(dense, batch), {}), {})
    apart = TiedHeads()
    apart.right.weight = nn.Parameter(apart.left.weight.detach().clone())
    assert "left.weight and right.weight" in str(refused(path, apart, "ties tensors").expected)
    assert ties(load(path, TiedHeads())) == ties(dense)


# ---- damage


def plan_data(run: Path) -> Any:
    return json.loads((run / "plan.json").read_text())


def write_plan(run: Path, data: Any) -> None:
    (run / "plan.json").write_text(json.dumps(data))


def edit_plan(run: Path, change: Callable[[Any], object]) -> None:
    data = plan_data(run)
    change(data)
    write_plan(run, data)


def edit_weights(run: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray((run / "weights.safetensors").read_bytes())
    change(data)
    (run / "weights.safetensors").write_bytes(data)


class Payload:
    """Unpickling it makes a file of the name `pwned`, wherever it happens."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def torch_archive(run: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"fc1.weight": Payload(run / "pwned")}, buffer)
    return buffer.getvalue()


def swap(run: Path, name: str, replacement: Callable[[Path], object]) -> None:
    (run / name).unlink()
    replacement(run / name)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "units edited": (
        lambda run: edit_plan(run, lambda data: data["groups"]["fc1"].update(kept=[1, 3, 5, 7])),
        "plan.json is not the plan that the weights were saved with",
    ),
    "note edited": (
        lambda run: edit_plan(run, lambda data: data["note"].update(method="another")),
        "plan.json is not the plan",
    ),
    "units emptied": (lambda run: edit_plan(run, lambda data: data["groups"]["fc1"].update(kept=[])), "can't be read"),
    "units outside": (
        lambda run: edit_plan(run, lambda data: data["groups"]["fc1"].update(kept=[99])),
        "can't be read",
    ),
    "another hash": (
        lambda run: edit_plan(run, lambda data: data["note"].update(weights_sha256="0" * 64)),
        "weights.safetensors is not the file that plan.json names",
    ),
    "no hash": (lambda run: edit_plan(run, lambda data: data["note"].clear()), "SHA-256 None"),
    "another plan schema": (lambda run: edit_plan(run, lambda data: data.update(schema="actprune.plan/2")), "plan/2"),
    "architecture edited": (
        lambda run: edit_plan(run, lambda data: data.update(architecture="0" * 64)),
        "another arch",
    ),
    "fields missing": (lambda run: edit_plan(run, lambda data: data.pop("dims")), "fields that Plan.to_json writes"),
    "plan truncated": (lambda run: (run / "plan.json").write_text((run / "plan.json").read_text()[:-9]), "JSON"),
    "plan empty": (lambda run: (run / "plan.json").write_text(""), "JSON"),
    "plan not an object": (lambda run: (run / "plan.json").write_text("[]"), "actprune.plan/1"),
    "plan not UTF-8": (lambda run: (run / "plan.json").write_bytes(b"\xff\xfe{}"), "UTF-8"),
    "plan a pickle": (lambda run: (run / "plan.json").write_bytes(pickle.dumps(Payload(run / "pwned"))), "UTF-8"),
    "plan missing": (lambda run: (run / "plan.json").unlink(), "No such file"),
    "plan a folder": (lambda run: swap(run, "plan.json", Path.mkdir), "a folder"),
    "plan nested": (lambda run: (run / "plan.json").write_text("[" * 10**6), "recursion|JSON"),
    "plan with an endless number": (lambda run: (run / "plan.json").write_text('{"a": ' + "9" * 5000 + "}"), "digits"),
    "plan with a huge axis": (
        lambda run: edit_plan(run, lambda data: data["dims"].update(other=[[10**12, 10**6]])),
        "a dimension of other of an impossible size",
    ),
    "plan with a product beyond words": (
        lambda run: edit_plan(run, lambda data: data["dims"].update(other=[{"product": [[10**4000, 10**6]] * 9}])),
        "a dimension of other of an impossible size",
    ),
    "plan with an axis of less than nothing": (
        lambda run: edit_plan(run, lambda data: data["dims"].update(other=[{"product": [[-2, 10**6], [-3, 10**7]]}])),
        "a dimension of other of an impossible size",
    ),
    "weights missing": (lambda run: (run / "weights.safetensors").unlink(), "No such file"),
    "weights a folder": (lambda run: swap(run, "weights.safetensors", Path.mkdir), "a folder"),
    "weights truncated": (lambda run: edit_weights(run, lambda data: data.__delitem__(slice(-40, None))), "SHA-256"),
    "weights empty": (lambda run: (run / "weights.safetensors").write_bytes(b""), "SHA-256"),
    "weights flipped": (lambda run: edit_weights(run, lambda data: data.__setitem__(-1, data[-1] ^ 1)), "SHA-256"),
    "weights longer": (lambda run: edit_weights(run, lambda data: data.extend(b"more")), "SHA-256"),
    "weights a pickle": (
        lambda run: (run / "weights.safetensors").write_bytes(pickle.dumps(Payload(run / "pwned"))),
        "SHA-256",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(run: Path, damage: str) -> None:
    change, words = DAMAGE[damage]
    change(run)
    error = refused(run, Chain(), words)
    assert "plan.json" in str(error.where) or "weights.safetensors" in str(error.where)
    assert "copy the whole folder again" in str(error.hint) or damage == "architecture edited"
    assert not (run / "pwned").exists()


def test_a_plan_that_is_too_long(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PLAN_BYTES", 100)
    assert "at most 100 bytes" in str(refused(run, Chain()).expected)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
def test_a_pipe_is_not_waited_for(run: Path, name: str) -> None:
    swap(run, name, lambda path: os.mkfifo(path))
    assert refused(run, Chain()).got == "a pipe or device"


def test_two_runs_mixed_up(run: Path, chain: tuple[nn.Module, Plan], tmp_path: Path) -> None:
    other = save(tmp_path / "other", copy.deepcopy(chain[0]).double(), chain[1], {})
    (run / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    refused(run, Chain(), "is not the file that plan.json names")


@pytest.mark.parametrize("name", ["run/plan.json", "nothing", "nul\0"])
def test_no_run_folder(run: Path, name: str) -> None:
    assert "pass the folder that save wrote" in str(refused(run.parent / name, Chain()).hint)


def test_the_report_is_not_needed(run: Path) -> None:
    (run / "report.json").unlink()
    load(run, Chain())


# ---- forgery: damage with every hash made right again


def forge(run: Path, plan: Plan | None = None, entries: Mapping[str, Tensor] | None = None, **metadata: str) -> None:
    """Write weights and plan that vouch for each other."""
    path = run / "weights.safetensors"
    old = Plan.from_json((run / "plan.json").read_text())
    plan = old if plan is None else plan
    plan = replace(plan, note={key: value for key, value in plan.note.items() if key != "weights_sha256"})
    with safe_open(path, "pt") as file:
        kept = file.metadata()
    entries = load_file(path) if entries is None else entries
    save_file(dict(entries), path, metadata={**kept, "plan": plan.digest, **metadata})
    vouch(run, plan)


def vouch(run: Path, plan: Plan | None = None) -> None:
    plan = Plan.from_json((run / "plan.json").read_text()) if plan is None else plan
    digest = hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()
    (run / "plan.json").write_text(plan.with_note(weights_sha256=digest).to_json())


def header(length: int, text: bytes) -> bytes:
    return struct.pack("<Q", length) + text


BYTES: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda run: b"",
    "short": lambda run: b"\x01\x02",
    "pickle": lambda run: pickle.dumps(Payload(run / "pwned")),
    "torch.save": torch_archive,
    "absurd header": lambda run: header(2**63, b"{}"),
    "header of 4 GB": lambda run: header(2**32, b"{}"),
    "no JSON": lambda run: header(2, b"{]"),
    "no metadata": lambda run: header(2, b"{}"),
    "deep header": lambda run: header(10**5, b'{"a":' * 20_000),
    "truncated": lambda run: (run / "weights.safetensors").read_bytes()[:-4],
    "longer": lambda run: (run / "weights.safetensors").read_bytes() + b"more",
    "beyond the end": lambda run: header(57, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}  '),
    "impossible shape": lambda run: header(
        77, b'{"a":{"dtype":"F32","shape":[18446744073709551615,9],"data_offsets":[0,36]}}'.ljust(77)
    ),
}


@pytest.mark.parametrize("kind", BYTES)
def test_foreign_bytes_that_the_plan_vouches_for(run: Path, kind: str) -> None:
    (run / "weights.safetensors").write_bytes(BYTES[kind](run))
    vouch(run)
    error = refused(run, Chain(), "weights.safetensors can't be read")
    assert "a safetensors file written by actprune" in str(error.expected)
    assert not (run / "pwned").exists()


def test_the_forger_of_these_tests_can_forge(run: Path, chain: tuple[nn.Module, Plan]) -> None:
    forge(run)
    assert content(load(run, Chain()).state_dict()) == content(chain[0].state_dict())


Forgery = Callable[[dict[str, Tensor]], dict[str, Tensor]]
ENTRIES: dict[str, tuple[Forgery, str]] = {
    "missing": (lambda w: {k: v for k, v in w.items() if k != "fc1.bias"}, "among them fc1.bias"),
    "extra": (lambda w: {**w, "../../x": torch.ones(1)}, r"among them \.\./\.\./x"),
    "shape": (lambda w: {**w, "fc1.weight": w["fc1.weight"].t().contiguous()}, r"of shape \(4, 6\), torch.float32"),
    "shape of as many": (lambda w: {**w, "fc1.bias": w["fc1.bias"][None]}, r"got: shape \(1, 4\)"),
    "integers": (lambda w: {**w, "fc1.bias": w["fc1.bias"].long()}, r"got: shape \(4,\), torch.int64"),
    "complex": (lambda w: {**w, "fc1.bias": w["fc1.bias"].to(torch.complex64)}, "torch.complex64"),
    "dense": (lambda w: Chain().state_dict(), r"got: shape \(8,"),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_other_tensors_than_the_models(run: Path, kind: str) -> None:
    change, words = ENTRIES[kind]
    forge(run, entries=change(load_file(run / "weights.safetensors")))
    refused(run, Chain(), words)


def test_another_schema_of_weights(run: Path) -> None:
    forge(run, schema="actprune.weights/2")
    assert refused(run, Chain()).got == "schema actprune.weights/2"


@pytest.mark.parametrize(
    "tied",
    ["", "[]", "1", '{"fc1.bias": 1}', '{"fc1.bias": ["fc2.bias"]}', '{"no": ["x"]}', '{"fc1.bias": ["fc1.bias"]}'],
)
def test_ties_that_make_no_sense(run: Path, tied: str) -> None:
    forge(run, tied=tied)
    refused(run, Chain(), "can't be read")


def test_a_tie_that_the_model_does_not_have(run: Path) -> None:
    entries = load_file(run / "weights.safetensors")
    del entries["fc2.bias"]
    forge(run, entries={**entries, "fc1.bias": torch.ones(4)}, tied='{"fc1.bias": ["fc2.bias"]}')
    refused(run, Chain(), "ties tensors that this model keeps apart")


def test_two_values_for_one_tensor(tmp_path: Path) -> None:
    _, small, plan, _ = pruned("tied")
    run = save(tmp_path / "run", small, plan, {})
    entries = load_file(run / "weights.safetensors")
    (first,) = (name for name in ("decoder_weight", "encoder.weight") if name in entries)
    other = {"decoder_weight": "encoder.weight", "encoder.weight": "decoder_weight"}[first]
    forge(run, entries={**entries, other: entries[first] + 1}, tied="{}")
    refused(run, Tied(), "to be equal, which the model ties")
    forge(run, entries={**entries, other: entries[first].clone()}, tied="{}")
    assert ties(load(run, Tied())) == ties(small)


def test_units_edited_with_the_digest_made_right(run: Path) -> None:
    """As many units, but others: nothing can notice, and nothing bad happens: the weights are the saved ones anyway."""
    plan = Plan.from_json((run / "plan.json").read_text())
    fc1 = plan.groups["fc1"]
    forge(run, plan=replace(plan, groups={**plan.groups, "fc1": GroupPlan(fc1.key, fc1.width, (1, 3, 5, 7))}))
    loaded = load(run, Chain())
    assert content(loaded.state_dict()) == content(load_file(run / "weights.safetensors"))
    forge(run, plan=replace(plan, groups={**plan.groups, "fc1": GroupPlan(fc1.key, fc1.width, (1, 3))}))
    refused(run, Chain(), r"of shape \(2,")


def test_an_axis_that_does_not_fit_the_model(run: Path) -> None:
    plan = Plan.from_json((run / "plan.json").read_text())
    forge(run, plan=replace(plan, dims={**plan.dims, "fc3.weight": (Leaf(3, 99), Leaf(70, 98))}))
    assert "fc3.weight of shape (3, 70)" in str(refused(run, Chain(), "another architecture").expected)


def test_a_plan_that_cannot_be_replayed(run: Path) -> None:
    plan = Plan.from_json((run / "plan.json").read_text())
    forge(run, plan=replace(plan, groups={**plan.groups, "x": GroupPlan(10**5, 10**30, (10**29,))}))
    refused(run, Chain(), "a plan that can be replayed")


# ---- any damage at all


@pytest.fixture(scope="module")
def intact() -> Any:
    """Name → bytes of a run of the network Reused, and what it loads as."""
    _, small, plan, _ = pruned("reused")
    with tempfile.TemporaryDirectory() as place:
        run = save(Path(place) / "run", small, plan, {"drop": 0.1})
        return {name: (run / name).read_bytes() for name in RUN}, content(small.state_dict())


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from(RUN))
def test_damaged_files_load_the_same_model_or_none(intact: Any, data: st.DataObject, name: str) -> None:
    whole, expected = intact
    damaged = bytearray(whole[name])
    places = data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4), label="places")
    for place in places:
        damaged[place] ^= data.draw(st.integers(1, 255), label="bits")
    end = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))), label="end")
    fresh = NETS["reused"].make()
    with tempfile.TemporaryDirectory() as folder_name:
        for other in RUN:
            (Path(folder_name) / other).write_bytes(whole[other])
        (Path(folder_name) / name).write_bytes(damaged[:end])
        try:
            loaded = load(folder_name, fresh)
        except ArtifactError as error:
            assert error.expected and error.got and error.where and error.hint
        else:
            assert content(loaded.state_dict()) == expected


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_weights_that_the_plan_vouches_for_do_no_harm(intact: Any, data: st.DataObject) -> None:
    """The header is where a parser could stumble: any flip there is refused or gives tensors of the right form."""
    whole, expected = intact
    damaged = bytearray(whole["weights.safetensors"])
    last = 8 + int.from_bytes(damaged[:8], "little")
    for place in data.draw(st.lists(st.integers(0, last), min_size=1, max_size=3), label="places"):
        damaged[place] ^= data.draw(st.integers(1, 255), label="bits")
    with tempfile.TemporaryDirectory() as folder_name:
        for other in RUN:
            (Path(folder_name) / other).write_bytes(whole[other])
        (Path(folder_name) / "weights.safetensors").write_bytes(damaged)
        vouch(Path(folder_name))
        try:
            loaded = load(folder_name, NETS["reused"].make())
        except ArtifactError as error:
            assert error.expected and error.got and error.where and error.hint
        else:
            assert {k: v[0] for k, v in content(loaded.state_dict()).items()} == {k: v[0] for k, v in expected.items()}


# ---- single files


def test_a_new_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.new_file(path) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]
    with files.new_file(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "new")]


class Told(nn.Module):
    """Returns a class of its own; the order of its layers is not that of the calls."""

    def __init__(self, kind: Callable[[], Any]) -> None:
        super().__init__()
        self.kind, self.b, self.a = kind, nn.Linear(6, 2), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Any:
        return self.kind()(self.b(self.a(x).relu()))


def test_the_graph_of_a_model_that_returns_a_dataclass(tmp_path: Path) -> None:
    """pytree learns of the class in the first capture: the second one of the process was another graph."""
    x, kind = torch.randn(8, 4), make_dataclass("Out", ["logits"])
    form = capture_form(Told(lambda: kind), x, "graph")
    model = Told(lambda: kind)
    plan = make_plan(form.graph, {"a": [0, 2, 5]}).with_note(**form.note)
    small = form.cut(model, plan)
    again = load(save(tmp_path / "run", small, plan, {}), Told(lambda: kind), x)
    assert torch.equal(again(x).logits, small(x).logits)


def test_a_dataclass_that_every_call_makes_anew_is_captured() -> None:
    assert capture(Told(lambda: make_dataclass("Out", ["logits"])), torch.randn(8, 4)).groups


class Spiking(nn.Module):
    """Its state is a buffer that is not saved, and is empty before the first run."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("state", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        self.state = torch.zeros_like(h) if self.state.shape != h.shape else self.state
        for _ in range(2):
            self.state = 0.9 * self.state + h.relu()
        y = self.out(self.state)
        self.state = torch.zeros_like(self.state)
        return y


def test_a_fresh_model_has_no_state_yet(tmp_path: Path) -> None:
    model, x = Spiking().eval(), torch.randn(2, 3)
    model(x)
    graph = capture(model, x)
    plan = make_plan(graph, {graph.groups[0].name: [0, 3, 5]})
    small = cut(model, plan)
    save(tmp_path / "run", small, plan, {})
    loaded = load(tmp_path / "run", Spiking().eval())
    torch.testing.assert_close(loaded(x), small(x))
    torch.testing.assert_close(loaded(torch.cat([x, x])), torch.cat([small(x), small(x)]))
