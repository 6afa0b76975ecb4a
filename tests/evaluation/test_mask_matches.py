"""Matches, joined masks and boundary bands: hand-computed values and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
from bit_masks import HEIGHT, WIDTH, mask_bits, masks_of, untimed
from hypothesis import given
from hypothesis import strategies as st

from pixellm.evaluation.metrics import (
    boundary_band,
    boundary_iou,
    match_masks,
    match_union,
    reject_matches,
)

NOTHING = np.zeros((0, HEIGHT, WIDTH), dtype=np.bool_)
bits = st.lists(mask_bits, max_size=4)


def matches_of(predicted, true, pairs=None):
    return match_masks(masks_of(*predicted), masks_of(*true), [0.5] * len(predicted), pairs)


@untimed
@given(bits, bits)
def test_a_question_has_as_many_matches_as_the_longer_side(predicted, true):
    matches = matches_of(predicted, true)
    assert len(matches) == max(len(predicted), len(true))
    assert {s.prediction for s in matches} - {None} == set(range(len(predicted)))
    assert {s.truth for s in matches} - {None} == set(range(len(true)))


def test_given_pairs_are_kept_even_where_another_matching_is_better():
    crossed = matches_of((0b1100, 0b0011), (0b0011, 0b1100), pairs=[(0, 0), (1, 1)])
    assert [match.iou for match in crossed] == [0, 0]
    assert [match.iou for match in matches_of((0b1100, 0b0011), (0b0011, 0b1100))] == [1, 1]


def test_masks_left_over_keep_their_area_and_score():
    spurious, missed = (matches_of((0b111,), ())[0], matches_of((), (0b11,))[0])
    assert (spurious.union, spurious.truth_area, spurious.score) == (3, 0, 0.5)
    assert (missed.union, missed.truth_area, missed.score) == (2, 2, None)
    with pytest.raises(ValueError, match="1 predictions but 0 scores"):
        match_masks(masks_of(1), NOTHING, [])


def test_joined_masks_count_once():
    matches = match_union(masks_of(0b0011, 0b0110), masks_of(0b0001, 0b1000), [0.2, 0.8])
    assert len(matches) == 1
    assert (matches[0].intersection, matches[0].union) == (1, 4)
    assert matches[0].score == pytest.approx(0.5)


@pytest.mark.parametrize(
    "predicted, true, ious",
    [((), (), []), ((0,), (), []), ((), (0,), []), ((0,), (0b1,), [0]), ((0b1,), (0,), [0])],
)
def test_joined_masks_without_a_pixel_are_no_masks(predicted, true, ious):
    matches = match_union(masks_of(*predicted), masks_of(*true), [0.0] * len(predicted))
    assert [match.iou for match in matches] == ious


def test_a_judge_takes_intersections_away_and_leaves_unions():
    matches = matches_of((0b11, 0b1100), (0b11, 0b1100))
    judged = reject_matches(matches, {1})
    assert [(match.iou, match.intersection, match.union) for match in judged] == [
        (1, 2, 2),
        (0, 0, 2),
    ]


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((60, 80), dtype=np.bool_)  # diagonal 100 pixels, boundary band 2
    mask[top : top + side, left : left + side] = True
    return mask


def test_the_boundary_band_is_two_percent_of_the_diagonal_wide():
    band = boundary_band(square(10, 10, 20))
    assert band.sum() == 20 * 20 - 16 * 16
    assert not band[12:28, 12:28].any()
    assert boundary_band(square(0, 0, 20))[0, 0], "it follows the edge of the image"


def test_boundary_iou_is_harsher_than_iou_on_large_masks():
    truth, shifted = square(10, 10, 40), square(10, 12, 40)
    iou = (40 * 38) / (40 * 42)
    assert boundary_iou(truth, truth) == 1
    assert boundary_iou(shifted, truth) < iou - 0.3
    assert boundary_iou(square(10, 10, 5), square(40, 40, 5)) == 0


def test_boundary_iou_of_empty_masks():
    empty = np.zeros((60, 80), dtype=np.bool_)
    assert boundary_iou(empty, empty) == 1
    assert boundary_iou(empty, square(10, 10, 5)) == 0
    with pytest.raises(ValueError, match="can't be compared"):
        boundary_iou(empty, empty.T)
