"""What a report says of a judge: scores without and with it, and its ratings answer by answer.

Turns judged scores into a sentence, tables, values for JSON and notes for the gallery. It asks
no judge and computes no score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pixellm.evaluation.judgement import JudgedScores, Judgement
from pixellm.evaluation.scores import SCORES
from pixellm.evaluation.tables import all_tables, mask_score_table
from pixellm.report.page import Table

Notes = dict[tuple[int, int], str]
"""(dialogue, turn) -> what the judge said of the answer."""


def describe_judge(scores: JudgedScores) -> str:
    """One sentence on the judge and what it did."""
    counts = scores.judgement.summary
    server = f" at {scores.settings['server']}" if "server" in scores.settings else ""
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
    answers = [
        {
            "sample": record.key,
            "index": record.index,
            "turn": record.turn,
            "masks": list(_rated_masks(scores.judgement, place)),
        }
        for place, record in enumerate(scores.judgement.records)
        if scores.judgement.items[place].is_judged
    ]
    return {
        "judge": {**scores.settings, **scores.judgement.summary, "answers": answers},
        "without_judge": scores.plain.to_dict(),
        "with_judge": scores.judged.to_dict(),
    }


def judge_notes(judgement: Judgement) -> Notes:
    """What the judge said of each answer with a mask that matched."""
    notes = {}
    for place, record in enumerate(judgement.records):
        said = [_note(mask) for mask in _rated_masks(judgement, place)]
        if said:
            notes[record.index, record.turn] = "; ".join(said)
    return notes


def _rated_masks(judgement: Judgement, place: int) -> Iterator[dict[str, Any]]:
    """Phrase, description, rating (None without a verdict) and fate of each mask that matched."""
    item, ratings = judgement.items[place], judgement.ratings[place]
    for number, (span, description) in enumerate(zip(item.spans, item.descriptions, strict=True)):
        if description is not None:
            yield {
                "phrase": item.answer[span[0] : span[1]],
                "description": description,
                "rating": None if ratings is None else ratings[number],
                "rejected": number in judgement.rejected[place],
            }


def _note(mask: Mapping[str, Any]) -> str:
    rating = "no verdict" if mask["rating"] is None else f"{mask['rating']:g}"
    fate = ", rejected" if mask["rejected"] else ""
    return f"“{mask['phrase']}” on {mask['description']}: {rating}{fate}"
