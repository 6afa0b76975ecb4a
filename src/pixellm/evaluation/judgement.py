"""What a judge did to an evaluation: from ratings to rejected masks and scores.

Depends on: ``judge`` for the ratings and ``records`` for the scored answers; used by: runs of
benchmarks and predictions of other systems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pixellm.evaluation.judge import (
    DEFAULT_THRESHOLD,
    Judge,
    JudgeItem,
    Ratings,
    describe_targets,
)
from pixellm.evaluation.metrics import reject_matches
from pixellm.evaluation.records import AnswerRecord
from pixellm.llm.run import RequestProgress
from pixellm.types import Sample, Turn


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge did to an evaluation.

    Attributes:
        records: all answers; matches of rejected masks have intersection 0.
        items: what the judge was shown of every answer, in order.
        ratings: of every answer, in order.
        rejected: of every answer, the masks that are rated below the threshold.
        summary: see :func:`summarise_ratings`.
    """

    records: tuple[AnswerRecord, ...]
    items: tuple[JudgeItem, ...]
    ratings: tuple[Ratings, ...]
    rejected: tuple[frozenset[int], ...]
    summary: dict[str, float | int | str]


def judge_records(
    judge: Judge,
    records: Sequence[AnswerRecord],
    questions: Sequence[Sample],
    threshold: float = DEFAULT_THRESHOLD,
    progress: RequestProgress | None = None,
) -> Judgement:
    """Judge scored answers; the records given stay as they are, so that both can be reported.

    Where no verdict came, nothing is rejected. Scores of the released protocol are computed from
    logits, which records do not hold, and stay unjudged.

    Args:
        judge: rates.
        records: of free generation; given texts have nothing to be judged.
        questions: of the benchmark; a record's ``index`` and ``turn`` say which one it answers.
        threshold: ratings below it reject a mask.
        progress: told about the judge's work.

    Returns:
        The records as judged, with the ratings.
    """
    items = [_item_of(record, questions[record.index].turns[record.turn]) for record in records]
    ratings = judge.rate(items, progress)
    rejected = tuple(
        rejected_masks(item, rating, threshold) for item, rating in zip(items, ratings, strict=True)
    )
    judged = tuple(
        replace(record, matches=reject_matches(record.matches, masks))
        for record, masks in zip(records, rejected, strict=True)
    )
    summary = summarise_ratings(judge.name, threshold, items, ratings)
    return Judgement(judged, tuple(items), tuple(ratings), rejected, summary)


def rejected_masks(item: JudgeItem, ratings: Ratings, threshold: float) -> frozenset[int]:
    """Indices of the masks that matched something and are rated below the threshold."""
    rated = enumerate(zip(item.descriptions, ratings or (), strict=False))
    return frozenset(i for i, (text, rating) in rated if text is not None and rating < threshold)


def summarise_ratings(
    judge: str, threshold: float, items: Sequence[JudgeItem], ratings: Sequence[Ratings]
) -> dict[str, float | int | str]:
    """Counts for a report: masks rated and rejected, answers without a verdict."""
    judged = list(zip(items, ratings, strict=True))
    rated = [
        rating
        for item, row in judged
        for rating, text in zip(row or (), item.descriptions, strict=False)
        if text is not None
    ]
    return {
        "judge": judge,
        "threshold": threshold,
        "masks_rated": len(rated),
        "masks_rejected": sum(rating < threshold for rating in rated),
        "answers_without_verdict": sum(item.is_judged and row is None for item, row in judged),
    }


def _item_of(record: AnswerRecord, turn: Turn) -> JudgeItem:
    matches = record.matches
    pairs = [(s.prediction, s.truth) for s in matches if s.prediction is not None]
    return JudgeItem.from_pairs(
        record.question,
        record.answer,
        [mask.span for mask in record.shown],
        [(prediction, truth) for prediction, truth in pairs if truth is not None],
        describe_targets(turn),
    )
