"""Every command line that the pages show is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from pixellm.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OF_THE_PROGRAM = ("--help", "--version", "--install-completion", "--show-completion")
"""Options that belong to no command."""
PROGRAM: Any = typer.main.get_command(app)
IN_A_TABLE = re.compile(r"`(pixellm [^`]* --[^`]*)`")
INDENTED_OR_FENCED = re.compile(r"^(?: {4}|\$ )?(?:[A-Z_]+=\S+ )*(pixellm .*)$")


def shown_commands(page: Path) -> list[str]:
    """Lines of code blocks that begin with ``pixellm``, and such cells of tables."""
    commands, fenced = [], False
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        found = INDENTED_OR_FENCED.match(line)
        if found and (fenced or line.startswith("    ")):
            commands.append(found.group(1))
        if line.startswith("|"):
            commands += IN_A_TABLE.findall(line)
    return commands


def parse(words: list[str]) -> None:
    """Let the command's own parser take the words, without running it."""
    command = PROGRAM
    while hasattr(command, "list_commands"):
        assert words[:1] and words[0] in command.list_commands(None), "no such command"
        command = command.get_command(None, words.pop(0))
    command.make_context(command.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_on_a_page_can_be_typed(page: Path) -> None:
    for line in shown_commands(page):
        words = shlex.split(line, comments=True)
        cut = next((n for n, word in enumerate(words) if word in ("|", ">", "&&", ";")), None)
        if "..." in words or words[-1] in OF_THE_PROGRAM:
            continue
        try:
            parse(words[1:cut])
        except Exception as error:  # typer carries the parser's errors under changing names
            pytest.fail(f"{page.name}: {line}: {error}")


def test_pages_show_commands() -> None:
    assert sum(len(shown_commands(page)) for page in PAGES) > 50
