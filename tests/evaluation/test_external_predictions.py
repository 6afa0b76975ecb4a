from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made_scenes import APPLE, CUP, PEAR, SIZE, cell_mask, make_scene, true_prediction
from hypothesis import given, settings
from hypothesis import strategies as st

from pixellm.evaluation.external import (
    ExternalPredictions,
    list_questions,
    question_to_json,
    read_marks,
    score_predictions,
)
from pixellm.evaluation.judge import JudgeSettings
from pixellm.masks import encode_mask

SAMPLES = [sample for number in range(3) for sample in make_scene(number)]


def true_lines(*, marks: bool = True) -> list[dict[str, Any]]:
    """A perfect system."""
    lines = []
    for sample in SAMPLES:
        for number, turn in enumerate(sample.turns):
            text = turn.answer if marks else true_prediction(turn).text
            masks = [target.mask for target in turn.targets]
            lines.append({"id": f"{sample.id}/{number}", "text": text, "masks": masks})
    return lines


def write(path: Path, lines: list[Any]) -> ExternalPredictions:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    return ExternalPredictions(path)


def test_a_perfect_system_scores_1_under_both_protocols(tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.jsonl", true_lines()[::-1])
    for protocol in ("strict", "released"):
        report = score_predictions(predictions, SAMPLES, protocol=protocol)
        for name in ("giou", "ciou", "precision", "recall", "set_accuracy", "n_acc", "t_acc"):
            assert report.scores[name].value == pytest.approx(1.0), (protocol, name)
        assert report.counts == {
            "num_pictures": 3,
            "num_questions": 15,
            "num_predictions": 15,
            "num_targets": 15,
            "num_missing": 0,
        }


def test_a_system_that_sprays_masks_scores_low_strictly_and_high_as_released(
    tmp_path: Path,
) -> None:
    lines = true_lines(marks=False)
    for line in lines:
        line["masks"] = [*line["masks"], encode_mask(cell_mask(1, 0))]
    predictions = write(tmp_path / "p.jsonl", lines)
    strict = score_predictions(predictions, SAMPLES).scores["giou"].value
    released = score_predictions(predictions, SAMPLES, protocol="released").scores["giou"].value
    assert strict == pytest.approx(15 / 30)
    assert released == pytest.approx(1.0)


def test_given_logits_decide_what_the_release_counts(tmp_path: Path) -> None:
    """The release counts a spurious pixel where its logit is in [0.5, 1], and only there."""
    lines = true_lines(marks=False)
    lines[1]["masks"] = [encode_mask(cell_mask(1, 0))]
    np.save(tmp_path / "timid.npy", np.where(cell_mask(1, 0)[None], 0.7, -1.0))
    lines[1]["logits"] = "timid.npy"
    timid = score_predictions(write(tmp_path / "p.jsonl", lines), SAMPLES, protocol="released")
    del lines[1]["logits"]
    bold = score_predictions(write(tmp_path / "p.jsonl", lines), SAMPLES, protocol="released")
    assert (timid.scores["giou"].value or 0) < (bold.scores["giou"].value or 0)


def test_scores_with_and_without_a_judge_are_both_given(tmp_path: Path) -> None:
    lines = true_lines()
    lines[0]["text"] = "The hammer {seg} and the pear {seg}."
    predictions = write(tmp_path / "p.jsonl", lines)
    report = score_predictions(predictions, SAMPLES, judge=JudgeSettings("text"))
    assert report.scores["giou"].value == 1.0
    # 15 targets are 15 slots and two questions of each scene without targets count 1 each
    assert report.judged["giou"].value == pytest.approx(20 / 21)
    assert report.judge["masks_rejected"] == 1
    assert [row[0] for row in report.table()][:2] == ["score", "giou"]
    assert "with judge text" in report.table()[0]
    json.dumps(report.to_dict())


def test_a_judge_needs_marks_in_the_texts(tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.jsonl", true_lines(marks=False))
    with pytest.raises(ValueError, match=r"no \{seg\} behind the phrase .* --judge none"):
        score_predictions(predictions, SAMPLES, judge=JudgeSettings("text"))


def test_missing_answers_are_refused_or_count_as_silence(tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.jsonl", true_lines()[1:])
    with pytest.raises(ValueError, match=r"answers 14 of 15 .* 'scene-0-0/0'"):
        score_predictions(predictions, SAMPLES)
    report = score_predictions(predictions, SAMPLES, allow_missing=True)
    assert report.counts["num_missing"] == 1
    assert report.scores["recall"].value == pytest.approx(13 / 15)


BAD_LINES = {
    "not JSON": ("{", "line 1 is not JSON"),
    "a list": ([1], 'line 1 must be an object with the question\'s "id"'),
    "no id": ({"masks": []}, '"id"'),
    "a typo": ({"id": "scene-0-0/0", "mask": []}, "unknown key 'mask'"),
    "no masks": ({"id": "scene-0-0/0", "text": "a"}, '"masks" must be a list'),
    "text is a number": ({"id": "scene-0-0/0", "text": 3, "masks": []}, '"text" must be'),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, case: str) -> None:
    line, says = BAD_LINES[case]
    path = tmp_path / "p.jsonl"
    path.write_text(line if isinstance(line, str) else json.dumps(line))
    with pytest.raises(ValueError, match=says):
        ExternalPredictions(path)


def test_two_answers_to_one_question_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2 answers 'a/0' again, after line 1"):
        write(tmp_path / "p.jsonl", [{"id": "a/0", "masks": []}] * 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"masks": [encode_mask(np.ones((4, 4), bool))]}, r"line 1: The mask is \(4, 4\)"),
        ({"masks": [{"size": [16, 24], "counts": "zz~~"}]}, "line 1"),
        ({"masks": [APPLE.mask], "logits": "none.npy"}, "no logits at"),
        ({"masks": [APPLE.mask], "logits": "flat.npy"}, r"holds \(3,\), the masks are"),
        ({"masks": [APPLE.mask], "logits": "pickle.npy"}, "no .npy file of numbers"),
        ({"masks": [APPLE.mask], "text": "a {seg} b {seg}"}, "2 {seg} marks for 1 masks"),
    ],
)
def test_masks_that_do_not_fit_are_refused_with_their_line(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    predictions = write(tmp_path / "p.jsonl", [{"id": "scene-0-0/0", **change}])
    with pytest.raises(ValueError, match=says):
        score_predictions(predictions, SAMPLES, allow_missing=True)


def test_an_answer_to_a_question_that_was_not_asked_is_refused(tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.jsonl", [*true_lines(), {"id": "no/0", "masks": []}])
    with pytest.raises(ValueError, match="line 16: there is no question 'no/0' among the 15"):
        score_predictions(predictions, SAMPLES)


def test_questions_for_others_hold_the_history_and_nothing_of_the_answer() -> None:
    sample = SAMPLES[2]
    told = question_to_json(sample, 1, "pictures/0.png")
    assert told == {
        "id": "scene-0-2/1",
        "image": "pictures/0.png",
        "width": SIZE[1],
        "height": SIZE[0],
        "question": "0: and the others?",
        "history": [["0: the left fruit?", "The apple is on the left."]],
    }
    assert [q.id for q in list_questions([sample])] == ["scene-0-2/0", "scene-0-2/1"]
    assert CUP.name not in json.dumps(told) and PEAR.name not in json.dumps(told)


def test_marks_become_spans_of_the_phrases_in_front_of_them() -> None:
    text, spans = read_marks("Use the big knife {seg} or a saw{seg}.")
    assert text == "Use the big knife or a saw."
    assert [text[a:b] for a, b in spans] == ["the big knife", "a saw"]


@given(st.text(max_size=30).filter(lambda text: "{seg}" not in text))
@settings(max_examples=50, deadline=None)
def test_text_without_marks_stays_as_it_is(text: str) -> None:
    assert read_marks(text) == (text, ())
