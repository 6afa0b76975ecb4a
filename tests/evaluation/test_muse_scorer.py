"""The MUSE scorer: hand-computed tables, properties, and the released code's own numbers."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from bit_masks import HEIGHT, WIDTH, mask_bits, masks_of, untimed
from hypothesis import given
from hypothesis import strategies as st

from pixellm.evaluation.matching import match_by_released_cost
from pixellm.evaluation.metrics import MuseScorer, score_masks, score_masks_as_released

NOTHING = np.zeros((0, HEIGHT, WIDTH), dtype=np.bool_)


def scores_of(*images: list, protocol: str = "strict") -> dict[str, float | None]:
    scorer = MuseScorer(protocol)
    for questions in images:
        scorer.update(questions)
    return scorer.compute()


# One image with three questions and one with a single question, by hand:
#   1. two truths of 4 pixels; predictions: one exact, one with 2 of 4 pixels and 2 outside.
#   2. one truth of 6 pixels; predictions: 3 of those, and a spurious one of 2 pixels.
#   3. no truth, no prediction.        4. (other image) two truths, 4 and 2 pixels; silence.
HAND_IMAGES = (
    [
        (masks_of(0b1111, 0b1100_0011_0000), masks_of(0b1111, 0b1111_0000)),
        (masks_of(0b111, 0b1100_0000_0000), masks_of(0b11_1111)),
        (NOTHING, NOTHING),
    ],
    [(NOTHING, masks_of(0b1111, 0b11_0000))],
)


def test_strict_scores_of_a_hand_computed_table():
    matches = [1, 2 / 6, 3 / 6, 0, 0, 0]  # of the three questions with targets
    intersection, union = 4 + 2 + 3, (4 + 6) + (6 + 2) + (4 + 2)
    expected = {
        "giou": (sum(matches) + 1) / (len(matches) + 1),
        "giou_targets": sum(matches) / len(matches),
        "ciou": intersection / union,
        "ciou_targets": intersection / union,
        "precision": 2 / 4,
        "recall": 2 / 5,
        "set_accuracy": 1 / 4,
        "set_accuracy_targets": 0 / 3,
        "n_acc": 1.0,
        "t_acc": 2 / 3,
        "num_images": 2,
        "num_questions": 4,
        "num_predictions": 4,
        "num_targets": 5,
    }
    assert scores_of(*HAND_IMAGES) == pytest.approx(expected)


def test_logits_are_thresholded_at_zero():
    logits = np.full((1, HEIGHT, WIDTH), -3.0, dtype=np.float16)
    logits[0, 0, :2] = 0.25
    logits[0, 1] = 0.0  # not positive
    assert scores_of([(logits, masks_of(0b1111))])["giou"] == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    "predicted, true, iou_sum, num_matches, union",
    [
        ((0,), (0,), 1, 1, 0),  # nothing shown where nothing is visible
        ((0,), (0b1111,), 0, 1, 4),
        ((0b11,), (0,), 0, 1, 2),
        ((0b1111, 0), (0b1111,), 1, 2, 4),  # an empty extra mask is still a wrong answer
        ((0b1111,), (0b1111, 0), 1, 2, 4),
    ],
)
def test_empty_masks(predicted, true, iou_sum, num_matches, union):
    score = score_masks(masks_of(*predicted), masks_of(*true))
    assert (score.iou_sum, score.num_matches, score.union) == (iou_sum, num_matches, union)


def test_without_questions_or_targets_there_are_no_such_scores():
    for protocol in ("strict", "released"):
        scores = scores_of(protocol=protocol)
        assert scores["giou"] is None and scores["n_acc"] is None
        assert scores["num_questions"] == 0
    scores = scores_of([(NOTHING, NOTHING)], [([], [])])
    assert scores["giou"] == scores["set_accuracy"] == scores["n_acc"] == 1
    assert scores["giou_targets"] is None and scores["t_acc"] is None


def test_a_judge_turns_down_predictions_after_matching():
    predictions, truths = masks_of(0b1111, 0b1111_0000), masks_of(0b1111, 0b1111_0000)
    scores = scores_of([(predictions, truths, [2.5, 3.0])])
    assert scores["giou"] == pytest.approx(0.5)
    assert scores["ciou"] == pytest.approx(4 / 8)
    assert scores["set_accuracy"] == 0
    lenient = MuseScorer("strict", judge_threshold=2)
    lenient.update([(predictions, truths, [2.5, 3.0])])
    assert lenient.compute()["giou"] == 1


@pytest.mark.parametrize(
    "question, message",
    [
        ((np.ones((1, 2, 2)), np.ones((1, 2, 3))), "same image"),
        ((np.ones((2, 2)), np.ones((1, 2, 2))), r"\(P, H, W\)"),
        ((np.full((1, 2, 2), np.nan), np.ones((1, 2, 2))), "not finite"),
        ((np.ones((1, 2, 2)), np.ones((1, 2, 2)), [1.0, 2.0]), "rates each"),
    ],
)
def test_malformed_questions_are_refused(question, message):
    with pytest.raises(ValueError, match=message):
        MuseScorer().update([question])


def test_unknown_and_unlike_protocols_are_refused():
    with pytest.raises(ValueError, match="'strict' or 'released'"):
        MuseScorer("lenient")
    with pytest.raises(ValueError, match="can't take over"):
        MuseScorer("strict").merge(MuseScorer("released"))


questions = st.tuples(st.lists(mask_bits, max_size=4), st.lists(mask_bits, max_size=4))


@untimed
@given(
    st.lists(questions, min_size=2, max_size=6), st.data(), st.sampled_from(["strict", "released"])
)
def test_merged_scorers_equal_a_single_one(images, data, protocol):
    arrays = [[(masks_of(*p).astype(np.float32) * 6 - 3, masks_of(*g))] for p, g in images]
    single, left, right = (MuseScorer(protocol) for _ in range(3))
    for image in arrays:
        single.update(image)
        data.draw(st.sampled_from([left, right])).update(image)
    right.merge(pickle.loads(pickle.dumps(left)))  # as it comes from another process
    assert right.compute() == single.compute()


# --- the released protocol ---------------------------------------------------------------------


def test_most_spurious_area_goes_unpunished_when_released():
    truth = masks_of(0b1111)
    logits = np.stack([np.where(truth[0], 5.0, -5.0), np.full((HEIGHT, WIDTH), 9.0)])
    score = score_masks_as_released(logits.astype(np.float32), truth)
    assert score.iou_sum == 2 and score.union == 4, "it even counts as right"
    assert score_masks(logits > 0, truth).iou_sum == 1
    logits[1, 2, 3] = 0.7  # the only pixel of the spurious mask that the histogram sees
    strict = scores_of([(logits, truth)])
    released = scores_of([(logits, truth)], protocol="released")
    assert (strict["giou"], strict["ciou"]) == pytest.approx((0.5, 4 / 16))
    assert (released["giou"], released["ciou"]) == pytest.approx((0.5, 4 / 5), abs=1e-5)


def test_released_matches_are_counted_per_image():
    # One question misses a truth, the other adds a mask: 2 + 1 matches, but max(2, 2) = 2.
    full = np.full((1, HEIGHT, WIDTH), -5.0)
    first, second = full.copy(), full.copy()
    first[0, 0], second[0, 1] = 5.0, 0.7
    truth = masks_of(0b1111)
    questions = [(np.concatenate([first, second]), truth), (np.zeros((0, HEIGHT, WIDTH)), truth)]
    assert scores_of(questions)["giou"] == pytest.approx(1 / 3)
    assert scores_of(questions, protocol="released")["giou"] == pytest.approx(1 / 2, abs=1e-5)


def test_released_scores_need_logits():
    with pytest.raises(ValueError, match="raw logits"):
        scores_of([(masks_of(1), masks_of(1))], protocol="released")


# --- parity with the released code -------------------------------------------------------------


@pytest.fixture(scope="module")
def released_run():
    """Per image the questions and the released code's figures, and its overall scores."""
    folder = Path(os.environ.get("PIXELLM_PARITY_DIR", "")) / "released_metrics"
    if not folder.is_dir():
        pytest.skip(f"no parity data at {folder}; set PIXELLM_PARITY_DIR to compare")
    from safetensors.numpy import load_file

    figures = json.loads((folder / "metrics.json").read_text())
    tensors = load_file(folder / "metrics.safetensors")
    images = []
    for row in figures["images"]:
        ends = [np.cumsum(row[f"{side}_per_question"])[:-1] for side in ("pred", "gt")]
        logits = np.split(tensors[f"image{row['image']}.pred_logits"], ends[0])
        truths = np.split(tensors[f"image{row['image']}.gt"], ends[1])
        images.append((list(zip(logits, truths, strict=True)), row))
    return images, figures["released"]


def test_released_giou_and_ciou_are_reproduced(released_run):
    images, expected = released_run
    scores = scores_of(*(questions for questions, _ in images), protocol="released")
    assert scores["giou"] == pytest.approx(expected["val/giou"], abs=1e-6)
    assert scores["ciou"] == pytest.approx(expected["val/ciou"], abs=1e-6)


def test_released_matching_is_identical(released_run):
    images, _ = released_run
    for questions, row in images:
        matches = []
        for (logits, truths), expected in zip(questions, row["assign_indice"], strict=True):
            pairs = match_by_released_cost(logits.astype(np.float32), truths)
            assert [prediction for prediction, _ in pairs] == expected
            matches.extend(
                [
                    (np.sum((logits[i] > 0) & truths[j]), np.sum((logits[i] > 0) | truths[j]))
                    for i, j in pairs
                ]
            )
            # Missed truths and spurious predictions follow the pairs of their question.
            matches.extend([None] * (max(len(logits), len(truths)) - len(pairs)))
        counted = row["intersection_union"]
        assert len(matches) == len(counted)
        for match, reference in zip(matches, counted, strict=True):
            assert reference[0] == 0 if match is None else list(match) == reference


def test_released_pixels_are_identical_image_by_image(released_run):
    images, _ = released_run
    for questions, row in images:
        scores = [score_masks_as_released(p.astype(np.float32), g) for p, g in questions]
        pixels = np.sum(row["intersection_union"], axis=0)
        assert [
            sum(s.intersection for s in scores),
            sum(s.union for s in scores),
        ] == pixels.tolist()
        mean = sum(score.iou_sum for score in scores) / row["max_num"]
        assert mean == pytest.approx(row["released_giou_sum_over_max"], abs=1e-6)
