"""Reports on scenes: predictors of known skill get the scores they deserve."""

from __future__ import annotations

import json

import pytest
from hand_made_scenes import (
    Oracle,
    Shuffler,
    Silent,
    Sprayer,
    make_scene,
    name_object,
    with_segments,
)

from pixellm.evaluation.scenes import score_answer, score_dialogues
from pixellm.evaluation.scenes_report import DEFINITIONS, ScenesReport, build_report
from pixellm.types import Prediction, Turn

SCENES = [make_scene(i) for i in range(4)]


def report_of(predictor: Oracle, batch_size: int = 3) -> ScenesReport:
    answers = score_dialogues(predictor, SCENES, name_object, batch_size)
    return build_report(answers, "test", 0)


def values(report: ScenesReport, group: str = "overall") -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in report.groups[group].scores.items()}


def test_true_answers_score_one_everywhere():
    report = report_of(Oracle(SCENES))
    assert values(report) == dict.fromkeys(DEFINITIONS, 1.0)
    for estimate in report.headline().values():
        assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)
    assert (report.num_scenes, len(report.answers), report.num_concepts) == (4, 20, 3)


def test_silence_is_right_only_where_nothing_is_asked_for():
    report = report_of(Silent(SCENES))
    scores = values(report)
    zero = (
        "giou",
        "ciou",
        "set_accuracy",
        "named_set_accuracy",
        "recall",
        "t_acc",
        "text_accuracy",
    )
    assert all(scores[name] == 0 for name in zero)
    assert scores["precision"] is None
    assert scores["n_acc"] == 1
    assert scores["giou_with_no_target"] == pytest.approx(2 / 7)  # per scene 5 matches, 2 silences


def test_spurious_masks_are_paid_for():
    report = report_of(Sprayer(SCENES))
    scores = values(report)
    # Per scene: matches of questions with targets 3 + 2 + 3, five of them right.
    assert scores["giou"] == pytest.approx(5 / 8)
    assert scores["ciou"] == pytest.approx(5 / 8)
    assert scores["giou_with_no_target"] == pytest.approx(5 / 10)
    assert scores["precision"] == pytest.approx(5 / 10)
    assert scores["recall"] == scores["t_acc"] == scores["text_accuracy"] == 1
    assert scores["set_accuracy"] == scores["named_set_accuracy"] == scores["n_acc"] == 0


def test_the_order_of_segments_does_not_matter():
    assert values(report_of(Shuffler(SCENES))) == dict.fromkeys(DEFINITIONS, 1.0)


def test_right_names_with_wrong_masks_and_the_other_way_round():
    class Misplaced(Oracle):
        def change(self, prediction: Prediction) -> Prediction:
            moved = [type(s)(s.label, ~s.mask, s.score, s.span) for s in prediction.segments]
            return with_segments(prediction, moved)

    class Misnamed(Oracle):
        def change(self, prediction: Prediction) -> Prediction:
            renamed = [type(s)("a dog", s.mask, s.score, s.span) for s in prediction.segments]
            return with_segments(prediction, renamed)

    misplaced, misnamed = values(report_of(Misplaced(SCENES))), values(report_of(Misnamed(SCENES)))
    assert (misplaced["set_accuracy"], misplaced["named_set_accuracy"]) == (0, 1)
    assert (misnamed["set_accuracy"], misnamed["named_set_accuracy"]) == (1, 0)
    assert misnamed["giou"] == 1


def test_a_concept_must_be_named_as_often_as_asked():
    class Doubler(Oracle):
        def change(self, prediction: Prediction) -> Prediction:
            return with_segments(prediction, prediction.segments[:1] * len(prediction.segments))

    scores = values(report_of(Doubler(SCENES)))
    assert scores["named_set_accuracy"] == pytest.approx(1 / 3)  # only the single-target question


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
    turn = Turn("how many cups?", "There is one.", (), kind)
    score = score_answer(0, turn, Prediction(answer, (), turn.question, (16, 24)), 0.1, name_object)
    assert score.ratios()["text_accuracy"] == (is_right, 1)


def test_text_is_compared_without_case_and_punctuation():
    class Shouter(Oracle):
        def change(self, prediction: Prediction) -> Prediction:
            text = prediction.text.upper().replace(".", " !")
            return Prediction(text, prediction.segments, prediction.question, prediction.size)

    assert values(report_of(Shouter(SCENES)))["text_accuracy"] == 1


def test_groups_by_kind_and_number_of_targets():
    report = report_of(Sprayer(SCENES))
    assert list(report.groups) == [
        "overall",
        "space and size",
        "kind category",
        "kind counting",
        "kind follow_up",
        "kind half",
        "kind negative",
        "targets 0",
        "targets 1",
        "targets 2",
    ]
    numbers = {name: group.num_questions for name, group in report.groups.items()}
    assert numbers["overall"] == 20
    assert (numbers["targets 0"], numbers["targets 1"], numbers["targets 2"]) == (8, 4, 8)
    assert values(report, "targets 1")["giou"] == pytest.approx(1 / 2)
    assert values(report, "kind category")["giou"] == pytest.approx(2 / 3)
    assert report.headline()["space_and_size_giou"].value == pytest.approx(1 / 2)
    assert values(report, "kind negative")["giou"] is None


def test_scores_do_not_depend_on_the_batch_size():
    one, many = report_of(Sprayer(SCENES), 1), report_of(Sprayer(SCENES), 7)
    assert one.groups == many.groups
    assert [a.question for a in one.answers] == [a.question for a in many.answers]


def test_the_report_is_json_and_explains_itself():
    written = json.loads(json.dumps(report_of(Silent(SCENES)).to_dict(), allow_nan=False))
    assert (written["mode"], written["protocol"]) == ("free", "strict")
    assert written["headline"]["giou"] == {"value": 0, "low": 0, "high": 0, "count": 20}
    assert set(written["groups"]["overall"]["scores"]) == set(written["definitions"])
    assert written["num_questions"] == 20


def test_the_table_has_a_row_for_every_group():
    report = report_of(Sprayer(SCENES))
    header, *rows = report.table()
    assert [row[0] for row in rows] == list(report.groups)
    assert {len(row) for row in rows} == {len(header)}
    overall = dict(zip(header, rows[0], strict=True))
    assert overall["gIoU"] == "0.625 [0.625, 0.625]"
    assert overall["recall"] == overall["text"] == "1.000"
    assert overall["set accuracy"] == overall["right names"] == "0.000 [0.000, 0.000]"
    negative = dict(zip(header, rows[list(report.groups).index("kind negative")], strict=True))
    assert (negative["gIoU"], negative["N-acc"]) == ("-", "0.000")


def test_progress_counts_scenes_up_to_the_last():
    heard = []
    score_dialogues(Oracle(SCENES), SCENES, name_object, 4, lambda *told: heard.append(told))
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert heard[-1] == (4, 1.0)


def test_an_empty_evaluation_has_no_scores():
    report = build_report([], "test", 0)
    assert values(report) == dict.fromkeys(DEFINITIONS)
    assert report.headline()["negatives_without_masks"].value is None
