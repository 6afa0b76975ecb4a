"""The evaluation on drawn scenes, end to end, with predictors of known skill."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hand_made_scenes import true_prediction

from pixellm.evaluation import evaluate_scenes
from pixellm.evaluation.scenes_report import (
    DEFINITIONS,
    NEGATIVE_KIND,
    SPACE_AND_SIZE_KINDS,
)
from pixellm.evaluation.scores import COUNTING_KIND, TEXT_KINDS
from pixellm.scenes.dataset import ScenesDataset
from pixellm.scenes.questions import KINDS
from pixellm.types import Prediction, Request, Segment, Turn

SPLIT, SEED, NUM_SCENES, DIALOGUES = "test", 7, 12, 5


class SceneOracle:
    """Knows every true answer of the scenes, by image, question and earlier questions."""

    def __init__(self, num_scenes: int = NUM_SCENES) -> None:
        dataset = ScenesDataset(SPLIT, SEED, num_scenes, DIALOGUES)
        self.turns: dict[tuple, tuple[Turn, tuple[int, int]]] = {}
        for i in range(num_scenes):
            for sample in dataset[i]:
                for number, turn in enumerate(sample.turns):
                    earlier = [before.question for before in sample.turns[:number]]
                    key = self.key(sample.image, turn.question, earlier)
                    self.turns[key] = (turn, sample.size)

    @staticmethod
    def key(image, question: str, earlier: Sequence[str]) -> tuple:
        return (image.tobytes(), question, *earlier)

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        earlier = [[question for question, _ in request.history] for request in requests]
        keys = [self.key(r.image, r.question, e) for r, e in zip(requests, earlier, strict=True)]
        return [self.change(true_prediction(*self.turns[key])) for key in keys]

    def change(self, prediction: Prediction) -> Prediction:
        return prediction


class WholeImage(SceneOracle):
    """Says the right words and shows the whole image for every thing."""

    def change(self, prediction: Prediction) -> Prediction:
        segments = tuple(
            Segment(s.label, s.mask | ~s.mask, s.score, s.span) for s in prediction.segments
        )
        return Prediction(prediction.text, segments, prediction.question, prediction.size)


def evaluate(predictor: SceneOracle, **options):
    return evaluate_scenes(
        predictor, SPLIT, SEED, NUM_SCENES, dialogues_per_image=DIALOGUES, **options
    )


def test_true_answers_to_drawn_scenes_score_one():
    report = evaluate(SceneOracle())
    overall = {name: score.value for name, score in report.groups["overall"].scores.items()}
    assert overall == dict.fromkeys(DEFINITIONS, 1.0)
    assert report.num_scenes == NUM_SCENES
    assert report.num_concepts > NUM_SCENES
    assert report.to_dict()["split"] == SPLIT


def test_right_words_with_useless_masks_show_in_the_masks_alone():
    report = evaluate(WholeImage())
    headline = {name: score.value for name, score in report.headline().items()}
    assert headline["giou"] < 0.2
    assert headline["named_set_accuracy"] == headline["negatives_without_masks"] == 1
    assert headline["text_accuracy"] == 1
    assert headline["set_accuracy"] < 0.2


def test_the_same_seed_gives_the_same_report():
    first, second = (evaluate(WholeImage(), batch_size=size).to_dict() for size in (1, 64))
    for report in (first, second):
        report.pop("seconds_per_answer")
    assert json.dumps(first) == json.dumps(second)


def test_progress_hears_of_every_scene():
    heard = []
    evaluate(SceneOracle(), progress=lambda *told: heard.append(told))
    assert {done for done, _, _ in heard} == set(range(1, NUM_SCENES + 1))
    assert heard[-1] == (NUM_SCENES, NUM_SCENES, 1.0)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="no split 'tset'"):
        evaluate_scenes(SceneOracle(1), "tset")


def test_the_report_knows_the_kinds_of_the_data_set():
    assert {*SPACE_AND_SIZE_KINDS, *TEXT_KINDS, COUNTING_KIND, NEGATIVE_KIND} <= set(KINDS)
