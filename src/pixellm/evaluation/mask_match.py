"""The matches of a question: what each predicted and each true mask is worth.

A question with P predictions and G truths has max(P, G) matches: the pairs, and every mask left
over, missing or spurious, with IoU 0 and its area in the union. All strict scores are sums over
matches. Masks in, small numbers out; it knows nothing of texts, files or data sets.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pixellm.evaluation.boundary import boundary_iou
from pixellm.evaluation.matching import Pairs, match_by_iou
from pixellm.evaluation.metrics import QuestionScore
from pixellm.types import BoolMask


@dataclass(frozen=True, slots=True)
class MaskMatch:
    """A pair of masks, or one mask left over.

    Attributes:
        prediction: index of the predicted mask; None for a truth that was missed.
        truth: index of the true mask; None for a spurious prediction.
        iou: 0..1; 1 for a pair of empty masks, 0 for a mask left over.
        boundary_iou: likewise, of the boundary bands.
        intersection: in pixels.
        union: in pixels.
        truth_area: pixels of the true mask, 0 without one.
        score: the model's own score of the predicted mask; None without one.
    """

    prediction: int | None
    truth: int | None
    iou: float
    boundary_iou: float
    intersection: int
    union: int
    truth_area: int = 0
    score: float | None = None


def match_and_score(
    predictions: BoolMask,
    truths: BoolMask,
    scores: Sequence[float],
    pairs: Pairs | None = None,
) -> tuple[MaskMatch, ...]:
    """Score one question under the strict protocol.

    Args:
        predictions: (P, H, W) bool; P may be 0.
        truths: (G, H, W) bool; G may be 0.
        scores: the model's own score of each prediction.
        pairs: which prediction answers which truth, where that is known, as with given answers;
            the matching with the largest total IoU where None.

    Returns:
        The pairs in the order given, then spurious predictions, then missed truths.

    Raises:
        ValueError: the masks differ in size, or the scores in number.
        ImportError: scipy is missing.
    """
    if len(scores) != len(predictions):
        raise ValueError(f"There are {len(predictions)} predictions but {len(scores)} scores.")
    pairs = match_by_iou(predictions, truths) if pairs is None else pairs
    matches = [_score_pair(i, j, predictions[i], truths[j], scores[i]) for i, j in pairs]
    matched, found = {i for i, _ in pairs}, {j for _, j in pairs}
    for i in sorted(set(range(len(predictions))) - matched):
        matches.append(MaskMatch(i, None, 0.0, 0.0, 0, _area(predictions[i]), 0, scores[i]))
    for j in sorted(set(range(len(truths))) - found):
        matches.append(MaskMatch(None, j, 0.0, 0.0, 0, _area(truths[j]), _area(truths[j])))
    return tuple(matches)


def score_union(
    predictions: BoolMask, truths: BoolMask, scores: Sequence[float]
) -> tuple[MaskMatch, ...]:
    """Score a question by one mask: all predictions together against all truths together.

    That is how referring segmentation is scored (gRefCOCO; Liu et al., CVPR 2023). The score of
    the joined mask is the mean of its parts, weighted by area.

    Returns:
        One match, or none where neither side shows a pixel.

    Raises:
        ValueError, ImportError: as :func:`match_and_score`.
    """
    areas = [_area(mask) for mask in predictions]
    weights = [a * s for a, s in zip(areas, scores, strict=True)]
    first, second = _join(predictions), _join(truths)
    return match_and_score(first, second, [math.fsum(weights) / sum(areas)] if len(first) else [])


def reject_matches(
    matches: Sequence[MaskMatch], rejected: Collection[int]
) -> tuple[MaskMatch, ...]:
    """Matches after a judge found some predictions not to fit: their intersection is 0."""
    return tuple(
        replace(match, iou=0.0, boundary_iou=0.0, intersection=0)
        if match.prediction in rejected
        else match
        for match in matches
    )


def matches_to_score(matches: Sequence[MaskMatch]) -> QuestionScore:
    """The question's strict :class:`QuestionScore`."""
    pairs = [s for s in matches if s.prediction is not None and s.truth is not None]
    ious = tuple(match.iou for match in sorted(pairs, key=lambda match: match.prediction or 0))
    return QuestionScore(
        num_predictions=sum(match.prediction is not None for match in matches),
        num_truths=sum(match.truth is not None for match in matches),
        pair_ious=ious,
        iou_sum=math.fsum(ious),
        intersection=sum(match.intersection for match in matches),
        union=sum(match.union for match in matches),
    )


def _score_pair(i: int, j: int, prediction: BoolMask, truth: BoolMask, score: float) -> MaskMatch:
    common = int(np.count_nonzero(prediction & truth))
    either = int(np.count_nonzero(prediction | truth))
    iou = common / either if either else 1.0
    band_iou = boundary_iou(prediction, truth) if common or not either else 0.0
    return MaskMatch(i, j, iou, band_iou, common, either, _area(truth), float(score))


def _join(masks: BoolMask) -> BoolMask:
    """(1, H, W), the masks' union; (0, H, W) where they show nothing."""
    return np.logical_or.reduce(masks, axis=0, keepdims=True) if masks.any() else masks[:0]


def _area(mask: BoolMask) -> int:
    return int(np.count_nonzero(mask))
