"""The example of spurious masks shows what the documents say it shows."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "spurious_masks", ROOT / "examples" / "spurious_masks.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_spraying_pays_under_the_released_protocol_only(example):
    scores = example.score_models()
    honest, spraying = scores["honest"], scores["spraying"]
    assert spraying["released gIoU"] > honest["released gIoU"] + 0.1
    assert spraying["strict gIoU"] < honest["strict gIoU"] / 4
    assert spraying["released cIoU"] == pytest.approx(honest["released cIoU"])
    assert spraying["strict cIoU"] < honest["strict cIoU"]
    blind = scores["blind and spraying"]
    assert blind["strict gIoU"] == 0 and blind["released gIoU"] > 0.7


def test_the_documents_hold_the_measured_table_and_the_image(example):
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert "\n".join(example.table_lines(example.score_models())) in text
    assert "](evaluation/spurious.png)" in text
    assert example.OUT.is_file()


def test_the_image_can_be_drawn_again(example):
    sheet = example.draw_answers(example.score_models())
    assert sheet.width > 1000
