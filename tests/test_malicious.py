"""A hundred damaged or malicious files: each is refused by an error of actprune, and nothing in them is executed."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import actprune as ap
from actprune.artifacts.checkpoint import load
from actprune.artifacts.plan_file import read_plan
from actprune.cli.runs import read_run
from actprune.errors import ArtifactError, PlanError
from actprune.plan import GroupPlan, Plan
from actprune.repair.edits import AttributeEdit, Edits, SourceEdit
from nets import Chain, build
from test_artifacts import Payload, content, edit_plan, forge, header, vouch

PLAN, WEIGHTS, REPORT, STATS = "plan.json", "weights.safetensors", "report.json", "statistics.safetensors"

Change = Callable[[Path], object]
"""Damages one run folder."""


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its statistics beside the other files."""
    model, x = build("chain")
    torch.manual_seed(0)
    data = [torch.randn_like(x) for _ in range(8)]
    result = ap.prune(model, data, keep="units=60%")
    folder = result.save(tmp_path_factory.mktemp("runs") / "run")
    assert result.stats is not None
    result.stats.save(folder / STATS)
    return folder


READERS: dict[str, Callable[[Path], object]] = {
    "load": lambda run: load(run, Chain()),
    "plan": lambda run: read_plan(run / PLAN),
    "report": read_run,
    "stats": lambda run: ap.Stats.load(run / STATS),
}

CASES: dict[str, tuple[str, Change]] = {}
"""What is done to the folder → which of the readers must refuse it, and how it is done."""


def case(reader: str, name: str, change: Change) -> None:
    assert name not in CASES
    CASES[name] = reader, change


def raw(name: str, data: bytes | str | Callable[[Path], bytes]) -> Change:
    """Put these bytes into the place of a file."""

    def change(run: Path) -> None:
        found = data(run) if callable(data) else data
        (run / name).write_bytes(found.encode() if isinstance(found, str) else found)

    return change


def part(name: str, share: float) -> Change:
    return raw(name, lambda run: (run / name).read_bytes()[: int(share * (run / name).stat().st_size)])


def flipped(name: str, seed: int) -> Change:
    def change(run: Path) -> None:
        data, draw = bytearray((run / name).read_bytes()), random.Random(seed)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (run / name).write_bytes(data)

    return change


def plan(**values: Any) -> Change:
    """Other fields of the plan; one that is None goes."""

    def change(data: Any) -> None:
        for name, value in values.items():
            data.pop(name) if value is None else data.update({name: value})

    return lambda run: edit_plan(run, change)


def group(**values: Any) -> Change:
    return lambda run: edit_plan(run, lambda data: data["groups"]["fc1"].update(values))


def report(place: str, value: Any) -> Change:
    def change(run: Path) -> None:
        data = json.loads((run / REPORT).read_text())
        *way, last = [int(one) if one.isdecimal() else one for one in place.split("/")]
        target = data
        for one in way:
            target = target[one]
        target[last] = value
        (run / REPORT).write_text(json.dumps(data))

    return change


def forged(make: Callable[[Plan], Plan]) -> Change:
    """Another plan, with which the weights agree."""
    return lambda run: forge(run, plan=make(Plan.from_json((run / PLAN).read_text())))


def edited(**edits: Any) -> Change:
    return forged(lambda old: replace(old, edits=Edits(**{name: (one,) for name, one in edits.items()})))


def attribute(module: str, *path: str | int, shared: bool = False) -> Change:
    return edited(attributes=AttributeEdit(module, path, 3, shared))


def source(module: str, *functions: str, text: str = "__import__('os').system('touch pwned')") -> Change:
    return edited(sources=SourceEdit(module, functions, 1, 4, text, 3, 4, "0" * 64))


def vouched(data: bytes | Callable[[Path], bytes]) -> Change:
    """Other weights, for which the plan vouches."""

    def change(run: Path) -> None:
        raw(WEIGHTS, data)(run)
        vouch(run)

    return change


def tensors(entries: Any, size: int = 36, **more: Any) -> Change:
    text = json.dumps({"__metadata__": {"schema": "actprune.weights/1"}, **entries, **more}).encode()
    return vouched(header(len(text), text) + bytes(size))


def other(**entries: Any) -> Change:
    """Other tensors than the model's, for which the plan vouches; one that is None goes."""

    def change(run: Path) -> None:
        held = {**load_file(run / WEIGHTS), **{name.replace("__", "."): value for name, value in entries.items()}}
        forge(run, entries={name: value for name, value in held.items() if value is not None})

    return change


def named(name: str) -> Change:
    return lambda run: forge(run, entries={**load_file(run / WEIGHTS), name: torch.ones(1)})


def linked(name: str, to: str | Callable[[Path], Path]) -> Change:
    """A link in the place of a file."""

    def change(run: Path) -> None:
        target = Path(to) if isinstance(to, str) else to(run)
        if not target.exists() and (run / name).exists() and callable(to):
            shutil.copy(run / name, target)
        (run / name).unlink()
        (run / name).symlink_to(target)

    return change


def instead(name: str, make: Callable[[Path], object]) -> Change:
    def change(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return change


def archive(run: Path, saved: bool = True) -> bytes:
    """A zip: as torch saves a pickle, or with a name that climbs."""
    buffer = io.BytesIO()
    if saved:
        torch.save({"fc1.weight": Payload(run / "pwned")}, buffer)
    else:
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("../../pwned", "x")
    return buffer.getvalue()


def pickled(protocol: int) -> Callable[[Path], bytes]:
    return lambda run: pickle.dumps(Payload(run / "pwned"), protocol)


def arrays(run: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([Payload(run / "pwned")], dtype=object), allow_pickle=True)
    return buffer.getvalue()


F32 = {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}

# the plan: a text of JSON, and values that make no plan
for percent in (0, 1, 10, 30, 50, 70, 90, 99):
    case("plan", f"plan cut off at {percent} %", part(PLAN, percent / 100))
for name, text in {
    "an HTML page": "<html>404</html>",
    "null": "null",
    "a number": "1e400",
    "a text": '"plan"',
    "an array": "[]",
    "no schema": "{}",
    "YAML that constructs": "!!python/object/apply:os.system ['touch pwned']",
    "arrays in arrays": "[" * 10**6,
    "objects in objects": '{"a":' * 10**5,
    "an endless number": '{"a":' + "9" * 5000,
    "a comment": "// {}\n{}",
    "two plans": "{}{}",
}.items():
    case("plan", f"plan: {name}", raw(PLAN, text))
for protocol in (0, 2, 5):
    case("plan", f"plan: a pickle, protocol {protocol}", raw(PLAN, pickled(protocol)))
case("plan", "plan: torch.save", raw(PLAN, archive))
case("plan", "plan: gzip", raw(PLAN, lambda run: gzip.compress((run / PLAN).read_bytes())))
case("plan", "plan: UTF-16", raw(PLAN, lambda run: (run / PLAN).read_text().encode("utf-16")))
case("plan", "plan: Latin-1", raw(PLAN, '{"schema": "é"}'.encode("latin-1")))
case("plan", "plan: NUL bytes", raw(PLAN, bytes(1000)))
for name, change in {
    "another schema": plan(schema="actprune.plan/9"),
    "no groups": plan(groups=None),
    "groups as a list": plan(groups=[]),
    "no dims": plan(dims=None),
    "dims as a text": plan(dims="../../etc/passwd"),
    "no edits": plan(edits=None),
    "edits as code": plan(edits="__import__('os')"),
    "a note of no names": plan(note=[1]),
    "architecture as a number": plan(architecture=7),
    "aliases of numbers": plan(aliases={"fc1.weight": [1]}),
    "axes in axes": plan(dims={"x": json.loads('[{"product":' * 300 + "[]" + "}]" * 300)}),
    "an axis of no kind": plan(dims={"x": [{"eval": [[1, 1], [1, 2]]}]}),
    "a product of one": plan(dims={"x": [{"product": [[1, 1]]}]}),
    "an axis of three": plan(dims={"x": [[1, 2, 3]]}),
    "an axis of less than nothing": plan(dims={"x": [[-5, 10**6]]}),
    "an axis of NaN": plan(dims={"x": [[float("nan"), 1]]}),
    "units as a text": group(kept="0123"),
    "units as truths": group(kept=[True]),
    "halves of units": group(kept=[0.5]),
    "units below zero": group(kept=[-1, 0]),
    "a unit twice": group(kept=[1, 1]),
    "units outside": group(kept=[10**30]),
    "no units": group(kept=[]),
    "units backwards": group(kept=[2, 1]),
    "an infinite unit": group(kept=[float("inf")]),
    "a width of nothing": group(width=0),
    "a width below zero": group(width=-8),
    "a key of text": group(key="../x"),
}.items():
    case("plan", f"plan: {name}", change)

# a plan that the weights vouch for
for name, change in {
    "a module that climbs": attribute("../../etc", "x"),
    "a module of two underscores": attribute("__class__", "x"),
    "parameters as a number": attribute("fc1", "_parameters", "weight"),
    "hooks as a number": attribute("fc1", "_forward_hooks"),
    "a mode as a number": attribute("fc1", "training"),
    "a class as a number": attribute("fc1", "__class__"),
    "a method as a number": attribute("fc1", "forward"),
    "no attribute": attribute("fc1", "nothing"),
    "an attribute of no name": attribute("fc1"),
    "modules as a copy": attribute("", "_modules", "fc1", shared=True),
    "code as a size": source("fc1", "forward"),
    "code of a hidden method": source("fc1", "__reduce__"),
    "code of another function": source("", "forward", "eval"),
    "code of no module": source("../x", "forward"),
    "a group of no tensor": forged(
        lambda old: replace(old, groups={**old.groups, "x": GroupPlan(10**5, 10**30, (1,))})
    ),
    "a tensor of another folder": forged(
        lambda old: replace(old, dims={**old.dims, "/etc/passwd": old.dims["fc1.weight"]})
    ),
    "another form": forged(lambda old: old.with_note(form="os.system")),
    "a form that is a list": forged(lambda old: old.with_note(form=["graph"])),
    "another model": forged(lambda old: replace(old, architecture="0" * 64)),
}.items():
    case("load", f"plan: {name}", change)

# weights, not vouched for: the digest tells; and vouched for
for seed in range(8):
    case("load", f"weights: bit {seed} flipped", flipped(WEIGHTS, seed))
for percent in (0, 3, 50, 99):
    case("load", f"weights cut off at {percent} %", part(WEIGHTS, percent / 100))
for percent in (0, 1, 20, 60, 99):
    case(
        "load",
        f"weights cut off at {percent} %, vouched for",
        vouched(
            lambda run, share=percent / 100: (run / WEIGHTS).read_bytes()[: int(share * (run / WEIGHTS).stat().st_size)]
        ),
    )
for length in (2**64 - 1, 2**63, 2**32, 2**27, 10**6):
    case("load", f"weights: a header of {length} bytes", vouched(header(length, b"{}")))
for name, change in {
    "a pickle": vouched(pickled(2)),
    "torch.save": vouched(archive),
    "an array of objects": vouched(arrays),
    "a zip that climbs": vouched(lambda run: archive(run, saved=False)),
    "no JSON": vouched(header(2, b"{]")),
    "an array": vouched(header(2, b"[]")),
    "no metadata": vouched(header(2, b"{}")),
    "objects in objects": vouched(header(10**5, b'{"a":' * 20_000)),
    "NaN": vouched(header(9, b'{"a":NaN}')),
    "beyond the end": tensors({"a": {**F32, "data_offsets": [0, 360]}}),
    "backwards": tensors({"a": {**F32, "data_offsets": [36, 0]}}),
    "below zero": tensors({"a": {**F32, "data_offsets": [-36, 0]}}),
    "a hole": tensors({"a": F32, "b": {**F32, "data_offsets": [72, 108]}}, 108),
    "an overlap": tensors({"a": F32, "b": {**F32, "data_offsets": [18, 54]}}, 54),
    "an absurd shape": tensors({"a": {**F32, "shape": [2**63, 2]}}),
    "a shape below zero": tensors({"a": {**F32, "shape": [-9]}}),
    "a shape of text": tensors({"a": {**F32, "shape": ["../x"]}}),
    "an unknown dtype": tensors({"a": {**F32, "dtype": "PICKLE"}}),
    "metadata of numbers": tensors({"a": F32}, __metadata__={"schema": 1}),
    "bytes too many": tensors({"a": F32}, 40),
    "no tensors": tensors({}, 0),
    "a tensor less": other(fc1__bias=None),
    "a tensor that climbs": named("../../pwned"),
    "an absolute tensor": named("/etc/passwd"),
    "a tensor of no name": named(""),
    "a dimension more": other(fc1__bias=torch.ones(1, 4)),
    "another width": other(fc1__bias=torch.ones(5)),
    "a number": other(fc1__bias=torch.tensor(1.0)),
    "nothing in it": other(fc1__bias=torch.ones(0)),
    "whole numbers": other(fc1__bias=torch.ones(4).long()),
    "truths": other(fc1__bias=torch.ones(4).bool()),
    "complex numbers": other(fc1__bias=torch.ones(4).to(torch.complex64)),
    "another schema": lambda run: forge(run, schema="actprune.weights/9"),
    "ties of nothing": lambda run: forge(run, tied='{"x": ["y"]}'),
    "ties in ties": lambda run: forge(run, tied="[" * 10**5),
}.items():
    case("load", f"weights: {name}", change)

# what lies in the place of a file
for name, reader in ((PLAN, "load"), (WEIGHTS, "load"), (REPORT, "report")):
    case(reader, f"{name}: missing", lambda run, name=name: (run / name).unlink())
    case(reader, f"{name}: a folder", instead(name, Path.mkdir))
    case(reader, f"{name}: a pipe", instead(name, os.mkfifo))
    case(reader, f"{name}: a link out of the folder", linked(name, lambda run, name=name: run.parent / f"out-{name}"))
    case(reader, f"{name}: a link to a file of the system", linked(name, "/etc/passwd"))
    case(reader, f"{name}: a link to a device", linked(name, "/dev/zero"))
    case(reader, f"{name}: a link to nothing", linked(name, "/nowhere/at/all"))
    case(reader, f"{name}: a link to itself", linked(name, lambda run, name=name: run / name))

# the report
for name, text in {
    "nothing": "",
    "an array": "[]",
    "no end": "{",
    "NaN": '{"schema": NaN}',
    "arrays in arrays": "[" * 10**5,
    "an endless number": '{"a":' + "9" * 5000 + "}",
}.items():
    case("report", f"report: {name}", raw(REPORT, text))
case("report", "report: a pickle", raw(REPORT, pickled(0)))
for percent in (20, 60, 99):
    case("report", f"report cut off at {percent} %", part(REPORT, percent / 100))
for place, value in {
    "schema": "actprune.report/9",
    "model": {"a": 1},
    "dense/params": "many",
    "dense/macs": 1.5,
    "dense": None,
    "groups": {},
    "groups/0/before": True,
    "groups/0/curve": [[1]],
    "groups/0/units": "../x",
    "seconds/guide": [],
    "notes": "x",
    "proof/passed": "yes",
    "losses": [[1, 2, 3]],
    "calibration": 3,
}.items():
    case("report", f"report: {place} is {json.dumps(value)}", report(place, value))
case(
    "report",
    "report: an infinite number",
    lambda run: raw(REPORT, (run / REPORT).read_text().replace('"seed": 0', '"seed": 1e999'))(run),
)

# statistics
for percent in (0, 10, 99):
    case("stats", f"statistics cut off at {percent} %", part(STATS, percent / 100))
case("stats", "statistics: a pickle", raw(STATS, pickled(2)))
case("stats", "statistics: a header of 4 GB", raw(STATS, header(2**32, b"{}")))
case("stats", "statistics: weights", lambda run: shutil.copy(run / WEIGHTS, run / STATS))
for name, metadata in {
    "no counts": {"schema": "actprune.stats/1"},
    "counts of text": {"schema": "actprune.stats/1", "samples": "many", "measures": ""},
    "counts of nothing": {"schema": "actprune.stats/1", "samples": "1", "measures": "", "count sites/x/0": "1"},
    "paths as counts": {
        "schema": "actprune.stats/1",
        "samples": "1",
        "measures": "",
        "count ../../x": "y",
        "count layers/": "1",
    },
}.items():
    text = json.dumps({"__metadata__": metadata, "a": F32}).encode()
    case("stats", f"statistics: {name}", raw(STATS, header(len(text), text) + bytes(36)))


def test_there_are_more_than_a_hundred() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(name: str, intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, change = CASES[name]
    run = Path(shutil.copytree(intact, tmp_path / "run"))
    change(run)
    before = set(tmp_path.rglob("*"))
    for place, function in ((pickle, "load"), (pickle, "loads"), (os, "system"), (subprocess, "Popen")):
        monkeypatch.setattr(place, function, _forbidden)
    with pytest.raises((ArtifactError, PlanError)) as caught:
        READERS[reader](run)
    error = caught.value
    assert error.problem and error.expected and error.got and error.where and error.hint
    assert len(str(error)) < 3000
    assert set(tmp_path.rglob("*")) == before and not list(tmp_path.rglob("pwned"))


def _forbidden(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("something was executed")


def test_the_intact_folder_is_read(intact: Path) -> None:
    for read in READERS.values():
        read(intact)
    assert content(load(intact, Chain()).state_dict()) == content(load_file(intact / WEIGHTS))
