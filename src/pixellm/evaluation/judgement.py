"""What a judge did to an evaluation: from ratings to rejected masks and scores.

Depends on: ``judge`` for the ratings and ``records`` for the scored answers; used by: runs of
benchmarks and predictions of other systems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pixellm.evaluation.evaluate import BenchmarkRun, Evaluation
from pixellm.evaluation.judge import (
    DEFAULT_THRESHOLD,
    Judge,
    JudgeItem,
    JudgeSettings,
    Ratings,
    describe_targets,
)
from pixellm.evaluation.metrics import reject_matches
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.summary import Summary
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


@dataclass(frozen=True, slots=True)
class JudgedScores:
    """The scores of a run without and with a judge, both counted strictly.

    Attributes:
        settings: of the judge, see :meth:`~pixellm.evaluation.judge.JudgeSettings.describe`.
        judgement: what it said.
        plain: scores without the judge.
        judged: scores with rejected masks at intersection 0.
    """

    settings: Mapping[str, Any]
    judgement: Judgement
    plain: Summary
    judged: Summary


def check_judging(run: BenchmarkRun) -> None:
    """Make sure that a judge has something to say about a run.

    Raises:
        ValueError: texts are given, or masks are not counted one by one.
    """
    if run.rules.mode != "free":
        raise ValueError(
            f"With --mode {run.rules.mode} the texts are given, so there is nothing to judge; "
            "use --mode free or --judge none."
        )
    if run.rules.unit != "slots":
        raise ValueError(f"{run.name} joins the masks of an answer, so no judge rates each.")


def judge_evaluation(
    evaluation: Evaluation,
    judge: Judge,
    settings: JudgeSettings,
    progress: RequestProgress | None = None,
) -> JudgedScores:
    """Judge the answers of a run; they stay as they are, so that another judge can be tried.

    Scores of the released protocol come from logits, which a run does not keep: the judge's
    effect is always counted strictly.

    Args:
        evaluation: the answers.
        judge: rates.
        settings: of the judge.
        progress: told about the judge's work.

    Raises:
        ValueError: nothing to judge, see :func:`check_judging`, or the judge's money is spent.
        OSError: the judge can't be asked.
    """
    run = evaluation.run
    check_judging(run)
    records, questions = evaluation.records, evaluation.questions
    judgement = judge_records(judge, records, questions, settings.threshold, progress)
    strict = replace(run.rules, protocol="strict")
    plain = evaluation.summary if strict == run.rules else run.summarize(records, strict)
    judged = run.summarize(judgement.records, strict)
    return JudgedScores(settings.describe(), judgement, plain, judged)


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
