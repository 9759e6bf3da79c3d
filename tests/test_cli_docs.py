"""`docs/cli.md` and `docs/troubleshooting.md` say what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from actprune.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
CLI, TROUBLE = ((ROOT / "docs" / name).read_text("utf-8") for name in ("cli.md", "troubleshooting.md"))
COMMANDS = {str(one.callback.__name__): one.callback for one in app.registered_commands if one.callback}
TITLES = re.findall(r'^### "(.*)"$', TROUBLE, re.MULTILINE)


def test_every_command_has_its_section_and_its_example() -> None:
    sections = dict(re.findall(r"^## actprune (\w+)\n(.*?)(?=^## |\Z)", CLI, re.MULTILINE | re.DOTALL))
    assert sections.keys() == COMMANDS.keys()
    for name, command in COMMANDS.items():
        examples = re.findall(r"^ *Example: (.*)$", str(command.__doc__), re.MULTILINE)
        assert examples
        for example in examples:
            assert f"    {example}\n" in sections[name]


def test_every_option_that_is_named_exists() -> None:
    click = typer.main.get_command(app)
    known = {option for command in click.commands.values() for one in command.params for option in one.opts}  # type: ignore[attr-defined]
    assert set(re.findall(r"--[a-z][a-z0-9-]*", CLI + TROUBLE)) <= known | {
        "--help",
        "--install-completion",
        "--show-completion",
    }


def test_there_are_eleven_messages() -> None:
    assert len(set(TITLES)) == len(TITLES) == 11


@pytest.mark.parametrize("title", TITLES)
def test_the_message_is_one_of_actprune(title: str) -> None:
    parts = [re.escape(part) for part in title.split("…")]
    message = re.compile(r"\{[^{}]+\}".join(parts))
    assert any(message.search(path.read_text("utf-8")) for path in (ROOT / "src").rglob("*.py"))


def test_the_readme_links_to_both() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert "(docs/cli.md)" in text and "(docs/troubleshooting.md)" in text
