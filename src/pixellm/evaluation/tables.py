"""The numbers of a summary as tables of text, for a terminal, Markdown and HTML alike.

A table is a title and rows, the header first. It knows no markup and computes no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pixellm.data.table import BadRow
from pixellm.evaluation.curves import calibration_error
from pixellm.evaluation.intervals import Estimate
from pixellm.evaluation.left_out import describe_bad_rows, describe_left_out
from pixellm.evaluation.records import LeftOut
from pixellm.evaluation.scores import SCORES, SIZE_SCORES
from pixellm.evaluation.summary import (
    KIND,
    KIND_SCORES,
    OVERALL,
    OVERLAP,
    SIZE,
    SOURCE,
    TARGETS,
    TOPIC,
    Group,
    Summary,
)
from pixellm.report.page import Row, Table

_KIND_COLUMNS = tuple(
    name
    for name in KIND_SCORES
    if name not in ("ciou_targets", "set_accuracy_targets", "t_acc")  # JSON has them
)
_SORTS = {
    TARGETS: (
        "By number of targets",
        "targets",
        ("giou", "ciou", "union_giou", "set_accuracy", "recall", "precision"),
    ),
    OVERLAP: ("By overlap of the closest two targets", "boxes", _KIND_COLUMNS),
    SIZE: ("By size of the target", "share of the image", tuple(SIZE_SCORES)),
    TOPIC: ("By topic", "topic", _KIND_COLUMNS),
    SOURCE: ("By collection of the image", "collection", (*_KIND_COLUMNS, *SIZE_SCORES)),
    KIND: ("By kind", "kind", _KIND_COLUMNS),
}
"""Sort of groups -> the table's title, its first header, and its scores."""

_HEADER = ("score", "value", "95 % interval", "meaning")
_WITH_INTERVAL = frozenset({"giou", "target_iou", "union_giou"})


def headline_table(summary: Summary, headline: Sequence[str]) -> Table:
    """The scores that a benchmark is judged by."""
    rows = [_score_row(name, summary.score(name)) for name in headline]
    return Table("Headline", [_HEADER, *rows], "headline")


def all_tables(summary: Summary, headline: Sequence[str]) -> list[Table]:
    """Headline, all scores, the groups of each sort, and the masks' own scores."""
    overall = summary.groups.get(OVERALL, Group(0, {}))
    rest = [name for name in overall.scores if name not in headline]
    tables = [headline_table(summary, headline)]
    if rest:
        rows = [_score_row(name, overall.scores[name]) for name in rest]
        tables.append(Table("Further scores", [_HEADER, *rows], "scores"))
    for prefix, (title, _, _) in _SORTS.items():
        if members := summary.members(prefix):
            tables.append(Table(title, _group_rows(members, prefix), prefix.strip()))
    return [*tables, mask_score_table(summary)]


def mask_score_table(summary: Summary) -> Table:
    """Average precision and calibration."""
    curve = summary.precision
    rows: list[Row] = [
        ("score", "value", "meaning"),
        ("AP", number(curve.ap), "average precision of scored masks, mean over IoU 0.50 to 0.95"),
        ("AP50", number(curve.ap50), "at IoU 0.50"),
        ("AP75", number(curve.ap75), "at IoU 0.75"),
        (
            "calibration error",
            number(calibration_error(summary.calibration)),
            "mean distance of a mask's own score and its IoU, over ten bins",
        ),
    ]
    return Table("The masks' own scores", rows, "mask-scores")


def describe_run(
    settings: dict[str, Any],
    summary: Summary,
    left_out: Sequence[LeftOut] = (),
    bad_rows: Sequence[BadRow] = (),
) -> str:
    """What was run, never leaving out mode and protocol, and what of it was not asked."""
    mode = {"free": "answers written freely", "forced": "teacher-forced (true texts given)"}
    unit = {"slots": "each mask counts", "union": "all masks of an answer joined"}
    rules = summary.rules
    dtype = f" in {settings['dtype']}" if settings.get("dtype") else ""
    asked = ""
    if "suffix" in settings:
        suffix = f'followed by "{settings["suffix"]}"' if settings["suffix"] else "as they stand"
        asked = f"questions asked {suffix}, "
    not_asked, bad = (
        f" {told}" if told else ""
        for told in (describe_left_out(left_out), describe_bad_rows(bad_rows))
    )
    return (
        f"{settings['title']} {settings['split']} with {settings['model']}{dtype}: "
        f"{asked}{mode[rules.mode]}, {settings['protocol']} protocol, {unit[rules.unit]}; "
        f"{summary.num_questions} questions about {summary.num_images} images, "
        f"{summary.num_targets} targets, {summary.num_masks} masks shown.{not_asked}{bad}"
    )


def number(value: float | None) -> str:
    """Three digits behind the point; a dash for no value."""
    return "-" if value is None else f"{value:.3f}"


def interval(estimate: Estimate) -> str:
    """The ends of an interval; a dash for none."""
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def _score_row(name: str, estimate: Estimate) -> Row:
    return (name, number(estimate.value), interval(estimate), SCORES[name])


def _group_rows(members: dict[str, Group], prefix: str) -> list[Row]:
    """One row per group; columns that are empty, or repeat another, are left out."""
    _, label, scores = _SORTS[prefix]
    values = {name: [group.scores.get(name) for group in members.values()] for name in scores}
    over_targets = [name for name in values if name.endswith("_targets")]
    repeated = {n for n in over_targets if values[n] == values.get(n.removesuffix("_targets"))}
    columns = [name for name, column in values.items() if any(column) and name not in repeated]
    counted = "targets asked for" if prefix == SIZE else "questions"
    rows: list[Row] = [(label, counted, *columns)]
    for name, group in members.items():
        cells = [_group_cell(column, group.scores.get(column)) for column in columns]
        rows.append((name, str(group.count), *cells))
    return rows


def _group_cell(column: str, estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "-"
    return str(estimate) if column in _WITH_INTERVAL else number(estimate.value)
