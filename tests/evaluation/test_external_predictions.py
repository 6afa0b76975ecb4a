from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made_scenes import APPLE, CUP, PEAR, SIZE, cell_mask, make_scene, true_prediction

from pixellm.evaluation.external import ExternalPredictions, question_to_json, score_predictions
from pixellm.evaluation.judge import SimilarityJudge
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.scores import Rules
from pixellm.evaluation.summary import summarize
from pixellm.masks import encode_mask

SAMPLES = [sample for number in range(3) for sample in make_scene(number)]


STRICT, RELEASED = (Rules("slots", "free", protocol) for protocol in ("strict", "released"))


def score(records: Sequence[AnswerRecord], name: str, rules: Rules = STRICT) -> float:
    value = summarize(list(records), rules).score(name).value
    assert value is not None
    return value


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


@pytest.mark.parametrize("rules", [STRICT, RELEASED])
def test_a_perfect_system_scores_1_under_both_protocols(tmp_path, rules):
    predictions = write(tmp_path / "p.jsonl", true_lines()[::-1])
    scored = score_predictions(predictions, SAMPLES, rules)
    for name in ("giou", "ciou", "precision", "recall", "set_accuracy", "n_acc", "t_acc"):
        assert score(scored.records, name, rules) == pytest.approx(1.0), name
    assert (len(scored.records), scored.num_missing, scored.judgement) == (15, 0, None)


def test_a_system_that_sprays_masks_scores_low_strictly_and_high_as_released(tmp_path):
    lines = true_lines(marks=False)
    for line in lines:
        line["masks"] = [*line["masks"], encode_mask(cell_mask(1, 0))]
    predictions = write(tmp_path / "p.jsonl", lines)
    records = score_predictions(predictions, SAMPLES, RELEASED).records
    assert score(records, "giou") == pytest.approx(15 / 30)
    assert score(records, "giou", RELEASED) == pytest.approx(1.0)


def test_given_logits_decide_what_the_release_counts(tmp_path):
    """The release counts a spurious pixel where its logit is in [0.5, 1], and only there."""
    lines = true_lines(marks=False)
    lines[1]["masks"] = [encode_mask(cell_mask(1, 0))]
    np.save(tmp_path / "timid.npy", np.where(cell_mask(1, 0)[None], 0.7, -1.0))
    lines[1]["logits"] = "timid.npy"
    timid = score_predictions(write(tmp_path / "p.jsonl", lines), SAMPLES, RELEASED)
    del lines[1]["logits"]
    bold = score_predictions(write(tmp_path / "p.jsonl", lines), SAMPLES, RELEASED)
    assert score(timid.records, "giou", RELEASED) < score(bold.records, "giou", RELEASED)


@pytest.mark.parametrize(("rules", "judged"), [(STRICT, 20 / 21), (RELEASED, 14 / 15)])
def test_scores_with_and_without_a_judge_are_both_given(tmp_path, rules, judged):
    """15 targets are 15 matches; strictly, 6 questions without targets count 1 each."""
    lines = true_lines()
    lines[0]["text"] = "The hammer {seg} and the pear {seg}."
    predictions = write(tmp_path / "p.jsonl", lines)
    scored = score_predictions(predictions, SAMPLES, rules, judge=SimilarityJudge())
    assert scored.judgement is not None
    assert score(scored.records, "giou", rules) == pytest.approx(1.0)
    assert score(scored.judgement.records, "giou", rules) == pytest.approx(judged)
    assert scored.judgement.summary["masks_rejected"] == 1


def test_scores_of_masks_are_their_confidence(tmp_path):
    lines = true_lines()
    lines[0]["scores"] = [0.25, 1]
    record = score_predictions(write(tmp_path / "p.jsonl", lines), SAMPLES, STRICT).records[0]
    assert [mask.score for mask in record.shown] == [0.25, 1.0]


def test_a_judge_needs_marks_in_the_texts(tmp_path):
    predictions = write(tmp_path / "p.jsonl", true_lines(marks=False))
    with pytest.raises(ValueError, match=r"no \{seg\} behind the phrase .* --judge none"):
        score_predictions(predictions, SAMPLES, STRICT, judge=SimilarityJudge())


def test_missing_answers_are_refused_or_count_as_silence(tmp_path):
    predictions = write(tmp_path / "p.jsonl", true_lines()[1:])
    with pytest.raises(ValueError, match=r"answers 14 of 15 .* 'scene-0-0/0'"):
        score_predictions(predictions, SAMPLES, STRICT)
    scored = score_predictions(predictions, SAMPLES, STRICT, allow_missing=True)
    assert scored.num_missing == 1
    assert score(scored.records, "recall") == pytest.approx(13 / 15)


BAD_LINES = {
    "not JSON": ("{", "line 1 is not JSON"),
    "a list": ([1], "line 1: A prediction is a JSON object"),
    "no id": ({"masks": []}, "lacks 'id'"),
    "a typo": ({"id": "a/0", "mask": [], "masks": []}, "unknown key 'mask'"),
    "no masks": ({"id": "a/0", "text": "a"}, "lacks 'masks'"),
    "masks are one": ({"id": "a/0", "masks": {}}, "masks should be a valid list"),
    "text is a number": ({"id": "a/0", "text": 3, "masks": []}, "text should be a valid string"),
    "a score of 2": ({"id": "a/0", "masks": [1], "scores": [2]}, "scores.0 should be less than"),
    "half an answer of ours": ({"row": 0, "id": "a/0", "segments": [{}]}, "image: field required"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named(tmp_path, case):
    line, says = BAD_LINES[case]
    path = tmp_path / "p.jsonl"
    path.write_text(line if isinstance(line, str) else json.dumps(line))
    with pytest.raises(ValueError, match=says):
        ExternalPredictions(path)


def test_two_answers_to_one_question_are_refused(tmp_path):
    with pytest.raises(ValueError, match="line 2 answers 'a/0' again, after line 1"):
        write(tmp_path / "p.jsonl", [{"id": "a/0", "masks": []}] * 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"masks": [encode_mask(np.ones((4, 4), bool))]}, r"line 1: The mask is \(4, 4\)"),
        ({"masks": [{"size": [16, 24], "counts": "zz~~"}]}, "line 1"),
        ({"masks": [5]}, "line 1"),
        ({"masks": ["polygon"]}, "line 1"),
        ({"masks": [APPLE.mask], "logits": "none.npy"}, "no logits at"),
        ({"masks": [APPLE.mask], "logits": "flat.npy"}, r"holds \(3,\), the masks are"),
        ({"masks": [APPLE.mask], "logits": "pickle.npy"}, "no .npy file of numbers"),
        ({"masks": [APPLE.mask], "scores": [1, 1]}, "2 scores for 1 masks"),
        ({"masks": [APPLE.mask], "text": "a {seg} b {seg}"}, "2 {seg} marks for 1 masks"),
    ],
)
def test_masks_that_do_not_fit_are_refused_with_their_line(tmp_path, change, says):
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    predictions = write(tmp_path / "p.jsonl", [{"id": "scene-0-0/0", **change}])
    with pytest.raises(ValueError, match=says):
        score_predictions(predictions, SAMPLES, STRICT, allow_missing=True)


def test_an_answer_to_a_question_that_was_not_asked_is_refused(tmp_path):
    predictions = write(tmp_path / "p.jsonl", [*true_lines(), {"id": "no/0", "masks": []}])
    with pytest.raises(ValueError, match="line 16: there is no question 'no/0' among the 15"):
        score_predictions(predictions, SAMPLES, STRICT)


def test_questions_for_others_hold_the_history_and_nothing_of_the_answer():
    sample = SAMPLES[2]
    told = question_to_json(sample, 1, "images/0.png")
    assert told == {
        "id": "scene-0-2/1",
        "image": "images/0.png",
        "width": SIZE[1],
        "height": SIZE[0],
        "question": "0: and the others?",
        "history": [["0: the left fruit?", "The apple is on the left."]],
    }
    assert CUP.name not in json.dumps(told) and PEAR.name not in json.dumps(told)


def test_each_mark_grounds_the_phrase_in_front_of_it(tmp_path):
    mask = encode_mask(np.ones(SIZE, dtype=np.bool_))
    line = {"id": "a", "text": "Use the big knife {seg} or a saw{seg}.", "masks": [mask, mask]}
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    answer = ExternalPredictions(path).predict("a", "Which?", SIZE)
    assert answer.text == "Use the big knife or a saw."
    assert [segment.label for segment in answer.segments] == ["the big knife", "a saw"]
