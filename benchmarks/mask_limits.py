"""What a limit for masks would do to a run that was evaluated without one, or with a lower one.

    pixellm eval scenes --split val --num 250 --out val
    python benchmarks/mask_limits.py val --limits 0 0.5 0.75 0.9

Counts the kept answers again, strictly, without the masks whose score lies below each limit: how
`min_mask_score` of a model is chosen. No model is asked.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from pixellm.engine.answers import passes_threshold
from pixellm.evaluation.evaluate import run_of_folder
from pixellm.evaluation.records import AnswerRecord, build_record, read_run
from pixellm.evaluation.summary import Group, summarize
from pixellm.masks import decode_mask
from pixellm.types import SEG_MARK, Prediction, Sample, Segment, Turn

SCORES = ("giou_targets", "union_giou", "set_accuracy_targets")


def withhold(record: AnswerRecord, limit: float) -> AnswerRecord:
    """The record as it would be with masks below the limit filtered."""
    shown = tuple(
        Segment(mask.label, decode_mask(mask.mask), mask.score, mask.span)
        for mask in record.shown
        if passes_threshold(mask.score, limit)
    )
    answer = Prediction(record.answer, shown, record.question, record.size, {})
    marks = " ".join(SEG_MARK for _ in record.targets)
    turn = Turn(record.question, marks, record.targets, record.kind)
    sample = Sample(Path(record.path), record.size, (turn,), record.sample)
    again = build_record(sample, record.index, 0, answer, record.seconds)
    return replace(record, shown=again.shown, matches=again.matches, union=again.union)


def score_of(group: Group | None, name: str) -> str:
    """A score of a group, a dash where it has none."""
    value = None if group is None or name not in group.scores else group.scores[name].value
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Print one row of a table for each limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limits", type=float, nargs="+", default=[0.0, 0.5, 0.75, 0.85, 0.9])
    options = parser.parse_args()
    run, records = run_of_folder(options.folder), read_run(options.folder).records
    by_kind = run.benchmark.classes_are_kinds
    print("| limit | " + " | ".join(SCORES) + " | naming giou | negatives n_acc | without masks |")
    for limit in options.limits:
        kept = [withhold(record, limit) for record in records]
        summary = summarize(kept, replace(run.rules, protocol="strict"), classes_are_kinds=by_kind)
        groups = summary.groups
        figures = [score_of(groups["overall"], name) for name in SCORES]
        figures += [score_of(groups.get("kind naming"), "giou")]
        figures += [score_of(groups.get("kind negative"), "n_acc")]
        silent = sum(not record.shown for record in kept)
        print(f"| {limit:g} | {' | '.join(figures)} | {silent} of {len(kept)} |")


if __name__ == "__main__":
    main()
