"""The MUSE score, strict and as released, from masks to numbers.

Per question the predicted masks are matched to the true ones; a question leaves behind a small
:class:`QuestionScore` and its masks are forgotten. Scores are ratios of sums over those, so
scorers of several processes merge exactly. It knows nothing of texts, data sets or judges; the
ratings of a judge are taken as numbers.

gIoU is the mean IoU, cIoU the summed intersection over the summed union (Ren et al., CVPR 2024,
section 5). N-acc and T-acc are those of generalized referring segmentation (Liu et al., CVPR
2023): the share of questions without targets answered without masks, and the share of questions
with targets answered with at least one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pixellm.evaluation.intervals import Estimate, estimate_ratios
from pixellm.evaluation.matching import HIT_IOU, Pairs, match_by_iou, match_by_released_cost
from pixellm.types import BoolMask

Protocol = Literal["strict", "released"]
Ratio = tuple[float, float]
"""(numerator, denominator): what a question or image adds to a score."""

Question = tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike]
"""(predictions (P, H, W), truths (G, H, W)) and, optionally, a judge's P ratings."""

# The release guards its divisions with these; they show in the seventh digit of its numbers.
_RELEASED_COUNT_GUARD = 1e-5
_RELEASED_UNION_GUARD = 1e-10


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
    def num_slots(self) -> int:
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


def score_masks(
    predictions: BoolMask, truths: BoolMask, rejected: Iterable[int] = ()
) -> QuestionScore:
    """Score one question under the strict protocol.

    Args:
        predictions: (P, H, W) bool; P may be 0.
        truths: (G, H, W) bool; G may be 0.
        rejected: predictions that a judge found not to fit; their IoU is 0, after matching.

    Returns:
        The matches: matched pairs, and every mask left over as IoU 0 with its area in the union.

    Raises:
        ValueError: the masks differ in size.
        ImportError: scipy is missing.
    """
    pairs = match_by_iou(predictions, truths)
    ious, intersection, union = _score_pairs(predictions, truths, pairs, frozenset(rejected))
    union += _area_left_over(predictions, {pair[0] for pair in pairs})
    union += _area_left_over(truths, {pair[1] for pair in pairs})
    return QuestionScore(len(predictions), len(truths), ious, math.fsum(ious), intersection, union)


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

    Returns:
        The matches under those rules.

    Raises:
        ImportError: scipy is missing.
    """
    pairs = match_by_released_cost(logits, truths)
    ious, intersection, union = _score_pairs(logits > 0, truths, pairs, frozenset(rejected))
    missed = _area_left_over(truths, {pair[1] for pair in pairs})
    matched = {pair[0] for pair in pairs}
    spurious = [
        int(np.count_nonzero((mask >= 0.5) & (mask <= 1.0)))
        for i, mask in enumerate(logits)
        if i not in matched
    ]
    iou_sum = math.fsum(ious) + spurious.count(0)
    union += missed + sum(spurious)
    return QuestionScore(len(logits), len(truths), ious, iou_sum, intersection, union)


def strict_ratios(score: QuestionScore) -> dict[str, Ratio]:
    """What one question adds to each strict score, as (numerator, denominator)."""
    has_targets = score.num_truths > 0
    is_silent = score.num_predictions == 0
    giou = (score.iou_sum, score.num_slots) if score.num_slots else (1.0, 1.0)
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
        "n_acc": nothing if has_targets else (float(is_silent), 1.0),
        "t_acc": (float(not is_silent), 1.0) if has_targets else nothing,
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
            ImportError: scipy is missing.
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
            ``num_pictures``, ``num_questions``, ``num_predictions`` and ``num_targets`` count.
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
        estimates = estimate_ratios(
            table[..., 0], table[..., 1], num_resamples=num_resamples, seed=seed
        )
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
        num_predictions = sum(score.num_predictions for score in image)
        num_truths = sum(score.num_truths for score in image)
        iou_sum = math.fsum(score.iou_sum for score in image)
        ratios["giou"] = (iou_sum, max(num_predictions, num_truths))
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
            "num_pictures": len(self._images),
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


def _score_pairs(
    predictions: BoolMask, truths: BoolMask, pairs: Pairs, rejected: frozenset[int]
) -> tuple[tuple[float, ...], int, int]:
    """IoU of each pair, and their summed intersection and union in pixels."""
    ious, intersection, union = [], 0, 0
    for i, j in pairs:
        common = int(np.count_nonzero(predictions[i] & truths[j]))
        either = int(np.count_nonzero(predictions[i] | truths[j]))
        union += either
        if i in rejected:
            ious.append(0.0)
        else:
            intersection += common
            ious.append(common / either if either else 1.0)
    return tuple(ious), intersection, union


def _area_left_over(masks: BoolMask, matched: set[int]) -> int:
    return sum(int(np.count_nonzero(mask)) for i, mask in enumerate(masks) if i not in matched)


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
