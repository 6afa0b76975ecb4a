"""Bootstrap intervals: values, seeds, whole units, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from pixellm.evaluation.intervals import Estimate, estimate_ratios


def test_the_value_is_the_ratio_of_sums():
    numerators = [[1, 2, 0], [0, 6, 0], [1, 0, 0]]
    denominators = [[1, 4, 0], [1, 8, 0], [1, 0, 0]]
    share, ratio, nothing = estimate_ratios(numerators, denominators)
    assert share.value == pytest.approx(2 / 3) and share.count == 3
    assert ratio.value == pytest.approx(8 / 12) and ratio.count == 12
    assert share.low <= share.value <= share.high
    assert nothing == Estimate(None, None, None, 0.0)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random((50, 1))
    ones = np.ones_like(values)
    assert estimate_ratios(values, ones, seed=3) == estimate_ratios(values, ones, seed=3)
    assert estimate_ratios(values, ones, seed=3) != estimate_ratios(values, ones, seed=4)


def test_the_interval_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(1).normal(0.5, 0.2, (400, 1))
    (estimate,) = estimate_ratios(values, np.ones_like(values), num_resamples=4000)
    error = values.std() / np.sqrt(len(values))
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_about_95_of_100_intervals_hold_the_true_mean():
    rng = np.random.default_rng(2)
    values = rng.random((60, 200)) < 0.3
    estimates = estimate_ratios(values, np.ones_like(values), num_resamples=500)
    covered = sum(estimate.low <= 0.3 <= estimate.high for estimate in estimates)
    assert 176 <= covered <= 199


def test_units_are_resampled_whole():
    # Ten questions in one image are one draw of luck, ten images are ten.
    apart = np.array([[0.0], [1.0]] * 5)
    together = np.concatenate([np.repeat(0.0, 5), np.repeat(1.0, 5)])[:, None]
    few = np.array([[0.0], [10.0]])
    (separate,) = estimate_ratios(apart, np.ones_like(apart))
    (same,) = estimate_ratios(together, np.ones_like(together))
    (clustered,) = estimate_ratios(few, np.full_like(few, 10))
    assert same.high - same.low == pytest.approx(separate.high - separate.low, abs=0.11)
    assert clustered.high - clustered.low == 1 > separate.high - separate.low


def test_resamples_in_which_nothing_counts_are_left_out():
    denominators = np.zeros((200, 1))
    denominators[0] = 1
    (estimate,) = estimate_ratios(denominators * 0.7, denominators)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.7, 0.7, 0.7))


def test_no_units_at_all():
    (estimate,) = estimate_ratios(np.zeros((0, 1)), np.zeros((0, 1)))
    assert estimate.value is None and str(estimate) == "-"


def test_an_estimate_reads_as_value_and_interval():
    assert str(Estimate(0.5, 0.25, 0.75, 4)) == "0.500 [0.250, 0.750]"


def test_unlike_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(units, scores\)"):
        estimate_ratios(np.zeros((2, 1)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="at least 1 resample"):
        estimate_ratios(np.zeros((2, 1)), np.zeros((2, 1)), num_resamples=0)
