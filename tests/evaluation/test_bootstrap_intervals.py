"""Bootstrap intervals: values, seeds, whole units, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from pixellm.evaluation.intervals import Difference, Estimate, bootstrap, estimate_ratios


def table(numerators, denominators):
    """(U, M, 2)."""
    tops = np.asarray(numerators, dtype=float)
    return np.stack([tops, np.broadcast_to(denominators, tops.shape)], axis=-1)


def test_the_value_is_the_ratio_of_sums():
    numerators = [[1, 2, 0], [0, 6, 0], [1, 0, 0]]
    denominators = [[1, 4, 0], [1, 8, 0], [1, 0, 0]]
    share, ratio, nothing = estimate_ratios(table(numerators, denominators))
    assert share.value == pytest.approx(2 / 3) and share.count == 3
    assert ratio.value == pytest.approx(8 / 12) and ratio.count == 12
    assert share.low <= share.value <= share.high
    assert nothing == Estimate(None, None, None, 0.0)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random((50, 1))
    rows = table(values, 1)
    assert estimate_ratios(rows, seed=3) == estimate_ratios(rows, seed=3)
    assert estimate_ratios(rows, seed=3) != estimate_ratios(rows, seed=4)


def test_the_interval_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(1).normal(0.5, 0.2, (400, 1))
    (estimate,) = estimate_ratios(table(values, 1), num_resamples=4000)
    error = values.std() / np.sqrt(len(values))
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_about_95_of_100_intervals_hold_the_true_mean():
    rng = np.random.default_rng(2)
    values = rng.random((60, 200)) < 0.3
    estimates = estimate_ratios(table(values, 1), num_resamples=500)
    covered = sum(estimate.low <= 0.3 <= estimate.high for estimate in estimates)
    assert 176 <= covered <= 199


def test_units_are_resampled_whole():
    # Ten questions in one image are one draw of luck, ten images are ten.
    apart = np.array([[0.0], [1.0]] * 5)
    together = np.concatenate([np.repeat(0.0, 5), np.repeat(1.0, 5)])[:, None]
    few = np.array([[0.0], [10.0]])
    (separate,) = estimate_ratios(table(apart, 1))
    (same,) = estimate_ratios(table(together, 1))
    (clustered,) = estimate_ratios(table(few, 10))
    assert same.high - same.low == pytest.approx(separate.high - separate.low, abs=0.11)
    assert clustered.high - clustered.low == 1 > separate.high - separate.low


def test_resamples_in_which_nothing_counts_are_left_out():
    denominators = np.zeros((200, 1))
    denominators[0] = 1
    (estimate,) = estimate_ratios(table(denominators * 0.7, denominators))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.7, 0.7, 0.7))


def test_an_estimate_reads_as_value_and_interval():
    (estimate,) = estimate_ratios(np.zeros((0, 1, 2)))
    assert estimate.value is None and str(estimate) == "-"
    assert str(Estimate(0.5, 0.25, 0.75, 4)) == "0.500 [0.250, 0.750]"


def test_unlike_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(units, scores, 2\)"):
        bootstrap([np.zeros((2, 1, 2)), np.zeros((3, 1, 2))])
    with pytest.raises(ValueError, match=r"\(units, scores, 2\)"):
        estimate_ratios(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="at least 1 resample"):
        estimate_ratios(np.zeros((2, 1, 2)), num_resamples=0)


def test_differences_are_paired_by_unit():
    hard = np.random.default_rng(3).random((40, 1))  # both models find the same images hard
    first, second = bootstrap([table(hard, 1), table(hard + 0.1, 1)])
    change = second.minus(first, 0)
    assert (change.value, change.low, change.high) == pytest.approx((0.1, 0.1, 0.1))
    assert change.share_not_above == 0
    assert first.estimate(0).high - first.estimate(0).low > 0.1
    assert str(change) == "+0.100 [+0.100, +0.100]"


def test_differences_without_a_score_have_no_value():
    first, second = bootstrap([table([[1.0]], 0), table([[1.0]], 1)])
    assert second.minus(first, 0) == Difference(None, None, None, None)


def test_several_seeds_are_drawn_too():
    images = np.full((30, 1), 0.5)
    seeds = np.stack([table(images - 0.2, 1), table(images + 0.2, 1)])
    several, one = bootstrap([seeds, table(images, 1)])
    assert several.value(0) == pytest.approx(0.5) == one.value(0)
    assert (one.estimate(0).low, one.estimate(0).high) == (0.5, 0.5)
    assert (several.estimate(0).low, several.estimate(0).high) == pytest.approx((0.3, 0.7))
