"""docs/graph.md: its Python runs, and what it shows is what comes out."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actprune.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "graph.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


def plain(text: str) -> list[str]:
    """Lines without the padding of tables, and errors of rounding as one: they differ from machine to machine."""
    return [re.sub(r"\d\.\de[+-]\d\d", "0.0e+00", line.rstrip()) for line in text.strip().splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small.py, from which it can be imported."""
    (tmp_path / "small.py").write_text(BLOCKS[0][1], "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "small", raising=False)
    return tmp_path


def test_the_command(folder: Path) -> None:
    (shown,) = (text for kind, text in BLOCKS if kind == "console")
    line, expected = shown.removeprefix("$ actprune ").split("\n", 1)
    result = CliRunner().invoke(app, line.split(), env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    assert plain(result.stdout) == plain(expected)
    assert (folder / "small.html").is_file()


def test_the_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    capsys.readouterr()
    told: list[str] = []
    for kind, text in BLOCKS[2:]:
        if kind == "python":
            exec(compile(text, "docs/graph.md", "exec"), names)
            told += plain(capsys.readouterr().out)
        else:
            assert told == plain(text)
            told.clear()
    assert not told


def test_the_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (ROOT / "docs" / link).is_file()
