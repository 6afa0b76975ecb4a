"""What answers add to each score of a report, as ratios of sums.

Records in, (numerator, denominator) pairs by name out; whoever sums them over images gets every
score with its interval. It knows nothing of files, models, tables or intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pixellm.evaluation.mask_match import MaskMatch, matches_to_score
from pixellm.evaluation.matching import HIT_IOU
from pixellm.evaluation.metrics import Protocol, Ratio, add_ratios, strict_ratios
from pixellm.evaluation.naming import count_named
from pixellm.evaluation.plain_answers import TEXT_KINDS, is_text_right
from pixellm.evaluation.records import AnswerRecord

Unit = Literal["slots", "union"]
"""What counts as one IoU: each mask, matched, or all masks of a question joined."""

Mode = Literal["free", "forced"]
"""Answers written by the model, or given to it, so that it draws the masks alone."""

IOU_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)

SCORES = {
    "giou": "mean IoU over all matches; a missing or spurious mask is 0, none where nothing was "
    "asked for is 1",
    "ciou": "summed intersection over summed union of the same matches",
    "giou_targets": "gIoU over questions that have targets",
    "ciou_targets": "cIoU over questions that have targets",
    "strict_giou": "gIoU under the strict protocol, beside the released one",
    "strict_ciou": "cIoU under the strict protocol, beside the released one",
    "union_giou": "mean IoU of all masks of an answer joined, against all targets joined",
    "union_ciou": "summed intersection over summed union of the joined masks",
    **{
        f"p@{level}": f"matches with IoU >= {level}, of all matches; where an answer's masks are "
        "joined, of questions with targets"
        for level in IOU_LEVELS
    },
    "boundary_iou": "mean IoU of the masks' boundary bands (2 % of the diagonal wide), over "
    "all matches",
    "precision": "masks shown that match a target at IoU >= 0.5",
    "recall": "targets matched at IoU >= 0.5",
    "set_accuracy": "questions with every target matched at IoU >= 0.5 and no spurious mask",
    "set_accuracy_targets": "set accuracy over questions that have targets",
    "n_acc": "questions without targets that are answered without masks",
    "t_acc": "questions with targets that are answered with at least one mask",
    "name_recall": "targets whose name is in a phrase of its own that carries a mask",
    "name_precision": "phrases with a mask that name a target of their own",
    "text_accuracy": "counting questions answered with the right number, and plain ones word for "
    "word, case and punctuation aside",
    "seconds": "per answer, its share of the time of its batch",
    "tokens": "per answer, those of the masks included",
}
"""Name -> meaning of every score. "Matches" are the pairs of predicted and true masks and all masks
left over; where a question is scored by its joined masks it has a single match."""

SIZE_SCORES = {
    "target_iou": "mean IoU over targets of that size; a missed one is 0",
    "target_recall": "targets of that size matched at IoU >= 0.5",
}
"""Likewise for groups of targets by size, in which a spurious mask has no place."""

SIZE_BINS = ((0.01, "< 1 %"), (0.04, "1-4 %"), (0.16, "4-16 %"), (math.inf, ">= 16 %"))
"""Upper end of a target's share of its image -> name of the group."""

NOT_SMALL = "all >= 1 %"
"""One more group of targets: all that are not of the smallest."""

TOPICS = {
    "left, right or largest": frozenset({"left", "right", "largest"}),
    "use and activity": frozenset({"use", "activity"}),
}
"""Name of a topic -> the kinds of questions that it joins."""

LARGE_TOPIC, LARGE_SHARE = "over 2 % asked for", 0.02
"""One more topic: questions whose targets cover more than this share of the image together."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How answers are turned into scores.

    Attributes:
        unit: what counts as one IoU.
        mode: how the answers came about; given texts are not judged, nor whether they hold masks.
        protocol: "released" takes gIoU and cIoU from the records' released scores.
    """

    unit: Unit
    mode: Mode
    protocol: Protocol


def image_ratios(records: Sequence[AnswerRecord], rules: Rules) -> dict[str, Ratio]:
    """What the questions about one image add to each of :data:`SCORES`.

    The released protocol counts matches per image, max(P, G) over all its questions together.
    """
    ratios = add_ratios(*(_question_ratios(record, rules) for record in records))
    if rules.protocol == "released" and rules.unit == "slots":
        for name in ("giou", "ciou"):
            ratios[f"strict_{name}"] = ratios[name]
            ratios[f"{name}_targets"] = (0.0, 0.0)  # the release makes no such distinction
        scores = [record.released for record in records if record.released is not None]
        num_slots = max(sum(s.num_predictions for s in scores), sum(s.num_truths for s in scores))
        ratios["giou"] = (math.fsum(score.iou_sum for score in scores), num_slots)
        ratios["ciou"] = (
            sum(score.intersection for score in scores),
            sum(score.union for score in scores),
        )
    return ratios


def size_ratios(records: Iterable[AnswerRecord]) -> dict[str, dict[str, Ratio]]:
    """Name of a size -> what the targets of that size add to :data:`SIZE_SCORES`."""
    sums: dict[str, list[float]] = {}
    for record in records:
        num_pixels = record.size[0] * record.size[1]
        for match in record.matches:
            for name in () if match.truth is None else size_bins(match.truth_area / num_pixels):
                row = sums.setdefault(name, [0.0, 0.0, 0.0])
                row[0] += match.iou
                row[1] += match.iou >= HIT_IOU
                row[2] += 1
    return {
        name: {"target_iou": (iou, count), "target_recall": (hits, count)}
        for name, (iou, hits, count) in sums.items()
    }


def size_bins(share: float) -> tuple[str, ...]:
    """All groups of a target that covers this share of its image."""
    own = size_bin(share)
    return (own,) if own == SIZE_BINS[0][1] else (own, NOT_SMALL)


def size_bin(share: float) -> str:
    """The group of a target by its size alone."""
    return next(name for limit, name in SIZE_BINS if share < limit)


def topics_of(record: AnswerRecord) -> list[str]:
    """The topics that a question belongs to."""
    topics = [name for name, kinds in TOPICS.items() if record.kind in kinds]
    asked = sum(match.truth_area for match in record.union)
    is_large = asked > LARGE_SHARE * record.size[0] * record.size[1]
    return [*topics, LARGE_TOPIC] if is_large else topics


def count_bin(num_targets: int) -> str:
    """The group of a question with that many targets."""
    if num_targets <= 3:
        return str(num_targets)
    return "4-5" if num_targets <= 5 else "6+"


def question_giou(record: AnswerRecord, unit: Unit) -> float:
    """The question's own mean IoU, for rankings; 1 for no mask where nothing was asked for."""
    matches = record.matches if unit == "slots" else record.union
    return math.fsum(match.iou for match in matches) / len(matches) if matches else 1.0


def _question_ratios(record: AnswerRecord, rules: Rules) -> dict[str, Ratio]:
    matches = record.matches if rules.unit == "slots" else record.union
    ratios = dict.fromkeys(SCORES, (0.0, 0.0)) | strict_ratios(matches_to_score(matches))
    if rules.unit == "slots":
        union = strict_ratios(matches_to_score(record.union))
        ratios |= {"union_giou": union["giou"], "union_ciou": union["ciou"]}
    # The code of generalized referring segmentation (ReLA) leaves out questions without targets.
    counted = matches if rules.unit == "slots" or record.targets else ()
    for level in IOU_LEVELS:
        ratios[f"p@{level}"] = (sum(match.iou >= level for match in counted), len(counted))
    ratios["boundary_iou"] = (math.fsum(match.boundary_iou for match in matches), len(matches))
    if rules.mode == "free":
        ratios |= _name_ratios(record) | _text_ratios(record)
    else:  # a given text shows masks exactly where some are asked for
        ratios |= {"n_acc": (0.0, 0.0), "t_acc": (0.0, 0.0)}
    ratios["seconds"] = (record.seconds, 1.0)
    ratios["tokens"] = (float(record.num_tokens), 1.0 if record.num_tokens else 0.0)
    return ratios


def _name_ratios(record: AnswerRecord) -> dict[str, Ratio]:
    phrases = [mask.label for mask in record.shown]
    named = count_named([target.name for target in record.targets], phrases)
    return {
        "name_recall": (named, len(record.targets)),
        "name_precision": (named, len(phrases)),
    }


def _text_ratios(record: AnswerRecord) -> dict[str, Ratio]:
    if record.kind not in TEXT_KINDS or record.targets:
        return {}
    return {
        "text_accuracy": (float(is_text_right(record.kind, record.expected, record.answer)), 1.0)
    }


def pooled_matches(records: Iterable[AnswerRecord], unit: Unit) -> list[MaskMatch]:
    """All matches of all questions, of the unit that a benchmark counts."""
    return [match for r in records for match in (r.matches if unit == "slots" else r.union)]
