"""Bootstrap intervals for scores that are a sum divided by a sum.

Every score here (gIoU, cIoU, accuracies) is a ratio of sums over units, a unit being what was
drawn independently: an image with all its questions. Resampling whole units keeps the
questions of an image together, as they share its difficulty. What several models answered about
the same units is resampled together, so that differences are paired. It knows nothing of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
"""Share of the resampled scores inside an interval."""

_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score with the ends of its interval, None where it has no value.

    Attributes:
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


@dataclass(frozen=True, slots=True)
class Difference:
    """How much a score changes from a first run to a second one, with the ends of the interval.

    Attributes:
        value: second minus first; None where either has no score.
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


@dataclass(frozen=True, slots=True)
class Resampled:
    """M scores of one model, and what they are in R resamples.

    Attributes:
        tops: (M,) summed numerators.
        bottoms: (M,) summed denominators.
        resamples: (R, M) scores; NaN where a resample holds nothing that counts.
    """

    tops: NDArray[np.float64]
    bottoms: NDArray[np.float64]
    resamples: NDArray[np.float64]

    def estimate(self, score: int) -> Estimate:
        """One score with its interval."""
        low, high = _ends(self.resamples[:, score])
        value, count = self.value(score), float(self.bottoms[score])
        if value is None or low is None:
            return Estimate(None, None, None, count)
        return Estimate(value, low, high, count)

    def minus(self, other: Resampled, score: int) -> Difference:
        """How much higher the score is than another model's over the same units."""
        changes = self.resamples[:, score] - other.resamples[:, score]
        low, high = _ends(changes)
        value, before = self.value(score), other.value(score)
        if value is None or before is None or low is None:
            return Difference(None, None, None, None)
        seen = changes[np.isfinite(changes)]
        return Difference(value - before, low, high, float((seen <= 0).mean()))

    def value(self, score: int) -> float | None:
        """One score; None where nothing counts towards it."""
        bottom = self.bottoms[score]
        return float(self.tops[score] / bottom) if bottom else None


def bootstrap(
    models: Sequence[ArrayLike], *, num_resamples: int = 2000, seed: int = 0
) -> list[Resampled]:
    """Resample the scores of several models over the same units (Efron, 1979).

    A model that was trained several times is resampled on two levels: its seeds are drawn with
    replacement too, for each model on its own.

    Args:
        models: per model (U, M, 2), what each of U units adds to numerator and denominator of
            each of M scores, 0 and 0 where a score leaves it out; or (S, U, M, 2) for S seeds.
        num_resamples: how often U units are drawn with replacement.
        seed: the same seed and input give the same resamples.

    Raises:
        ValueError: tables over other units, or no resamples are asked.
    """
    tables = [np.asarray(one, dtype=np.float64) for one in models]
    tables = [table[None] if table.ndim == 3 else table for table in tables]
    if len({table.shape[1:] for table in tables}) > 1 or {t.ndim for t in tables} - {4}:
        shapes = ", ".join(str(table.shape) for table in tables)
        raise ValueError(f"The models need (units, scores, 2) tables of the same shape: {shapes}.")
    if num_resamples < 1:
        raise ValueError(f"An interval needs at least 1 resample, not {num_resamples}.")
    rng = np.random.default_rng(seed)
    summed = _resample_units(tables, num_resamples, rng)
    found = []
    for table, sums in zip(tables, summed, strict=True):
        size = len(table)
        drawn = rng.multinomial(size, np.full(size, 1 / size), size=num_resamples)
        total = np.einsum("rs,rsmk->rmk", drawn, sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            resamples = total[..., 0] / total[..., 1]
        whole = table.sum(axis=(0, 1))
        found.append(Resampled(whole[:, 0], whole[:, 1], resamples))
    return found


def estimate_ratios(
    table: ArrayLike, *, num_resamples: int = 2000, seed: int = 0
) -> list[Estimate]:
    """Scores with percentile bootstrap intervals, all on the same resamples, in order.

    A share of exactly 0 or 1 gets an interval of no width: the bootstrap knows only what it saw.
    The table is (U, M, 2) of one model; it, the seed and the errors are those of :func:`bootstrap`.
    """
    (resampled,) = bootstrap([table], num_resamples=num_resamples, seed=seed)
    return [resampled.estimate(score) for score in range(len(resampled.tops))]


def _resample_units(
    tables: Sequence[NDArray[np.float64]], num_resamples: int, rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Per model (num_resamples, S, M, 2) sums over drawn units."""
    sums = [np.zeros((num_resamples, len(one), *one.shape[2:])) for one in tables]
    num_units = tables[0].shape[1] if tables else 0
    if not num_units:
        return sums
    shares = np.full(num_units, 1 / num_units)
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, num_resamples - start)
        # How often each unit is drawn, rather than which: one product then sums every score.
        draws = rng.multinomial(num_units, shares, size=size)
        for table, out in zip(tables, sums, strict=True):
            flat = table.reshape(*table.shape[:2], -1)
            products = np.stack([draws @ one for one in flat], axis=1)
            out[start : start + size] = products.reshape(size, *out.shape[1:])
    return sums


def _ends(resamples: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    seen = resamples[np.isfinite(resamples)]
    if not seen.size:
        return None, None
    low, high = np.quantile(seen, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
