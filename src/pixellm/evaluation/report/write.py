"""Puts a run's report on disk: ``report.json``, ``report.md`` and ``report.html``.

All three say the same; each is whole or not there. It scores nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pixellm.evaluation.intervals import Estimate
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.report.gallery import Card, FetchImage, build_cards
from pixellm.evaluation.report.judged import (
    JudgedScores,
    describe_judge,
    effect_table,
    judge_notes,
    judged_tables,
    judged_to_dict,
)
from pixellm.evaluation.report.page import build_page
from pixellm.evaluation.report.plots import bar_plot, calibration_plot, curve_plot
from pixellm.evaluation.report.tables import TextTable, all_tables, describe_run
from pixellm.evaluation.summary import SIZE, TARGETS, Summary
from pixellm.files import MARKED_TEXT, check_file, check_folder, json_bytes, write_files

_PACKAGES = ("pixellm", "torch", "transformers", "numpy", "scipy", "pycocotools")


def check_report(folder: Path) -> None:
    """Refuse a folder whose files a report would replace though they are not of a report.

    Raises:
        OSError: it can't be written, or holds such a file.
    """
    check_folder(folder)
    check_file(folder / "report.json", keys=("settings", "versions", "headline"))
    check_file(folder / "report.md")
    check_file(folder / "report.html")


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
    values = {
        "settings": dict(settings),
        "versions": installed_versions(),
        "headline": [*headline],
        **summary.to_dict(),
        **({} if judged is None else judged_to_dict(judged)),
        "gallery": gallery_keys(cards),
    }
    content = {
        folder / "report.json": json_bytes(values),
        folder / "report.md": build_markdown(title, lead, tables).encode("utf-8"),
        folder / "report.html": build_page(
            title, lead, tables, summary_plots(summary), cards
        ).encode("utf-8"),
    }
    write_files(content)
    return list(content)


def summary_plots(summary: Summary) -> dict[str, str]:
    """Score by number of targets, by size, precision over recall, calibration; what there is."""
    plots = {}
    sorts = {TARGETS: ("giou", "targets"), SIZE: ("target_iou", "share of the image")}
    for prefix, (score, label) in sorts.items():
        bars = {
            name: group.scores.get(score, Estimate(None, None, None, 0.0))
            for name, group in summary.members(prefix).items()
        }
        if bars:
            caption = f"{score} by {label}, with 95 % intervals"
            plots[caption] = bar_plot(caption, bars, label)
    curve = summary.precision
    if curve.precisions:
        caption = "Precision over recall of the masks, by IoU threshold"
        lines = {
            f"IoU {level}": list(zip(curve.recalls, values, strict=True))
            for level, values in curve.precisions.items()
        }
        plots[caption] = curve_plot(caption, lines, "recall", "precision")
    if summary.calibration:
        caption = "Calibration of the masks' scores"
        plots[caption] = calibration_plot(caption, summary.calibration)
    return plots


def build_markdown(title: str, lead: str, tables: Sequence[TextTable]) -> str:
    """The report as Markdown."""
    parts = [f"# {_plain(title)}", _plain(lead)]
    for table in tables:
        header, *rows = table.rows
        lines = [header, ("---",) * len(header), *rows]
        parts.append(f"## {_plain(table.title)}")
        parts.append("\n".join(f"| {' | '.join(map(_plain, row))} |" for row in lines))
    return "\n\n".join([*parts, MARKED_TEXT]) + "\n"


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
        keys.setdefault(card.sort, []).append(card.record.key)
    return keys


def _plain(text: str) -> str:
    """Text that can't break a Markdown table or turn into markup."""
    joined = " ".join(text.split())
    for sign in "\\|<`*_":
        joined = joined.replace(sign, "\\" + sign) if sign != "<" else joined.replace("<", "&lt;")
    return joined
