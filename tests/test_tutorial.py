"""`docs/tutorial.md` is a walk that works: its commands, one after the other, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from test_cli import Run, run  # noqa: F401

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "tutorial.md").read_text("utf-8")
COMMANDS = re.findall(r"^ *\$ actprune (.*)$", TEXT, re.MULTILINE)


def test_the_walk_of_the_tutorial(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    assert [command.split()[0] for command in COMMANDS][:3] == ["init", "prune", "prune"]
    for command in COMMANDS:
        code, _, err = run(*shlex.split(command))
        assert code == 0, (command, err)
    for name in set(re.findall(r"`(runs/[\w./-]+)`", TEXT)):
        assert (tmp_path / name).exists(), name


def test_the_recipe_is_short() -> None:
    recipe = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[0]
    assert len([line for line in recipe.splitlines() if line.strip()]) <= 10
    compile(recipe, "recipe.py", "exec")
