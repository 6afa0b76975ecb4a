"""What a judge did to an evaluation: from ratings to rejected masks and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pixellm.evaluation.evaluate import BenchmarkRun, Evaluation
from pixellm.evaluation.judge import Judge, JudgeItem, Verdict, judge_item
from pixellm.evaluation.metrics import reject_matches
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.summary import Summary
from pixellm.llm.run import RequestProgress
from pixellm.types import Sample


@dataclass(frozen=True, slots=True)
class RatedMask:
    """A mask that matched an object, rated 1 to 10 by a judge, or None where no verdict came."""

    index: int
    phrase: str
    description: str
    rating: float | None
    rejected: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge did: the records, and of each answer the masks that matched an object.

    Matches of rejected masks have intersection 0.
    """

    judge: str
    settings: Mapping[str, Any]
    records: tuple[AnswerRecord, ...]
    masks: tuple[tuple[RatedMask, ...], ...]

    @property
    def summary(self) -> dict[str, float | int | str]:
        """Counts for a report: masks rated and rejected, answers without a verdict."""
        every = [mask for masks in self.masks for mask in masks]
        return {
            "judge": self.judge,
            "threshold": self.settings["threshold"],
            "masks_rated": sum(mask.rating is not None for mask in every),
            "masks_rejected": sum(mask.rejected for mask in every),
            "answers_without_verdict": sum(
                any(mask.rating is None for mask in masks) for masks in self.masks
            ),
        }


@dataclass(frozen=True, slots=True)
class JudgedScores:
    """The scores of a run without and with a judge, whose rejected masks have intersection 0."""

    judgement: Judgement
    plain: Summary
    judged: Summary


def check_judging(run: BenchmarkRun) -> None:
    """ValueError for a run of given texts, and one whose masks are not counted one by one."""
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
    progress: RequestProgress | None = None,
) -> JudgedScores:
    """Judge the answers of a run; they stay as they are, so that another judge can be tried.

    Scores of the released protocol come from logits, which a run does not keep: the judge's
    effect is always counted strictly.

    Raises:
        ValueError: nothing to judge, see :func:`check_judging`.
        OSError: the judge can't be asked, or its money is spent.
    """
    run = evaluation.run
    check_judging(run)
    records, questions = evaluation.records, evaluation.questions
    judgement = judge_records(judge, records, questions, progress)
    strict = replace(run.rules, protocol="strict")
    plain = evaluation.summary if strict == run.rules else run.summarize(records, strict)
    judged = run.summarize(judgement.records, strict)
    return JudgedScores(judgement, plain, judged)


def judge_records(
    judge: Judge,
    records: Sequence[AnswerRecord],
    questions: Sequence[Sample],
    progress: RequestProgress | None = None,
) -> Judgement:
    """Judge scored answers; the records given stay as they are, so that both can be reported.

    Where no verdict came, nothing is rejected. Scores of the released protocol are computed from
    logits, which records do not hold, and stay unjudged.

    The records are of free generation; ``index`` and ``turn`` tell which question one answers.
    """
    items = [judge_item(record, questions[record.index].turns[record.turn]) for record in records]
    masks = tuple(
        _rated_masks(item, verdict, judge.threshold)
        for item, verdict in zip(items, judge.rate(items, progress), strict=True)
    )
    judged = tuple(
        replace(record, matches=reject_matches(record.matches, rejected_of(rated)))
        for record, rated in zip(records, masks, strict=True)
    )
    return Judgement(judge.name, judge.describe(), judged, masks)


def rejected_of(masks: Sequence[RatedMask]) -> frozenset[int]:
    """Indices of the rejected masks of an answer."""
    return frozenset(mask.index for mask in masks if mask.rejected)


def _rated_masks(
    item: JudgeItem, verdict: Verdict | None, threshold: float
) -> tuple[RatedMask, ...]:
    rated = []
    for number, phrase, description in item.matched:
        rating = None if verdict is None else verdict[number]
        rejected = rating is not None and rating < threshold
        rated.append(RatedMask(number - 1, phrase, description, rating, rejected))
    return tuple(rated)
