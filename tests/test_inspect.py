"""`inspect`: what groups govern and what is frozen, by hand and against `cost`; drawings; and the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import actprune
from actprune.allocation.cost import cost
from actprune.axes.call import RULES
from actprune.axes.capture import capture
from actprune.cli.inputs import make_inputs, parse_inputs
from actprune.cli.main import app, main
from actprune.errors import ActpruneError, ArtifactError, CaptureError, PlanError
from actprune.report.drawing import dot, layout, page
from actprune.report.inspection import Inspection, inspect
from actprune.report.reasons import without_place
from nets import NETS, Auxiliary, build


def inspected(name: str) -> Inspection:
    return inspect(capture(*build(name)))


# ---- what groups govern


@pytest.mark.parametrize("name", NETS)
def test_a_group_governs_what_goes_with_it(name: str) -> None:
    graph = capture(*build(name))
    found, dense = inspect(graph), cost(graph)
    assert (found.params, found.macs) == (dense.params, dense.macs)
    assert [group.name for group in found.groups] == [group.name for group in graph.groups]
    for group in found.groups:
        without = cost(graph, {group.name: 0})
        assert (group.params, group.macs) == (dense.params - without.params, dense.macs - without.macs)
        assert group.share == group.params / dense.params
        assert group.width == graph[group.name].width


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_is_prunable_or_frozen_for_a_reason(name: str) -> None:
    model, inputs = build(name)
    graph = capture(model, inputs)
    found = inspect(graph)
    total = sum(p.numel() for p in model.parameters())
    assert found.prunable + found.frozen == found.params == total
    assert found.frozen == sum(reason.params for reason in found.reasons) == sum(m.frozen for m in found.modules)
    assert sum(module.params for module in found.modules) == total
    assert found.prunable == graph.account().prunable
    # without all groups at once, only the frozen ones are left
    assert cost(graph, {group.name: 0 for group in graph.groups}).params == found.frozen
    counts = [reason.params for reason in found.reasons]
    assert counts == sorted(counts, reverse=True)


def test_lenet_by_hand() -> None:
    found = inspected("lenet")
    conv1, conv2, fc1, fc2 = found.groups
    assert (conv1.kind, conv1.width, fc2.kind, fc2.width) == ("channels", 6, "neurons", 84)
    assert conv1.params == 25 * 6 + 6 + 25 * 6 * 16  # its filters, its biases, the planes of the second one
    assert conv1.macs == 24 * 24 * 25 * 6 + 8 * 8 * 25 * 6 * 16
    assert fc2.params == 120 * 84 + 84 + 84 * 10
    assert (conv2.producers, conv2.consumers, fc1.carriers) == (("conv2",), ("fc1",), ())
    assert found.frozen == 10  # the biases of the output
    assert found.summary == "100.0 % of parameters prunable (44,416 of 44,426)"
    assert [module.name for module in found.modules] == ["conv1", "conv2", "fc1", "fc2", "fc3"]


def test_norms_carry_their_group() -> None:
    found = inspected("residual")
    stream = found.groups[0]
    assert (stream.producers, stream.consumers) == (("stem", "conv2"), ("conv1", "fc"))
    assert stream.carriers == ("bn", "bn2")
    assert [module.name for module in found.modules] == ["stem", "bn", "conv1", "bn1", "conv2", "bn2", "fc"]


def test_heads_of_training_are_seen() -> None:
    found = inspect(capture(Auxiliary(), torch.randn(4, 3, 5, 5)))
    assert set(found.groups[0].consumers) == {"head", "aux"}
    assert [module.name for module in found.modules][-1] == "aux"


# ---- what is frozen


def test_reasons_of_unused_parameters() -> None:
    found = inspected("unused")
    first, second, third = found.reasons
    assert (first.reason, first.params, first.dims) == ("not used by the forward pass", 42 + 4, 4)
    assert (first.places, first.first) == (0, "scale[0]")
    assert (second.reason, second.params) == ("model output", 3)
    assert (third.reason, third.params, third.dims) == ("model input", 0, 1)  # fc1 can lose its outputs


class Partly(nn.Module):
    """A concatenation of units that may go and of given ones, read by one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.head = nn.Linear(4, 5), nn.BatchNorm1d(9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(torch.cat([torch.relu(self.fc(x)), x], 1)))


def test_a_frozen_part_of_a_concatenation_is_not_prunable() -> None:
    graph = capture(Partly().eval(), torch.randn(3, 4))
    found = inspect(graph)
    assert found.prunable == graph.account().prunable == 25 + 2 * 5 + 2 * 5
    assert {reason.reason: reason.params for reason in found.reasons} == {"model input": 8 + 8, "model output": 2}


class Sorted(nn.Module):
    """Two layers with one op that has no rule, in two places; a single number as parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sort(self.fc1(x)).values
        return self.gain * self.fc3(torch.sort(self.fc2(x)).values)


def test_reasons_are_summed_over_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in RULES if name.startswith("aten.sort")]:
        monkeypatch.delitem(RULES, name)
    found = inspect(capture(Sorted(), torch.randn(2, 6)))
    reasons = {reason.reason: reason for reason in found.reasons}
    rule = next(reason for text, reason in reasons.items() if text.startswith("frozen by aten.sort"))
    assert rule is found.reasons[0] and "test_inspect.py" not in rule.reason and "without a rule" in rule.reason
    assert rule.places == 2 and rule.first.startswith("the model, test_inspect.py:")
    assert rule.params == 56 + 72 + 24  # also the weight that reads the frozen neurons
    assert reasons["it is a single number"].params == 1 and reasons["it is a single number"].dims == 0
    assert (found.prunable, found.groups) == (0, ())
    assert found.unknown_ops and f"op without a rule: {found.unknown_ops[0]}" in str(found)


def test_kernels_are_told_only_where_nothing_else_is() -> None:
    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(self.conv(x), 1).values

    reasons = {reason.reason: reason for reason in inspect(capture(Kernel(), torch.randn(1, 3, 5, 5))).reasons}
    kernel = reasons["a kernel size by aten.conv2d.default"]
    assert (kernel.params, kernel.dims, kernel.places) == (0, 2, 1)
    assert next(iter(reasons)).startswith("mixed by aten.sort") and next(iter(reasons.values())).params == 112


OF_TORCH = (
    "the model's class can't follow a cut here: RuntimeError: The size of tensor a (14) must match the size of tensor b"
    " (16) at non-singleton dimension 1"
)


@pytest.mark.parametrize(
    ("reason", "general", "place"),
    [
        ("padded by aten.pad.default at conv1, nets.py:12", "padded by aten.pad.default", "conv1, nets.py:12"),
        (
            "frozen by aten.sort.default at the model, my net.py:3, an op without a rule",
            "frozen by aten.sort.default, an op without a rule",
            "the model, my net.py:3",
        ),
        (
            "a product and a concatenation can't be reconciled at aten.chunk.default at stage3.5",
            "a product and a concatenation can't be reconciled at aten.chunk.default",
            "stage3.5",
        ),
        ("model input", "model input", None),
        ("the model's class can't follow: shape '[2]'", "the model's class can't follow: shape '[2]'", None),
        (OF_TORCH, OF_TORCH, None),
    ],
)
def test_a_reason_without_its_place(reason: str, general: str, place: str | None) -> None:
    assert without_place(reason) == (general, place)


# ---- what is shown


def test_the_tables() -> None:
    text = str(inspected("residual"))
    lines = text.splitlines()
    assert lines[0] == "Residual: 1,182 parameters, 27,032 MACs, 2 groups"
    assert lines[-1] == "99.7 % of parameters prunable (1,178 of 1,182)"
    row = next(line for line in lines if line.split()[:1] == ["stem"])
    assert row.split()[1:4] == ["channels", "8", f"{inspected('residual').groups[0].params:,}"]
    assert row.endswith("conv1, fc")
    for words in ("frozen: 4 parameters", "model output", "a kernel size by aten.conv2d.default", "stem, nets.py:"):
        assert words in text


def test_plain_data() -> None:
    data = json.loads(inspected("chain").to_json())
    assert data["schema"] == "actprune.inspection/1"
    assert data["prunable"] + data["frozen"] == data["params"] == 143
    assert [group["name"] for group in data["groups"]] == ["fc1", "fc2"]
    assert data["groups"][0]["consumers"] == ["fc2"]


def test_it_is_public() -> None:
    assert actprune.inspect is inspect


def test_a_drawing_for_graphviz() -> None:
    text = dot(inspected("residual"))
    assert text.startswith('digraph "Residual" {') and text.endswith("}\n")
    nodes = {line.split()[0]: line for line in text.splitlines() if " label=" in line.replace("[", " ")}
    assert '"stem\\n224 parameters"' in nodes["m0"] and "stem\\n8 channels" in nodes["g0"]
    edges = [tuple(line.split()[0:3:2]) for line in text.splitlines() if "->" in line]
    names = {key: line.split('label="')[1].split("\\n")[0] for key, line in nodes.items()}
    assert {(names[a], names[b]) for a, b in edges} == {
        ("stem", "stem"), ("conv2", "stem"), ("stem", "conv1"), ("stem", "fc"), ("conv1", "conv1"), ("conv1", "conv2"),
    }  # fmt: skip
    assert "frozen: 4 parameters\\n4: model output" in nodes["frozen"]
    assert text.count("{") == text.count("}") == 1


class Awkward(nn.Module):
    """Names that mean something in DOT, in HTML and in the markup of the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({'a"\\<b>[red]': nn.Linear(6, 8), "</svg>&{{x}}": nn.Linear(8, 3)})

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.inner.values()
        return second(F.relu(first(x)))


class Strict(HTMLParser):
    """Notes the text and the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.said: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_names_are_escaped() -> None:
    found = inspect(capture(Awkward(), torch.randn(2, 6)))
    name = 'inner.a"\\<b>[red]'
    assert found.groups[0].name == name
    assert '"inner.a\\"\\\\<b>[red]\\n56 parameters"' in dot(found)
    assert name in str(found)
    read = Strict(page(found))
    assert name in "".join(read.said) and "inner.</svg>&{{x}}" in "".join(read.said)
    assert "b" not in read.tags and read.tags.count("svg") == 1


@pytest.mark.parametrize("name", NETS)
def test_the_page(name: str) -> None:
    found = inspected(name)
    text = page(found)
    read = Strict(text)
    assert read.tags.count("table") == 2 and read.tags.count("details") == 3
    assert "script" not in read.tags and "link" not in read.tags and "http" not in text
    assert not [value for key, value in read.attributes if key in ("src", "href") or key.startswith("on")]
    svg = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])
    assert len(svg.findall("text[title]")) == len(found.modules)
    assert len(svg.findall("g")) == len(found.groups)
    for drawn, group in zip(svg.findall("g"), found.groups, strict=True):
        stations = len(drawn.findall("circle"))
        assert stations == len(group.producers) + len(group.consumers) + len(group.carriers)
    assert found.summary in text


def test_lines_do_not_touch() -> None:
    for name in NETS:
        lines = layout(inspected(name)).lines
        for i, one in enumerate(lines):
            assert one.top <= one.bottom
            for other in lines[:i]:
                assert one.x != other.x or one.top > other.bottom or other.top > one.bottom


def test_a_line_that_is_over_leaves_its_place() -> None:
    conv1, conv2, fc1, fc2 = layout(inspected("lenet")).lines
    assert conv1.x == fc1.x < conv2.x == fc2.x


def test_a_page_needs_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    found = inspected("chain")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ActpruneError, match="without jinja2") as caught:
        found.to_html()
    assert "pip install 'actprune[report]'" in str(caught.value) and ".dot" in str(caught.value)
    assert found.to_dot()


# ---- the command

SOURCE = """
import torch
from torch import nn

print("made")
SIZE = 4


def net(width=8, *, name="relu"):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def pair():
    return net(), torch.randn(2, 6)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Embedding(10, 8), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, input_ids, mask=None):
        x = self.embed(input_ids) if mask is None else self.embed(input_ids) * mask[..., None]
        return self.fc2(self.fc1(x).relu())


def broken():
    raise RuntimeError("no weights here")


def leaves():
    raise SystemExit(3)


def several():
    return net(), 1, 2


def needs(width):
    return net(width)


model = net(5)
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """`actprune inspect …` in a folder with a module: (exit code, what it printed, what it complained)."""
    (tmp_path / "some_nets.py").write_text(SOURCE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "some_nets", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")

    def start(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["actprune", "inspect", *map(str, words)])
        try:
            with pytest.raises(SystemExit) as left:
                main()
        finally:
            sys.modules.pop("some_nets", None)
        code = left.value.code
        out = capsys.readouterr()
        return (code if isinstance(code, int) else 0), out.out, out.err

    return start


@pytest.mark.parametrize(
    ("words", "width"),
    [
        (["some_nets:net", "--input", "2,6"], 8),
        (["some_nets:net(20)", "--input", "2,6"], 20),
        (["some_nets:net(width=20, name='a:b(c)')", "--input", "2, 6"], 20),
        (["some_nets:model", "--input", "1,6"], 5),
        (["some_nets:pair"], 8),
        (["some_nets.py:pair"], 8),
        (["./some_nets.py:pair()", "--input", "7,6"], 8),
        (["some_nets:Tokens", "--input", "int64:1,5"], 12),
        (["some_nets:Tokens", "--input", "mask=bool:1,5", "--input", "input_ids=int64:1,5"], 12),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_command(run: Callable[..., Any], words: list[str], width: int) -> None:
    code, out, err = run(*words)
    assert code == 0, err
    assert f"neurons  {width:>5}" in out and "of parameters prunable (" in out
    assert "made" not in out and "made" in err  # what the module prints is no part of the answer


def test_help(run: Callable[..., Any]) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for words in ("SPEC", "--input", "--draw", "--json", "Example: actprune inspect"):
        assert words in out


def test_the_command_gives_plain_data(run: Callable[..., Any]) -> None:
    code, out, _ = run("some_nets:pair", "--json")
    assert code == 0
    assert json.loads(out)["groups"][0]["width"] == 8


@pytest.mark.parametrize("name", ["groups.dot", "drawn/groups.html"])
def test_the_command_draws(run: Callable[..., Any], tmp_path: Path, name: str) -> None:
    code, out, err = run("some_nets:pair", "--draw", name)
    assert code == 0 and f"written to {Path(name)}" in err and "prunable" in out
    text = (tmp_path / name).read_text("utf-8")
    assert text.startswith("digraph" if name.endswith(".dot") else "<!doctype html>")
    assert not list(tmp_path.rglob(".actprune-*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["some_nets:nett", "--input", "1,6"], ["some_nets has no 'nett'", "did you mean 'net'"]),
        (["some_nest:net"], ["no module named 'some_nest'", "in the folder that holds it"]),
        (["torch.nnn:Linear"], ["no module named 'torch.nnn'", "did you mean 'torch.nn'?"]),
        (["nothing.py:net"], ["There is no file nothing.py", "the working folder is"]),
        (["some_nets:SIZE"], ["is no model", "got: int"]),
        (["some_nets:several"], ["gives no model", "got: Sequential, int, int"]),
        (["some_nets:needs"], ["wrong arguments", "'width'", "some_nets:needs(name=value)"]),
        (["some_nets:net(depth=3)"], ["wrong arguments", "'depth'"]),
        (["some_nets:model()"], ["is a model already"]),
        (["some_nets:broken"], ["could not be called", "RuntimeError: no weights here"]),
        (["some_nets:leaves"], ["could not be called", "SystemExit: 3"]),
        (["some_nets:net"], ["needs inputs", "--input 1,3,224,224"]),
        (["some_nets:net", "--input", "1,7"], ["could not be captured", "(1, 7)"]),
        (["some_nets:Tokens", "--input", "input_id=int64:1,5"], ["no input named", "did you mean 'input_ids'?"]),
    ],
    ids=lambda words: words[0],
)
def test_errors(run: Callable[..., Any], words: list[str], said: list[str]) -> None:
    code, out, err = run(*words)
    assert code == 1 and out == ""
    assert "error: " in err and "Traceback" not in err
    for word in ("expected: ", "got: ", "where: ", "next: ", *said):
        assert word in err, err


@pytest.mark.parametrize("name", ["net.pth", "./net.pth", "net.pth:model"])
def test_a_file_of_weights(run: Callable[..., Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "net.pth").write_bytes(b"weights")
    (tmp_path / "net.py").write_text("raise RuntimeError('not asked for')", "utf-8")  # what `import net.pth` would run
    code, _, err = run(name, "--input", "1,6")
    assert code == 1 and "net.pth is no Python file" in err and "got: a file that ends in .pth" in err
    assert "actprune init" in err


def test_a_recipe_brings_its_own_inputs(run: Callable[..., Any], tmp_path: Path) -> None:
    """The first batch of its calibration data, labels left out; --input goes before it."""
    text = "import torch\nfrom some_nets import net as model\nx = torch.ones(2, 6)\ndef calibration(): return [(x, x)]"
    (tmp_path / "own_recipe.py").write_text(text, "utf-8")
    code, out, err = run("own_recipe.py")
    assert code == 0 and "of parameters prunable (" in out, err
    code, _, err = run("own_recipe.py", "--input", "1,7")
    assert code == 1 and "(1, 7)" in err


def test_a_recipe_that_would_import_itself(run: Callable[..., Any], tmp_path: Path) -> None:
    text = "import torch, some_package.nets\nfrom some_nets import net as model"
    for name, refused in (("some_package", True), ("some", False)):
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        code, _, err = run(f"{name}.py", "--input", "1,6")
        told = f"{name}.py would import itself in place of the package {name}" in err and f"{name}_recipe.py" in err
        assert code == 1 and told is refused


def test_a_recipe_without_a_model(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.py").touch()
    code, _, err = run("recipe.py", "--input", "1,6")
    assert code == 1 and "no function model()" in err and "recipe.py:name" in err


def test_a_module_that_cannot_be_imported(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "needy_nets.py").write_text("import not_there_at_all", "utf-8")
    for spec in ("needy_nets:net", "needy_nets.py:net"):
        code, _, err = run(spec)
        assert code == 1 and "could not be imported" in err and "'not_there_at_all'" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["some nets"], "can't be read"),
        (["some_nets:net(open('x'))"], "no python literals"),
        (["some_nets:net(1)(2)"], "no python literals"),
        (["some_nets:net(**{})"], "no python literals"),
        (["some_nets:net", "--input", "1,a"], "is no shape"),
        (["some_nets:net", "--input", "0,6"], "is no shape"),
        (["some_nets:net", "--input", "int46:1,6"], "did you mean 'int64'"),
        (["some_nets:net", "--input", "1,6", "--input", "x=1,6"], "all of them by position"),
        (["some_nets:net", "--input", "x=1,6", "--input", "x=1,6"], "every name once"),
        (["some_nets:net", "--draw", "groups.png"], ".dot or .html"),
    ],
    ids=lambda words: words[-1] if isinstance(words, list) else "",
)
def test_wrong_usage(run: Callable[..., Any], words: list[str], said: str) -> None:
    code, out, err = run(*words)
    assert code == 2 and out == ""
    assert said in " ".join(err.lower().replace("│", " ").split())


def test_a_place_that_cannot_be_written(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    code, _, err = run("some_nets:pair", "--draw", "file/groups.dot")
    assert code == 1 and "can't be written" in err


def test_errors_reach_those_who_call_the_app_from_python() -> None:
    result = CliRunner().invoke(app, ["inspect", "no_module_of_this_name:net"])
    assert isinstance(result.exception, CaptureError) and not isinstance(result.exception, ArtifactError)


def test_inputs_are_the_same_every_time() -> None:
    wanted = parse_inputs(["ids=int64:2,5", "pixels=float16:1,3", "mask=bool:2"])
    with pytest.raises(PlanError, match="no input named 'ids'"):
        make_inputs(wanted, nn.Linear(1, 1))
    takes_all = type("Any", (nn.Module,), {"forward": lambda self, **kwargs: None})()
    one, two = make_inputs(wanted, takes_all), make_inputs(wanted, takes_all)
    assert [(name, value.dtype, tuple(value.shape)) for name, value in one.items()] == [
        ("ids", torch.int64, (2, 5)), ("pixels", torch.float16, (1, 3)), ("mask", torch.bool, (2,)),
    ]  # fmt: skip
    assert all(torch.equal(one[name], two[name]) for name in one) and one["mask"].all()
