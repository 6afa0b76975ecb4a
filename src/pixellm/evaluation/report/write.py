"""Puts a run's report on disk: ``report.json``, ``report.md`` and ``report.html``.

All three say the same; each is whole or not there. It scores nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pixellm.evaluation.evaluate import Evaluation
from pixellm.evaluation.intervals import Estimate
from pixellm.evaluation.judgement import JudgedScores
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.report.gallery import FetchImage, build_cards, image_source
from pixellm.evaluation.report.judged import (
    describe_judge,
    effect_table,
    judge_notes,
    judged_tables,
    judged_to_dict,
)
from pixellm.evaluation.report.tables import all_tables, describe_run
from pixellm.evaluation.summary import SIZE, TARGETS, Summary
from pixellm.files import locked
from pixellm.report import figures, page
from pixellm.report.page import Card, Report

_PACKAGES = ("pixellm", "torch", "transformers", "numpy", "scipy", "pycocotools")


def check_report(folder: Path) -> None:
    """Refuse a folder where no report can be written; see :func:`pixellm.report.page.check_report`.

    Raises:
        OSError: it can't be written, or holds a file that is not of a report.
        ImportError: plots can't be drawn here.
    """
    figures.check_plots()
    page.check_report(folder, "report", ("settings", "versions", "headline"))


def write_report(
    folder: Path,
    settings: Mapping[str, Any],
    summary: Summary,
    records: Sequence[AnswerRecord],
    headline: Sequence[str],
    fetch_image: FetchImage,
    judged: JudgedScores | None = None,
) -> list[Path]:
    """Write the three files.

    Args:
        folder: of the run.
        settings: of the run, with ``title``, ``split``, ``model`` and ``protocol``.
        summary: its scores.
        records: its answers, for the gallery.
        headline: scores that the benchmark is judged by.
        fetch_image: gives the images of the gallery.
        judged: the scores without and with a judge, where there was one; ``summary`` stays
            without.

    Returns:
        The files written.

    Raises:
        OSError: the folder can't be written to.
    """
    tables = all_tables(summary, headline)
    lead = describe_run(dict(settings), summary)
    title = f"{settings['title']} {settings['split']}: {settings['model']}"
    notes = None
    if judged is not None:
        lead = f"{lead} {describe_judge(judged)}"
        tables = [effect_table(judged, headline), *tables, *judged_tables(judged, headline)]
        notes = judge_notes(judged.judgement)
    cards = build_cards(records, summary.rules.unit, fetch_image, notes)
    values = report_values(settings, summary, headline, judged)
    values["gallery"] = gallery_keys(cards)
    plots = summary_plots(summary)
    return page.write_report(folder, "report", Report(title, lead, tables, plots, cards, values))


def write_evaluation(
    folder: Path, evaluation: Evaluation, judged: JudgedScores | None = None
) -> list[Path]:
    """Write the report of a run into its folder.

    Args:
        folder: of the run.
        evaluation: its answers and scores.
        judged: the scores without and with a judge, where there was one.

    Returns:
        The files written.

    Raises:
        OSError: the folder can't be written to, or another process writes there.
    """
    settings, headline = evaluation.settings, evaluation.run.headline
    source = image_source(evaluation.questions)
    with locked(folder):
        return write_report(
            folder, settings, evaluation.summary, evaluation.records, headline, source, judged
        )


def report_values(
    settings: Mapping[str, Any],
    summary: Summary,
    headline: Sequence[str],
    judged: JudgedScores | None = None,
) -> dict[str, Any]:
    """All numbers of a report as values that JSON knows; arguments as :func:`write_report`."""
    return {
        "settings": dict(settings),
        "versions": installed_versions(),
        "headline": [*headline],
        **summary.to_dict(),
        **({} if judged is None else judged_to_dict(judged)),
    }


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
