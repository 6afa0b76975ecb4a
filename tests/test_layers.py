"""Parts that load quickly stay so; which way imports point is checked by `make lint`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "modules",
    ["pixellm", "pixellm.types, pixellm.masks, pixellm.visualize, pixellm.curation, pixellm.llm"],
)
def test_what_needs_no_network_loads_no_torch(modules: str) -> None:
    heavy = ["torch", "transformers", "scipy", "skimage", "accelerate", "peft", "resvg_py", "yaml"]
    finished = run_python(
        "-c", f"import sys, {modules}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == ""
