"""The embedded model: present, small, quick to describe what it was trained on, and useful."""

import json
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


def test_it_scores_on_unseen_scenes_as_its_table_says(
    nano: "pixellm.Engine", tmp_path: Path
) -> None:
    from pixellm.evaluation import BenchmarkRun, evaluate

    run = BenchmarkRun("scenes", "nano-scenes", "test", seed=20251, num_scenes=25)
    summary = evaluate(run, tmp_path / "run", lambda: nano).summary
    assert summary.score("giou_targets").value > NANO_GIOU_FLOOR
    assert summary.score("n_acc", "kind negative").value > NANO_NEGATIVES_FLOOR


NANO_GIOU_FLOOR = 0.38
"""Well under the measured score, so that 25 scenes cannot fall below it by chance."""

NANO_NEGATIVES_FLOOR = 0.2
"""Likewise, of about ten questions for something that is not there."""


def test_its_logs_hold_the_stages_of_its_recipe_in_order_down_to_losses_that_fell() -> None:
    from pixellm.training.config import load_config

    lines = [
        json.loads(line)
        for log in ("encoder_log.jsonl", "train_log.jsonl")
        for line in (ROOT / "docs" / "nano-scenes" / log).read_text(encoding="utf-8").splitlines()
    ]
    trained = list(dict.fromkeys(line["stage"] for line in lines if line["event"] == "step"))
    planned = [
        stage.name
        for stage in load_config(ROOT / "src/pixellm/recipes" / "nano_scenes.yaml").stages
    ]
    whereabouts = {"where_1", "where_2", "where_4"}  # these were thought of last
    by_plan = [stage for stage in trained if stage in planned]
    assert by_plan == sorted(planned, key=whereabouts.__contains__)
    # Joint, gone on with a new decoder, the way to places, which start smooth now, the lists that
    # the stage "language" holds now, and all stages again with boxes and finer features.
    to_places = {"masks", "presence", "half", "classes", "places", "finish_1"}
    to_lists = {"copy", "many", "words"}
    again = {"encoder_2", "language_2", "where", "joint_2", "finish_2"}
    after_whereabouts = {
        *("joint_3", "joint_4", "finish_3", "joint_5", "finish_4", "joint_6", "finish_5"),
        *("joint_7", "finish_6"),
    }
    assert set(trained) - set(planned) == to_places | to_lists | again | after_whereabouts
    for stage, loss in (("encoder", "patch_class"), ("language", "text"), ("joint", "dice")):
        values = [line[loss] for line in lines if line["stage"] == stage and loss in line]
        assert len(values) > 20
        assert np.mean(values[-5:]) < np.mean(values[:5]) / 1.5
