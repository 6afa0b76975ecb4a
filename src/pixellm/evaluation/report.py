"""What the report of an evaluation says: tables, plots, answers to look at, and every number.

Builds the plain values that :func:`pixellm.report.page.write_report` writes. It scores nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata

from markupsafe import Markup

from pixellm.evaluation.cards import build_cards, image_source
from pixellm.evaluation.evaluate import Evaluation
from pixellm.evaluation.intervals import Estimate
from pixellm.evaluation.judged import (
    describe_judge,
    effect_table,
    judge_notes,
    judged_tables,
    judged_to_dict,
)
from pixellm.evaluation.judgement import JudgedScores
from pixellm.evaluation.summary import SIZE, TARGETS, Summary
from pixellm.evaluation.tables import all_tables, describe_run
from pixellm.report import figures
from pixellm.report.page import Card, Report

_PACKAGES = ("pixellm", "torch", "transformers", "numpy", "scipy", "pycocotools")


def report_of(evaluation: Evaluation, judged: JudgedScores | None = None) -> Report:
    """The report of a run; what ``judged`` holds is shown beside the scores without the judge."""
    settings, summary = evaluation.settings, evaluation.summary
    headline = evaluation.run.headline
    tables = all_tables(summary, headline)
    bad_rows = evaluation.questions.bad_rows
    lead = describe_run(settings, summary, evaluation.left_out, bad_rows)
    notes = None
    if judged is not None:
        lead = f"{lead} {describe_judge(judged)}"
        tables = [effect_table(judged, headline), *tables, *judged_tables(judged, headline)]
        notes = judge_notes(judged.judgement)
    fetch = image_source(evaluation.questions)
    cards = build_cards(evaluation.records, summary.rules.unit, fetch, notes)
    values = {
        "settings": settings,
        "versions": installed_versions(),
        "headline": [*headline],
        **summary.to_dict(),
        "left_out": [one.to_json() for one in evaluation.left_out],
        "bad_rows": [*map(str, bad_rows)],
        **({} if judged is None else judged_to_dict(judged)),
        "gallery": gallery_keys(cards),
    }
    title = f"{settings['title']} {settings['split']}: {settings['model']}"
    return Report(title, lead, tables, summary_plots(summary), cards, values)


def summary_plots(summary: Summary) -> dict[str, Markup]:
    """Score by number of targets, by size, precision over recall, calibration; what there is."""
    drawn = {}
    sorts = {TARGETS: ("giou", "targets"), SIZE: ("target_iou", "share of the image")}
    for prefix, (score, label) in sorts.items():
        bars = {
            name: _interval(group.scores.get(score))
            for name, group in summary.members(prefix).items()
        }
        if bars:
            drawn[f"{score} by {label}, with 95 % intervals"] = figures.score_bars(bars, label)
    curve = summary.precision
    if curve.precisions:
        lines = {
            f"IoU {level}": (curve.recalls, values) for level, values in curve.precisions.items()
        }
        caption = "Precision over recall of the masks, by IoU threshold"
        drawn[caption] = figures.score_curves(lines, "recall", "precision")
    if summary.calibration:
        total = sum(one.count for one in summary.calibration)
        dots = [(one.mean_score, one.mean_iou, one.count / total) for one in summary.calibration]
        caption = "Calibration of the masks' scores"
        drawn[caption] = figures.score_dots(dots, "score that the model gives", "mean IoU")
    return {caption: figures.to_svg(figure, caption) for caption, figure in drawn.items()}


def _interval(estimate: Estimate | None) -> figures.Interval:
    return (None,) * 3 if estimate is None else (estimate.value, estimate.low, estimate.high)


def installed_versions() -> dict[str, str]:
    """Of Python and the packages that scores depend on; those not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def gallery_keys(cards: Sequence[Card]) -> dict[str, list[str]]:
    """Sort -> keys of the answers shown."""
    keys: dict[str, list[str]] = {}
    for card in cards:
        keys.setdefault(card.sort, []).append(card.fields["sample"])
    return keys
