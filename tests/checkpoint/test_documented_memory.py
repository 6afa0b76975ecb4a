"""The memory that the documentation promises is what the real model classes count."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_documented_memory_is_what_its_command_prints(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(ROOT / "benchmarks" / "weights_memory.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    documented = (ROOT / "docs" / "released-weights.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in printed if line.startswith("|")]
    assert len(rows) == 4
    assert [row for row in rows if row not in documented] == []
    text = " ".join(documented)
    for line in printed[len(rows) :]:
        per_token = line.split(" take ")[1].split(" a token")[0]
        assert per_token.replace(" MB", "") in text
