"""Matching of predicted to true masks, against brute force and hand-made ties."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from bit_masks import HEIGHT, WIDTH, mask_bits, masks_of, untimed
from hypothesis import given
from hypothesis import strategies as st

from pixellm.evaluation.matching import match_by_iou, match_by_released_cost
from pixellm.masks import pairwise_iou


def best_total_iou(predictions: np.ndarray, truths: np.ndarray) -> float:
    """The largest total IoU over all matchings, by trying them all."""
    iou = pairwise_iou(predictions, truths)
    if iou.shape[0] > iou.shape[1]:
        iou = iou.T
    rows = range(iou.shape[0])
    orders = permutations(range(iou.shape[1]), iou.shape[0])
    return max(sum(iou[i, order[i]] for i in rows) for order in orders)


@untimed
@given(st.lists(mask_bits, min_size=1, max_size=4), st.lists(mask_bits, min_size=1, max_size=4))
def test_the_total_iou_is_the_largest_there_is(predicted, true):
    predictions, truths = masks_of(*predicted), masks_of(*true)
    pairs = match_by_iou(predictions, truths)
    iou = pairwise_iou(predictions, truths)
    assert len(pairs) == min(len(predictions), len(truths))
    total = sum(iou[i, j] for i, j in pairs)
    assert total == pytest.approx(best_total_iou(predictions, truths), abs=1e-7)


def test_each_mask_is_matched_once():
    truths = masks_of(0b1111, 0b1111_0000)
    predictions = masks_of(0b1111_0001, 0b1111_0000)  # both overlap the second truth best
    assert match_by_iou(predictions, truths) == [(0, 0), (1, 1)]


def test_of_equal_totals_the_one_with_more_hits_is_taken():
    predictions = masks_of(0b10101111, 0b01100101)
    truths = masks_of(0b11010111, 0b10110101)
    np.testing.assert_allclose(pairwise_iou(predictions, truths), [[1 / 2, 4 / 7], [3 / 7, 1 / 2]])
    assert match_by_iou(predictions, truths) == [(0, 0), (1, 1)]
    assert match_by_iou(predictions[::-1], truths) == [(0, 1), (1, 0)]


def test_of_equal_totals_and_hits_the_one_with_more_common_pixels_is_taken():
    predictions = masks_of(0b00001010, 0b11001001)
    truths = masks_of(0b11001000, 0b11010101)
    np.testing.assert_allclose(pairwise_iou(predictions, truths), [[1 / 4, 0], [3 / 4, 1 / 2]])
    assert match_by_iou(predictions, truths) == [(0, 0), (1, 1)]
    assert match_by_iou(predictions[::-1], truths) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("num_predictions, num_truths", [(0, 0), (0, 3), (3, 0)])
def test_nothing_on_a_side_leaves_nothing_to_match(num_predictions, num_truths):
    predictions = np.ones((num_predictions, 2, 2), dtype=np.bool_)
    truths = np.ones((num_truths, 2, 2), dtype=np.bool_)
    assert match_by_iou(predictions, truths) == []
    assert match_by_released_cost(predictions.astype(np.float32), truths) == []


def test_masks_of_other_images_are_refused():
    with pytest.raises(ValueError, match="can't be compared"):
        match_by_iou(np.ones((1, 2, 2), np.bool_), np.ones((1, 3, 2), np.bool_))


def released_cost(logits: np.ndarray, truth: np.ndarray) -> float:
    """Cross-entropy and DICE of one pair, written out pixel by pixel."""
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    entropy = -np.where(truth, np.log(probability), np.log(1 - probability)).mean()
    overlap = (probability * truth).sum()
    return entropy + 1 - (2 * overlap + 1) / (probability.sum() + truth.sum() + 1)


def test_the_released_matching_has_the_least_cost():
    rng = np.random.default_rng(5)
    for _ in range(20):
        logits = rng.normal(0, 3, (3, HEIGHT, WIDTH)).astype(np.float32)
        truths = rng.random((4, HEIGHT, WIDTH)) < 0.4
        cost = np.array([[released_cost(p, g) for g in truths] for p in logits])
        orders = list(permutations(range(4), 3))
        best = orders[np.argmin([cost[range(3), order].sum() for order in orders])]
        assert match_by_released_cost(logits, truths) == list(enumerate(best))


def test_the_released_matching_stands_extreme_logits():
    logits = np.array([[[1e4, -1e4]], [[-1e4, 1e4]]], dtype=np.float32)
    truths = np.array([[[False, True]], [[True, False]]])
    assert match_by_released_cost(logits, truths) == [(0, 1), (1, 0)]
