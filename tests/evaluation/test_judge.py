from __future__ import annotations

import pytest
from hand_made_scenes import APPLE, CUP
from judged_answers import QUESTIONS, fruit_record, item_of, silent_record

from pixellm.evaluation.judge import (
    JudgeItem,
    JudgeSettings,
    SimilarityJudge,
    describe_targets,
    open_judge,
    phrase_similarity,
)
from pixellm.evaluation.judgement import judge_records
from pixellm.evaluation.metrics import sum_matches
from pixellm.types import Turn


def test_masks_in_the_text_give_way_to_descriptions_of_what_they_matched() -> None:
    item = item_of(fruit_record("the pears", spurious=True))
    assert item.descriptions == ("The apple", "the pear", None)
    assert (
        item.described_answer()
        == "the apple [1: The apple] and the pears [2: the pear]. Also a dog"
    )


def test_targets_are_described_as_the_true_answer_speaks_of_them() -> None:
    turn = Turn("What?", "Use the sharp thing {seg} and the big apple {seg}.", (CUP, APPLE))
    assert describe_targets(turn) == ("the sharp thing (cup)", "the big apple")


def test_square_brackets_of_the_texts_are_no_marks() -> None:
    item = JudgeItem("Which?", "the cup [9: all] here", ((0, 7),), ("a [blue]\ncup",))
    assert item.described_answer() == "the cup [1: a blue\ncup] 9: all here"


def test_each_mask_needs_a_description_or_none() -> None:
    with pytest.raises(ValueError, match="1 phrases has 0 descriptions"):
        JudgeItem("q", "a", ((0, 1),), ())


@pytest.mark.parametrize(
    ("first", "second", "similarity"),
    [
        ("the apple", "an apple", 1.0),
        ("the red cups", "red cup", 1.0),
        ("the left apple", "apple", 2 / 3),
        ("the apple", "the banana on the left", 0.0),
        ("it", "", 0.0),
        ("the", "the", 0.0),
    ],
)
def test_phrases_are_compared_by_the_words_that_they_share(
    first: str, second: str, similarity: float
) -> None:
    assert phrase_similarity(first, second) == pytest.approx(similarity)
    assert phrase_similarity(second, first) == pytest.approx(similarity)


def test_a_mask_whose_words_speak_of_something_else_counts_with_intersection_0() -> None:
    right, wrong = fruit_record(), fruit_record("the hammer", spurious=True)
    judgement = judge_records(SimilarityJudge(), [right, wrong, silent_record()], QUESTIONS)
    kept, rejected, silent = (sum_matches(record.matches) for record in judgement.records)
    assert kept == sum_matches(right.matches)
    before = sum_matches(wrong.matches)
    assert before.pair_ious == (1.0, 1.0)
    assert rejected.pair_ious == (1.0, 0.0)
    assert rejected.intersection == before.intersection - 64
    assert rejected.union == before.union
    assert silent == sum_matches(silent_record().matches)
    assert judgement.summary == {
        "judge": "similarity",
        "threshold": 3.0,
        "masks_rated": 4,
        "masks_rejected": 1,
        "answers_without_verdict": 0,
    }


def test_a_threshold_of_1_rejects_nothing_that_matched() -> None:
    record = fruit_record("the hammer")
    assert judge_records(SimilarityJudge(), [record], QUESTIONS, 1.0).records == (record,)


def test_no_judge_and_the_similarity_judge_need_no_server() -> None:
    assert open_judge(JudgeSettings("none")) is None
    assert isinstance(open_judge(JudgeSettings("similarity")), SimilarityJudge)


@pytest.mark.parametrize(
    ("kind", "threshold", "says"),
    [
        ("human", 3.0, "none, similarity or llm"),
        ("similarity", 0.5, "from 1 to 10"),
        ("similarity", 11, "1 to 10"),
    ],
)
def test_settings_off_the_scale_are_refused(kind: str, threshold: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        JudgeSettings(kind, threshold)  # type: ignore[arg-type]
