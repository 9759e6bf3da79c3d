"""What a user has after installing: a light import, a public list that resolves, a command that starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import actprune

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
HEAVY = {"torch", "sklearn", "keras", "onnx", "plotly", "matplotlib"}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that finds the package also where it is not installed."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")


def pins() -> Iterator[tuple[str, str]]:
    """Yield every (name, version specifier) of constraints.txt."""
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if text := line.partition("#")[0].strip():
            requirement = Requirement(text)
            yield canonicalize_name(requirement.name), str(requirement.specifier)


def test_the_import_is_light() -> None:
    done = run_python("import json, sys, actprune; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert HEAVY.intersection(json.loads(done.stdout)) == set()


def test_every_public_name_resolves() -> None:
    assert actprune.__all__
    assert [name for name in actprune.__all__ if getattr(actprune, name, None) is None] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        actprune.no_such_name  # noqa: B018


def test_the_type_information_is_shipped() -> None:
    assert files("actprune").joinpath("py.typed").is_file()


def test_the_command_prints_its_help() -> None:
    module, _, function = PROJECT["scripts"]["actprune"].partition(":")
    start = f"from {module} import {function}; sys.exit({function}())"
    done = run_python(f"import sys; sys.argv = ['actprune', '--help']; {start}")
    assert done.returncode == 0, done.stderr
    assert "actprune" in done.stdout
    assert done.stderr == ""


def test_every_requirement_is_pinned_and_the_pin_is_allowed() -> None:
    pinned = {name: specifier.removeprefix("==") for name, specifier in pins()}
    extras = PROJECT["optional-dependencies"].values()
    wanted = [Requirement(text) for group in [PROJECT["dependencies"], *extras] for text in group]
    missing = [
        str(requirement)
        for requirement in wanted
        if requirement.name != PROJECT["name"]
        and not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"))
    ]
    assert missing == []


def test_the_pins_hold_on_any_machine() -> None:
    """Exact versions only: no ranges, no local build tags such as +cpu, no addresses."""
    for name, specifier in pins():
        version = specifier.removeprefix("==")
        assert specifier == f"=={version}", name
        assert not set("+*,@/") & set(version), name


def test_nothing_is_pinned_twice() -> None:
    names = [name for name, _ in pins()]
    assert len(names) == len(set(names))
