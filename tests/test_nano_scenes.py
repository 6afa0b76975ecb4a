"""The embedded model of drawn scenes: present, small and useful."""

from pathlib import Path

import numpy as np
import pytest

import pixellm
from pixellm.checkpoint.sources import EMBEDDED_DIR

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def nano() -> "pixellm.Engine":
    return pixellm.load("nano-scenes", device="cpu")


def test_its_weights_are_between_5_and_20_megabytes() -> None:
    size = sum(file.stat().st_size for file in (EMBEDDED_DIR / "nano-scenes").iterdir())
    assert 5e6 < size < 20e6


def test_it_answers_the_demo_question_with_a_mask_for_each_thing(nano: "pixellm.Engine") -> None:
    question = (ROOT / "examples" / "scene_question.txt").read_text(encoding="utf-8").strip()
    prediction = nano.predict(ROOT / "examples" / "scene.png", question)
    assert len(prediction.segments) >= 2
    for segment in prediction.segments:
        assert segment.mask.shape == prediction.size
        assert segment.mask.any()
        assert prediction.text[slice(*segment.span)] == segment.label
    first, second = (segment.mask for segment in prediction.segments[:2])
    overlap = np.logical_and(first, second).sum() / min(first.sum(), second.sum())
    assert overlap < 0.5
