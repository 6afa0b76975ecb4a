"""What predicted masks are worth against true ones: matches, the MUSE score, strict and released.

A question with P predictions and G truths has max(P, G) matches: the pairs, and every mask left
over, missing or spurious, with IoU 0 and its area in the union. All scores are ratios of sums over
matches, so scorers of several processes merge exactly. Masks in, small numbers out; it knows
nothing of texts or data sets, and a judge's ratings are taken as numbers.

gIoU is the mean IoU, cIoU the summed intersection over the summed union (Ren et al., CVPR 2024,
section 5). N-acc and T-acc are those of generalized referring segmentation (Liu et al., CVPR
2023): the share of questions without targets answered without masks, and the share of questions
with targets answered with at least one. Boundary IoU is that of Cheng et al., CVPR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pixellm.evaluation.intervals import Estimate, estimate_ratios
from pixellm.evaluation.matching import (
    HIT_IOU,
    Pairs,
    import_scipy,
    match_by_iou,
    match_by_released_cost,
)
from pixellm.masks import mask_to_box
from pixellm.types import BoolMask

Protocol = Literal["strict", "released"]
Ratio = tuple[float, float]
"""(numerator, denominator): what a question or image adds to a score."""

Question = tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike]
"""(predictions (P, H, W), truths (G, H, W)) and, optionally, a judge's P ratings."""

BAND_SHARE = 0.02
"""Width of a mask's boundary band, as a share of the image's diagonal."""

# The release guards its divisions with these; they show in the seventh digit of its numbers.
_RELEASED_COUNT_GUARD = 1e-5
_RELEASED_UNION_GUARD = 1e-10


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

    @property
    def is_pair(self) -> bool:
        """Whether a prediction was matched to a truth."""
        return self.prediction is not None and self.truth is not None


@dataclass(frozen=True, slots=True)
class QuestionScore:
    """What one question adds to the scores.

    Attributes:
        num_predictions: masks in the answer, P.
        num_truths: masks asked for, G.
        pair_ious: IoU of each matched pair, in the order of the predictions; 1 where both masks
            are empty, 0 where a judge rejected the answer.
        iou_sum: sum over the question's max(P, G) matches, by the rules of the protocol.
        intersection: pixels, summed over matches.
        union: pixels, summed over matches.
    """

    num_predictions: int
    num_truths: int
    pair_ious: tuple[float, ...]
    iou_sum: float
    intersection: int
    union: int

    @property
    def num_matches(self) -> int:
        """How many IoUs the question has: the matched pairs and everything left over."""
        return max(self.num_predictions, self.num_truths)

    @property
    def num_hits(self) -> int:
        """Truths found, with an IoU of at least 0.5."""
        return sum(iou >= HIT_IOU for iou in self.pair_ious)

    @property
    def is_exact(self) -> bool:
        """Every truth found and nothing else shown; without truths, no mask at all."""
        return self.num_hits == self.num_truths == self.num_predictions


def match_masks(
    predictions: BoolMask,
    truths: BoolMask,
    scores: Sequence[float] | None = None,
    pairs: Pairs | None = None,
    *,
    boundaries: bool = True,
) -> tuple[MaskMatch, ...]:
    """Match the masks of one question under the strict protocol.

    Args:
        predictions: (P, H, W) bool; P may be 0.
        truths: (G, H, W) bool; G may be 0.
        scores: the model's own score of each prediction; 1 where None.
        pairs: which prediction answers which truth, where that is known, as with given answers;
            the matching with the largest total IoU where None.
        boundaries: whether to measure boundary IoU, which takes most of the time; 0 where not.

    Returns:
        The pairs in the order given, then spurious predictions, then missed truths.

    Raises:
        ValueError: the masks differ in size, or the scores in number.
    """
    scores = [1.0] * len(predictions) if scores is None else scores
    if len(scores) != len(predictions):
        raise ValueError(f"There are {len(predictions)} predictions but {len(scores)} scores.")
    pairs = match_by_iou(predictions, truths) if pairs is None else pairs
    matches = []
    for i, j in pairs:
        common = int(np.count_nonzero(predictions[i] & truths[j]))
        either = int(np.count_nonzero(predictions[i] | truths[j]))
        iou = common / either if either else 1.0
        seen = boundaries and (common or not either)
        band = boundary_iou(predictions[i], truths[j]) if seen else 0.0
        area, score = _area(truths[j]), float(scores[i])
        matches.append(MaskMatch(i, j, iou, band, common, either, area, score))
    matched, found = {i for i, _ in pairs}, {j for _, j in pairs}
    for i in sorted(set(range(len(predictions))) - matched):
        matches.append(MaskMatch(i, None, 0.0, 0.0, 0, _area(predictions[i]), 0, scores[i]))
    for j in sorted(set(range(len(truths))) - found):
        matches.append(MaskMatch(None, j, 0.0, 0.0, 0, _area(truths[j]), _area(truths[j])))
    return tuple(matches)


def match_union(
    predictions: BoolMask, truths: BoolMask, scores: Sequence[float]
) -> tuple[MaskMatch, ...]:
    """Match one mask, if there is any: all predictions together against all truths together.

    That is how referring segmentation is scored (gRefCOCO; Liu et al., CVPR 2023). The score of the
    joined mask is the mean of its parts, weighted by area.
    """
    areas = [_area(mask) for mask in predictions]
    weights = [a * s for a, s in zip(areas, scores, strict=True)]
    first, second = _join(predictions), _join(truths)
    return match_masks(first, second, [math.fsum(weights) / sum(areas)] if len(first) else [])


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


def sum_matches(matches: Sequence[MaskMatch]) -> QuestionScore:
    """The question's strict :class:`QuestionScore`."""
    pairs = sorted((one for one in matches if one.is_pair), key=lambda one: one.prediction or 0)
    ious = tuple(match.iou for match in pairs)
    return QuestionScore(
        num_predictions=sum(match.prediction is not None for match in matches),
        num_truths=sum(match.truth is not None for match in matches),
        pair_ious=ious,
        iou_sum=math.fsum(ious),
        intersection=sum(match.intersection for match in matches),
        union=sum(match.union for match in matches),
    )


def score_masks(
    predictions: BoolMask, truths: BoolMask, rejected: Iterable[int] = ()
) -> QuestionScore:
    """Score one question under the strict protocol: (P, H, W) and (G, H, W) bool; P and G may be 0.

    Predictions in ``rejected``, which a judge found not to fit, have IoU 0, after matching.
    """
    matches = match_masks(predictions, truths, boundaries=False)
    return sum_matches(reject_matches(matches, frozenset(rejected)))


def score_masks_as_released(
    logits: NDArray[np.float32], truths: BoolMask, rejected: Iterable[int] = ()
) -> QuestionScore:
    """Score one question as the released code does, its defect included.

    A prediction that matches nothing is not thresholded there: its raw logits go through a
    two-bin histogram over [0, 1]. Only pixels with logits in [0.5, 1] reach the union, and a mask
    without such a pixel even counts as a correct "nothing here" with IoU 1.

    Args:
        logits: (P, H, W) finite mask logits.
        truths: (G, H, W) bool.
        rejected: predictions that a judge found not to fit; their IoU is 0, after matching.
    """
    pairs = match_by_released_cost(logits, truths)
    matches = match_masks(logits > 0, truths, pairs=pairs, boundaries=False)
    counted = [match for match in matches if match.truth is not None]
    score = sum_matches(reject_matches(counted, frozenset(rejected)))
    spurious = [
        int(np.count_nonzero((logits[match.prediction] >= 0.5) & (logits[match.prediction] <= 1.0)))
        for match in matches
        if match.truth is None
    ]
    return replace(
        score,
        num_predictions=len(logits),
        iou_sum=score.iou_sum + spurious.count(0),
        union=score.union + sum(spurious),
    )


def boundary_iou(prediction: BoolMask, truth: BoolMask) -> float:
    """IoU of the boundary bands of two (H, W) masks; two empty masks agree, which is 1."""
    if prediction.shape != truth.shape:
        raise ValueError(
            f"Masks of {prediction.shape} and {truth.shape} can't be compared; "
            "bring both to the size of the image."
        )
    first, second = boundary_band(prediction), boundary_band(truth)
    union = _area(first | second)
    return _area(first & second) / union if union else 1.0


def boundary_band(mask: BoolMask) -> BoolMask:
    """Pixels of a (H, W) mask within the band's width of its outline or the image's edge."""
    x, y, width, height = mask_to_box(mask)
    if width == 0:
        return mask
    reach = max(1, round(BAND_SHARE * math.hypot(*mask.shape)))
    part = (slice(y, y + height), slice(x, x + width))
    band = np.zeros_like(mask)
    band[part] = mask[part] & ~_erode(mask[part], reach)
    return band


def strict_ratios(score: QuestionScore) -> dict[str, Ratio]:
    """What one question adds to each strict score, as (numerator, denominator)."""
    has_targets = score.num_truths > 0
    has_no_mask = score.num_predictions == 0
    giou = (score.iou_sum, score.num_matches) if score.num_matches else (1.0, 1.0)
    ciou = (score.intersection, score.union)
    exact = (float(score.is_exact), 1.0)
    nothing = (0.0, 0.0)
    return {
        "giou": giou,
        "ciou": ciou,
        "giou_targets": giou if has_targets else nothing,
        "ciou_targets": ciou if has_targets else nothing,
        "precision": (score.num_hits, score.num_predictions),
        "recall": (score.num_hits, score.num_truths),
        "set_accuracy": exact,
        "set_accuracy_targets": exact if has_targets else nothing,
        "n_acc": nothing if has_targets else (float(has_no_mask), 1.0),
        "t_acc": (float(not has_no_mask), 1.0) if has_targets else nothing,
    }


def released_ratios(image: Sequence[QuestionScore]) -> dict[str, Ratio]:
    """What the questions about one image add to gIoU and cIoU under the released protocol.

    Matches are counted there per image, max(P, G) over all its questions together.
    """
    num_predictions = sum(score.num_predictions for score in image)
    num_truths = sum(score.num_truths for score in image)
    return {
        "giou": (math.fsum(score.iou_sum for score in image), max(num_predictions, num_truths)),
        "ciou": (sum(score.intersection for score in image), sum(score.union for score in image)),
    }


class MuseScorer:
    """Collects the questions of a data set and computes the MUSE scores.

    *strict*: logits are thresholded at 0, predictions are matched to truths by total IoU, and
    each mask left over, missing or spurious, is one IoU of 0 with its area in the union. gIoU is
    the mean over all max(P, G) matches of all questions. A question without targets that is
    answered without masks counts as one IoU of 1.

    *released*: the numbers of the released code, for comparison with published ones; see
    :func:`score_masks_as_released`. Matches are counted there per image, max(P, G) over all its
    questions together. Precision, recall and accuracies are those of the strict protocol on the
    released matching.

    Example:
        >>> scorer = MuseScorer("strict")
        >>> scorer.update([([[[True, False]]], [[[True, True]]])])  # one question, P = G = 1
        >>> scorer.compute()["giou"]
        0.5

    Args:
        protocol: "strict" or "released".
        judge_threshold: a prediction rated below it counts with intersection 0; used where
            questions come with ratings.

    Raises:
        ValueError: another protocol.
    """

    def __init__(self, protocol: Protocol = "strict", judge_threshold: float = 3.0) -> None:
        if protocol not in ("strict", "released"):
            raise ValueError(f"The protocol is 'strict' or 'released', not {protocol!r}.")
        self.protocol = protocol
        self.judge_threshold = judge_threshold
        self._images: list[tuple[QuestionScore, ...]] = []

    def update(self, questions: Sequence[Question]) -> None:
        """Add all questions about one image.

        Args:
            questions: per question the mask logits (P, H, W), or bool masks under the strict
                protocol, and the true masks (G, H, W); P and G may be 0. Optionally P ratings of
                a judge.

        Raises:
            ValueError: shapes that don't fit, logits that are not finite, or bool predictions
                under the released protocol.
        """
        self._images.append(tuple(self._score(question) for question in questions))

    def merge(self, other: MuseScorer) -> None:
        """Take over the images of a scorer that saw other images.

        Raises:
            ValueError: the scorers follow different rules.
        """
        rules = self.protocol, self.judge_threshold
        if rules != (other.protocol, other.judge_threshold):
            raise ValueError(
                f"A scorer with {rules} (protocol, judge threshold) can't take over one with "
                f"{(other.protocol, other.judge_threshold)}."
            )
        self._images.extend(other._images)

    def compute(self) -> dict[str, float | None]:
        """The scores of all questions so far; None where nothing counts towards a score.

        Returns:
            ``giou`` and ``ciou`` over all questions; ``precision`` and ``recall`` of masks at
            IoU 0.5; ``set_accuracy``, the share of questions with every truth found and nothing
            else shown; ``n_acc`` and ``t_acc``. The strict protocol adds ``giou_targets``,
            ``ciou_targets`` and ``set_accuracy_targets``, over questions with targets only.
            ``num_images``, ``num_questions``, ``num_predictions`` and ``num_targets`` count.
        """
        columns: dict[str, list[Ratio]] = {}
        for image in self._images:
            for name, ratio in self._image_ratios(image).items():
                columns.setdefault(name, []).append(ratio)
        scores = {name: self._divide(name, ratios) for name, ratios in columns.items()}
        return {**dict.fromkeys(self._image_ratios(())), **scores, **self._counts()}

    def estimate(self, *, num_resamples: int = 2000, seed: int = 0) -> dict[str, Estimate]:
        """The scores with bootstrap intervals over images; see :func:`estimate_ratios`."""
        names = list(self._image_ratios(()))
        rows = [self._image_ratios(image) for image in self._images]
        table = np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
        table = table.reshape(len(rows), len(names), 2)
        estimates = estimate_ratios(table, num_resamples=num_resamples, seed=seed)
        return dict(zip(names, estimates, strict=True))

    def _score(self, question: Question) -> QuestionScore:
        predictions, truths = _check_masks(question[0], question[1])
        rejected = self._rejected(question, len(predictions))
        if self.protocol == "strict":
            return score_masks(predictions > 0, truths, rejected)
        if predictions.dtype == np.bool_ and predictions.size:
            raise ValueError(
                "The released protocol scores raw logits; give logits, or use 'strict' for masks."
            )
        return score_masks_as_released(predictions.astype(np.float32), truths, rejected)

    def _rejected(self, question: Question, num_predictions: int) -> list[int]:
        if len(question) == 2:
            return []
        ratings = np.asarray(question[2], dtype=np.float64)
        if ratings.shape != (num_predictions,):
            raise ValueError(
                f"A judge rates each of the {num_predictions} predictions once; "
                f"the ratings are {ratings.shape}."
            )
        return np.flatnonzero(ratings < self.judge_threshold).tolist()

    def _image_ratios(self, image: Sequence[QuestionScore]) -> dict[str, Ratio]:
        zero = dict.fromkeys(strict_ratios(QuestionScore(0, 0, (), 0.0, 0, 0)), (0.0, 0.0))
        ratios = add_ratios(zero, *(strict_ratios(score) for score in image))
        if self.protocol == "strict":
            return ratios
        ratios |= released_ratios(image)
        return {name: r for name, r in ratios.items() if not name.endswith("_targets")}

    def _divide(self, name: str, ratios: Sequence[Ratio]) -> float | None:
        top = math.fsum(numerator for numerator, _ in ratios)
        bottom = math.fsum(denominator for _, denominator in ratios)
        if bottom == 0:
            return None
        if self.protocol == "released":
            bottom += {"giou": _RELEASED_COUNT_GUARD, "ciou": _RELEASED_UNION_GUARD}.get(name, 0)
        return top / bottom

    def _counts(self) -> dict[str, float]:
        scores = [score for image in self._images for score in image]
        return {
            "num_images": len(self._images),
            "num_questions": len(scores),
            "num_predictions": sum(score.num_predictions for score in scores),
            "num_targets": sum(score.num_truths for score in scores),
        }


def add_ratios(*ratios: Mapping[str, Ratio]) -> dict[str, Ratio]:
    """Sum ratios by name, numerators and denominators each for themselves."""
    return {
        name: (
            math.fsum(ratio[name][0] for ratio in ratios),
            math.fsum(ratio[name][1] for ratio in ratios),
        )
        for name in ratios[0]
    }


def _join(masks: BoolMask) -> BoolMask:
    """(1, H, W), the masks' union; (0, H, W) where they show nothing."""
    return np.logical_or.reduce(masks, axis=0, keepdims=True) if masks.any() else masks[:0]


def _area(mask: BoolMask) -> int:
    return int(np.count_nonzero(mask))


def _erode(mask: BoolMask, reach: int) -> BoolMask:
    """Pixels whose (2 reach + 1) x (2 reach + 1) neighbourhood lies in the mask."""
    ndimage = import_scipy("ndimage")
    inner = mask.astype(np.uint8)
    for axis in (0, 1):  # a square's erosion is one along each axis
        inner = ndimage.minimum_filter1d(inner, 2 * reach + 1, axis=axis, mode="constant", cval=0)
    return inner.astype(np.bool_)


def _check_masks(predictions: ArrayLike, truths: ArrayLike) -> tuple[NDArray, BoolMask]:
    """Both as (count, H, W) arrays of one size; an empty list takes the size of the other."""
    arrays = [np.asarray(predictions), np.asarray(truths)]
    sizes = {array.shape[1:] for array in arrays if array.ndim == 3 and len(array)}
    size = sizes.pop() if sizes else (0, 0)
    if sizes or any(array.size and array.ndim != 3 for array in arrays):
        raise ValueError(
            f"Predictions {arrays[0].shape} and truths {arrays[1].shape} must be "
            "(P, H, W) and (G, H, W) over the same image."
        )
    first, second = (a if len(a) and a.ndim == 3 else np.zeros((0, *size), bool) for a in arrays)
    if first.dtype != np.bool_ and not np.isfinite(first).all():
        raise ValueError("The mask logits hold values that are not finite.")
    return first, second != 0
