"""The Dockerfile: what a linter says of it, and that it copies and starts what there is."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pixellm.cli.main import app

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def test_a_linter_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (0, "")


def test_what_it_copies_is_there_and_reaches_the_builder() -> None:
    text = DOCKERFILE.read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
              for word in line.split()[:-1]]  # fmt: skip
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert set(copied) == {line[1:] for line in allowed if line.startswith("!")}
    for name in copied:
        assert (ROOT / name).exists(), name


def test_its_command_is_one_that_the_command_line_takes() -> None:
    (entry,) = re.findall(r"^ENTRYPOINT \[(.*)\]$", DOCKERFILE.read_text(), re.MULTILINE)
    words = [word.strip(",") for word in shlex.split(entry)]
    assert words[:2] == ["pixellm", "serve"]
    command = typer.main.get_command(app).get_command(None, "serve")  # type: ignore[union-attr]
    command.make_context("serve", words[2:])
