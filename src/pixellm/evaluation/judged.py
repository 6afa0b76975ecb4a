"""What a report says of a judge: scores without and with it, and its ratings answer by answer.

Turns judged scores into a sentence, tables, values for JSON and notes for the gallery. It asks
no judge and computes no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from pixellm.evaluation.judgement import JudgedScores, Judgement, RatedMask
from pixellm.evaluation.scores import SCORES
from pixellm.evaluation.tables import all_tables, mask_score_table
from pixellm.report.page import Table

Notes = dict[tuple[int, int], str]
"""(dialogue, turn) -> what the judge said of the answer."""


def describe_judge(scores: JudgedScores) -> str:
    """One sentence on the judge and what it did."""
    counts, settings = scores.judgement.summary, scores.judgement.settings
    server = f" at {settings['server']}" if "server" in settings else ""
    return (
        f"Judge {counts['judge']}{server}, threshold {counts['threshold']:g}: "
        f"{counts['masks_rated']} masks rated, {counts['masks_rejected']} rejected, "
        f"{counts['answers_without_verdict']} answers without a verdict."
    )


def effect_table(scores: JudgedScores, headline: Sequence[str]) -> Table:
    """The headline without and with the judge, side by side."""
    header = ("score", "without judge", f"with judge {scores.judgement.summary['judge']}")
    rows = [
        (name, str(scores.plain.score(name)), str(scores.judged.score(name)), SCORES[name])
        for name in headline
    ]
    title = f"Without and with the judge ({scores.plain.rules.protocol} protocol)"
    return Table(title, [(*header, "meaning"), *rows], "judge")


def judged_tables(scores: JudgedScores, headline: Sequence[str]) -> list[Table]:
    """All tables of a benchmark with the judge; average precision does not depend on it."""
    unjudged = mask_score_table(scores.judged).name
    return [
        replace(table, title=f"{table.title}, with the judge", name=f"judged-{table.name}")
        for table in all_tables(scores.judged, headline)
        if table.name != unjudged
    ]


def judged_to_dict(scores: JudgedScores) -> dict[str, Any]:
    """Both scores, the judge, and each of its verdicts, as values that JSON knows."""
    judgement = scores.judgement
    answers = []
    for record, masks in zip(judgement.records, judgement.masks, strict=True):
        if masks:
            rows = [{k: v for k, v in asdict(mask).items() if k != "index"} for mask in masks]
            names = {"sample": record.key, "index": record.index, "turn": record.turn}
            answers.append({**names, "masks": rows})
    return {
        "judge": {**judgement.settings, **judgement.summary, "answers": answers},
        "without_judge": scores.plain.to_dict(),
        "with_judge": scores.judged.to_dict(),
    }


def judge_notes(judgement: Judgement) -> Notes:
    """What the judge said of each answer with a mask that matched."""
    return {
        (record.index, record.turn): "; ".join(map(_note, masks))
        for record, masks in zip(judgement.records, judgement.masks, strict=True)
        if masks
    }


def _note(mask: RatedMask) -> str:
    rating = "no verdict" if mask.rating is None else f"{mask.rating:g}"
    fate = ", rejected" if mask.rejected else ""
    return f"“{mask.phrase}” on {mask.description}: {rating}{fate}"
