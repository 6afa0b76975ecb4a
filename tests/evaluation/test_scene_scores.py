"""The benchmark of drawn scenes: predictors of known skill get the scores they deserve."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand_made_scenes import (
    Oracle,
    Shuffler,
    Silent,
    Sprayer,
    box_targets,
    make_scene,
    with_segments,
)
from known_answers import Knowing

from pixellm.evaluation.benchmarks import find_benchmark
from pixellm.evaluation.evaluate import BenchmarkRun, answer_freely, answer_questions, evaluate
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.scores import TEXT_KINDS, TOPICS, is_text_right, overlap_bin
from pixellm.evaluation.summary import Summary, summarize
from pixellm.scenes.questions import KINDS
from pixellm.types import Prediction, Segment

SCENES = [make_scene(i) for i in range(4)]
QUESTIONS = [sample for scene in SCENES for sample in scene]
RULES = find_benchmark("scenes").rules()


class Misplaced(Oracle):
    def change(self, prediction: Prediction) -> Prediction:
        return with_segments(
            prediction, [replace(one, mask=~one.mask) for one in prediction.segments]
        )


class Misnamed(Oracle):
    def change(self, prediction: Prediction) -> Prediction:
        return with_segments(
            prediction, [replace(one, label="a dog") for one in prediction.segments]
        )


class Doubler(Oracle):
    """Shows the first mask as often as masks are asked for."""

    def change(self, prediction: Prediction) -> Prediction:
        return with_segments(prediction, prediction.segments[:1] * len(prediction.segments))


class Shouter(Oracle):
    def change(self, prediction: Prediction) -> Prediction:
        return replace(prediction, text=prediction.text.upper().replace(".", " !"))


def summary_of(kind: type[Oracle], batch_size: int = 3) -> Summary:
    answers = answer_questions(answer_freely(kind(SCENES)), QUESTIONS, RULES, batch_size=batch_size)
    return summarize(answers.records, RULES)


PERFECT = dict.fromkeys(
    (
        *("giou", "ciou", "giou_targets", "ciou_targets", "set_accuracy", "set_accuracy_targets"),
        *("named_set_accuracy", "precision", "recall", "n_acc", "t_acc", "text_accuracy"),
    ),
    1.0,
)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Oracle, PERFECT),
        (Shuffler, PERFECT),
        (Shouter, PERFECT),
        (
            Silent,
            {
                **dict.fromkeys(PERFECT, 0.0),
                "precision": None,
                "n_acc": 1,
                "giou": 2 / 7,  # per scene 5 matches, 2 questions rightly left without masks
                "set_accuracy": 2 / 5,
            },
        ),
        (
            Sprayer,  # per scene 3 + 2 + 3 matches of questions with targets, five of them right
            {
                **PERFECT,
                **dict.fromkeys(("giou_targets", "ciou_targets"), 5 / 8),
                **dict.fromkeys(("giou", "ciou", "precision"), 5 / 10),
                **dict.fromkeys(("set_accuracy", "set_accuracy_targets"), 0),
                **dict.fromkeys(("named_set_accuracy", "n_acc"), 0),
            },
        ),
        (Misplaced, {"set_accuracy_targets": 0, "named_set_accuracy": 1, "text_accuracy": 1}),
        (Misnamed, {"set_accuracy_targets": 1, "named_set_accuracy": 0, "giou_targets": 1}),
        (Doubler, {"named_set_accuracy": 1 / 3}),  # only the question with a single target
    ],
)
def test_scores_by_hand(kind, expected):
    summary = summary_of(kind)
    found = {name: summary.score(name).value for name in expected}
    assert found == {n: v if v is None else pytest.approx(v) for n, v in expected.items()}
    assert summary.num_images == 4
    assert summary.num_questions == 20


def test_groups_by_kind_number_overlap_and_topic():
    summary = summary_of(Sprayer)
    assert {name: group.count for name, group in summary.groups.items()} == {
        "overall": 20,
        "targets 0": 8,
        "targets 1": 4,
        "targets 2": 8,
        "overlap apart": 8,
        "size >= 16 %": 20,
        "size all >= 1 %": 20,
        "topic over 2 % asked for": 12,
        "topic space and size": 4,
        **{f"kind {kind}": 4 for kind in ("category", "counting", "follow_up", "half", "negative")},
    }
    values = {"targets 1": 1 / 2, "kind category": 2 / 3, "topic space and size": 1 / 2}
    for group, value in values.items():
        assert summary.score("giou_targets", group).value == pytest.approx(value)
    assert summary.score("giou_targets", "kind negative").value is None


def test_scores_do_not_depend_on_the_batch_size_and_none_come_of_nothing():
    one, many = summary_of(Sprayer, 1), summary_of(Sprayer, 7)
    for summary in (one, many):
        for group in summary.groups.values():
            group.scores.pop("seconds", None)
    assert one == many
    assert summarize([], RULES).score("giou").value is None


@pytest.mark.parametrize(
    "kind, answer, is_right",
    [
        ("counting", "I count one.", True),
        ("counting", "1", True),
        ("counting", "There are two.", False),
        ("counting", "One, or two.", False),
        ("counting", "", False),
        ("plain", "there is ONE", True),
        ("plain", "I count one.", False),
    ],
)
def test_counting_needs_the_number_and_plain_questions_the_words(kind, answer, is_right):
    assert is_text_right(kind, "There is one.", answer) == is_right


@pytest.mark.parametrize(
    ("boxes", "name"),
    [
        ([], ""),
        ([(0, 0, 4, 4)], ""),
        ([(0, 0, 4, 4), (4, 0, 4, 4)], "apart"),
        ([(0, 0, 10, 4), (9, 0, 10, 4)], "close"),
        ([(0, 0, 4, 4), (2, 0, 8, 8)], "overlapping"),
        ([(0, 0, 10, 10), (2, 2, 3, 3), (20, 0, 2, 2)], "overlapping"),
    ],
)
def test_overlap_is_that_of_the_closest_two_boxes(boxes, name):
    targets = box_targets(boxes)
    for order in (targets, targets[::-1]):
        record = AnswerRecord(0, 0, 1, "s", "i", "k", "q", "e", "a", (20, 30), order, (), (), ())
        assert overlap_bin(record) == name


class WholeImage(Knowing):
    """Says the right words and shows the whole image for every thing."""

    def change(self, prediction: Prediction) -> Prediction:
        segments = [
            Segment(s.label, s.mask | ~s.mask, s.score, s.span) for s in prediction.segments
        ]
        return with_segments(prediction, segments)


@pytest.mark.parametrize("kind", [Knowing, WholeImage])
def test_drawn_scenes_go_the_way_of_every_benchmark(tmp_path, kind):
    run = BenchmarkRun("scenes", "oracle", seed=7, num_scenes=6, dialogues_per_image=5)
    heard: list[tuple[int, int, float | None]] = []
    evaluation = evaluate(
        run, tmp_path / "run", lambda: kind(run.open()), progress=lambda *told: heard.append(told)
    )
    values = {name: evaluation.summary.score(name).value for name in run.headline}
    if kind is Knowing:
        assert values == dict.fromkeys(run.headline, 1.0)
        assert heard[-1] == (len(evaluation.questions), len(evaluation.questions), 1.0)
    else:
        assert values["giou_targets"] < 0.2
        assert values["set_accuracy_targets"] < 0.2
        assert values["named_set_accuracy"] == values["text_accuracy"] == values["n_acc"] == 1
    assert evaluation.summary.num_images == 6

    again = evaluate(run, tmp_path / "run", lambda: pytest.fail("Everything is answered."))
    assert again.records == evaluation.records


def test_topics_and_text_kinds_are_kinds_of_the_scenes():
    assert {*TOPICS["space and size"], *TEXT_KINDS, "negative"} <= set(KINDS)


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no split 'tset'"):
        evaluate(BenchmarkRun("scenes", "m", "tset"), tmp_path / "run", lambda: None)
    assert not (tmp_path / "run").exists()
