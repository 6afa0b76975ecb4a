"""Bootstrap intervals for scores that are a sum divided by a sum.

Every score here (gIoU, cIoU, accuracies) is a ratio of sums over units, a unit being what was
drawn independently: an image with all its questions. Resampling whole units keeps the
questions of an image together, as they share its difficulty. It knows nothing of masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score with its interval.

    Attributes:
        value: the score; None where nothing counts towards it.
        low: lower end of the interval, None where there is no value.
        high: upper end, likewise.
        count: the sum that the score was divided by: questions, matches or pixels.
    """

    value: float | None
    low: float | None
    high: float | None
    count: float

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "-"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate_ratios(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Estimate]:
    """Scores with percentile bootstrap intervals (Efron, 1979), all on the same resamples.

    A share of exactly 0 or 1 gets an interval of no width: the bootstrap knows only what it saw.

    Args:
        numerators: (U, M), what each of U units adds to the numerator of each of M scores.
        denominators: (U, M), likewise; all zero for a unit that a score leaves out.
        num_resamples: how often U units are drawn with replacement.
        seed: the same seed and input give the same intervals.
        level: share of the resampled scores inside the interval.

    Returns:
        One estimate per score, in order.

    Raises:
        ValueError: the two are not (U, M) arrays of the same shape, or no resamples are asked.
    """
    top = np.asarray(numerators, dtype=np.float64)
    bottom = np.asarray(denominators, dtype=np.float64)
    if top.ndim != 2 or top.shape != bottom.shape:
        raise ValueError(
            f"Numerators {top.shape} and denominators {bottom.shape} must both be (units, scores)."
        )
    if num_resamples < 1:
        raise ValueError(f"An interval needs at least 1 resample, not {num_resamples}.")
    resampled = _resample(top, bottom, num_resamples, np.random.default_rng(seed))
    tails = (1 - level) / 2, (1 + level) / 2
    return [_estimate(top[:, i], bottom[:, i], resampled[:, i], tails) for i in range(top.shape[1])]


@dataclass(frozen=True, slots=True)
class Difference:
    """How much a score changes from a first run to a second one.

    Attributes:
        value: second minus first; None where either has no score.
        low: lower end of the interval, None where there is no value.
        high: upper end, likewise.
        share_not_above: resamples in which the second run is not better; near 0 where it is
            better beyond chance, near 1 where it is worse.
    """

    value: float | None
    low: float | None
    high: float | None
    share_not_above: float | None

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "-"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def estimate_differences(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Difference]:
    """Differences of scores with paired bootstrap intervals.

    Both runs are resampled together, an image always with both its answers, so that what makes
    an image hard for either run cancels out.

    Args:
        first: numerators and denominators (U, M) of one run, as for :func:`estimate_ratios`.
        second: of the other run, the same units in the same order.
        num_resamples: how often U units are drawn with replacement.
        seed: the same seed and input give the same intervals.
        level: share of the resampled differences inside the interval.

    Raises:
        ValueError: arrays of different shapes.
    """
    tables = [np.asarray(part, dtype=np.float64) for run in (first, second) for part in run]
    if len({table.shape for table in tables}) != 1 or tables[0].ndim != 2:
        raise ValueError("Both runs need (units, scores) arrays of the same shape.")
    resampled = [
        _resample(tables[i], tables[i + 1], num_resamples, np.random.default_rng(seed))
        for i in (0, 2)
    ]
    tails = ((1 - level) / 2, (1 + level) / 2)
    sums = [table.sum(axis=0) for table in tables]
    return [
        _difference([s[m] for s in sums], resampled[1][:, m] - resampled[0][:, m], tails)
        for m in range(tables[0].shape[1])
    ]


def _difference(
    sums: list[float], changes: NDArray[np.float64], tails: tuple[float, float]
) -> Difference:
    seen = changes[np.isfinite(changes)]
    if not (sums[1] and sums[3] and seen.size):
        return Difference(None, None, None, None)
    low, high = np.quantile(seen, tails)
    value = float(sums[2] / sums[3] - sums[0] / sums[1])
    return Difference(value, float(low), float(high), float((seen <= 0).mean()))


def _resample(
    top: NDArray[np.float64],
    bottom: NDArray[np.float64],
    num_resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """(num_resamples, M) scores; NaN where a resample holds nothing that counts."""
    num_units = len(top)
    if num_units == 0:
        return np.full((num_resamples, top.shape[1]), np.nan)
    scores = []
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, num_resamples - start)
        # How often each unit is drawn, rather than which: one product then sums every score.
        draws = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=size)
        with np.errstate(invalid="ignore", divide="ignore"):
            scores.append((draws @ top) / (draws @ bottom))
    return np.concatenate(scores)


def _estimate(
    top: NDArray[np.float64],
    bottom: NDArray[np.float64],
    resampled: NDArray[np.float64],
    tails: tuple[float, float],
) -> Estimate:
    count = float(bottom.sum())
    seen = resampled[np.isfinite(resampled)]
    if count == 0 or seen.size == 0:
        return Estimate(None, None, None, count)
    low, high = np.quantile(seen, tails)
    return Estimate(float(top.sum() / count), float(low), float(high), count)
