from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from conftest import OF_EXTRAS, python_without
from pixellm import __version__
from pixellm.cli.main import app


def commands_of(group: Any, *path: str) -> list[list[str]]:
    """The words of every command in a group and in the groups within."""
    found: list[list[str]] = []
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        is_group = hasattr(command, "list_commands")
        found += commands_of(command, *path, name) if is_group else [[*path, name]]
    return found


COMMANDS = [[], *(c for c in commands_of(typer.main.get_command(app)) if c != ["version"])]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_says_what_the_command_does_and_shows_an_example(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert f"pixellm {' '.join(command)}".rstrip() in " ".join(result.output.split())


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_version(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert result.output == f"pixellm {__version__}\n"


HEAVY = ("torch", "transformers", "numpy", "PIL", "pycocotools", "safetensors")
SHOW_HELP = """
from pixellm.cli.main import app
for words in [], ["segment"], ["curate"]:
    app([*words, "--help"], prog_name="pixellm", standalone_mode=False)
"""


def test_help_loads_no_model_code_and_no_extra() -> None:
    done = python_without((*OF_EXTRAS, *HEAVY), SHOW_HELP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: pixellm") == 3


def test_an_unknown_command_names_the_near_one() -> None:
    result = CliRunner().invoke(app, ["segmnt"])
    assert result.exit_code == 2
    assert "segment" in result.output
