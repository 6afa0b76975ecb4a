"""From scored answers to a summary: groups of questions, their scores with intervals, curves.

Everything that a report says in numbers is in a :class:`Summary`, as plain values. It knows
nothing of files, images or how tables look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixellm.evaluation.curves import (
    CalibrationBin,
    PrecisionCurve,
    calibration_error,
    compute_calibration,
    compute_precision,
)
from pixellm.evaluation.intervals import Estimate, estimate_ratios
from pixellm.evaluation.metrics import Ratio
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.scores import (
    NOT_SMALL,
    OVERLAPS,
    SCORES,
    SIZE_BINS,
    SIZE_SCORES,
    Rules,
    count_bin,
    image_ratios,
    overlap_bin,
    size_ratios,
    topics_of,
)

OVERALL = "overall"
TARGETS = "targets "
OVERLAP = "overlap "
KIND = "kind "
SIZE = "size "
TOPIC = "topic "
SOURCE = "source "
"""Names of groups, and what those of each sort begin with."""

KIND_SCORES = (
    *("giou", "giou_targets", "ciou", "ciou_targets", "union_giou", "union_ciou"),
    *("set_accuracy", "set_accuracy_targets", "named_set_accuracy", "recall", "precision"),
    *("n_acc", "t_acc", "text_accuracy"),
)
"""Of the groups by kind of question, by topic, by overlap and by source."""

Cell = tuple[str, str]
"""(group, score)."""


@dataclass(frozen=True, slots=True)
class Group:
    """Scores of a group: of questions, or of targets by size.

    Attributes:
        scores: name -> score with its 95 % interval; scores that nothing counts for are left out.
    """

    count: int
    scores: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class Summary:
    """All numbers of an evaluation.

    Attributes:
        groups: by name: "overall", "targets N", "overlap O", "kind K", "size S", "topic T", and
            "source C" with "source C: T" and "source C: targets S" for topics and sizes in it.
    """

    rules: Rules
    num_questions: int
    num_images: int
    num_targets: int
    num_masks: int
    groups: dict[str, Group]
    precision: PrecisionCurve
    calibration: list[CalibrationBin]

    def score(self, name: str, group: str = OVERALL) -> Estimate:
        """One score; without a value where nothing counts towards it."""
        found = self.groups.get(group)
        nothing = Estimate(None, None, None, 0.0)
        return nothing if found is None else found.scores.get(name, nothing)

    def members(self, prefix: str) -> dict[str, Group]:
        """The groups of one sort, by the rest of their names."""
        return {
            name.removeprefix(prefix): group
            for name, group in self.groups.items()
            if name.startswith(prefix)
        }

    def to_dict(self) -> dict[str, Any]:
        """The summary as values that JSON knows."""
        return {
            **self.rules.to_dict(),
            "num_questions": self.num_questions,
            "num_images": self.num_images,
            "num_targets": self.num_targets,
            "num_masks": self.num_masks,
            "interval": "95 %, bootstrap over images",
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "average_precision": asdict(self.precision),
            "calibration_error": calibration_error(self.calibration),
            "calibration": [asdict(one) for one in self.calibration],
            "definitions": {**SCORES, **SIZE_SCORES},
        }


def summarize(
    records: Sequence[AnswerRecord], rules: Rules, *, classes_are_kinds: bool = False
) -> Summary:
    """Compute every score of answered questions, in any order.

    Where classes are kinds of question, average precision is the mean over them, as over COCO's
    categories.
    """
    class_of = (lambda record: record.kind) if classes_are_kinds else None
    return Summary(
        rules=rules,
        num_questions=len(records),
        num_images=len({record.image for record in records}),
        num_targets=sum(len(record.targets) for record in records),
        num_masks=sum(len(record.shown) for record in records),
        groups=_estimate_groups(records, rules),
        precision=compute_precision(records, class_of),
        calibration=compute_calibration([match for record in records for match in record.matches]),
    )


def _estimate_groups(records: Sequence[AnswerRecord], rules: Rules) -> dict[str, Group]:
    counts: Counter[str] = Counter()
    rows = [image_cells(asked, rules, counts) for asked in by_image(records)]
    cells = sorted({cell for row in rows for cell in row}, key=_cell_order)
    groups: dict[str, Group] = {}
    for (group, score), estimate in zip(cells, estimate_ratios(tabulate(rows, cells)), strict=True):
        scores = groups.setdefault(group, Group(counts[group], {})).scores
        if estimate.value is not None:
            scores[score] = estimate
    return groups


def by_image(records: Iterable[AnswerRecord]) -> list[list[AnswerRecord]]:
    """The records about each image, images in the order of their first record."""
    images: dict[str, list[AnswerRecord]] = {}
    for record in records:
        images.setdefault(record.image, []).append(record)
    return list(images.values())


def tabulate(rows: Sequence[dict[Cell, Ratio]], cells: Sequence[Cell]) -> NDArray[np.float64]:
    """(U, M, 2): what each row adds to each cell, for :func:`~.intervals.bootstrap`."""
    table = np.zeros((len(rows), len(cells), 2))
    column = {cell: i for i, cell in enumerate(cells)}
    for number, row in enumerate(rows):
        for cell, ratio in row.items():
            if cell in column:
                table[number, column[cell]] = ratio
    return table


def image_cells(
    records: Sequence[AnswerRecord], rules: Rules, counts: Counter[str]
) -> dict[Cell, Ratio]:
    """What the questions about one image, of one source, add to each score of each group.

    The members of every group are added to ``counts``.
    """
    cells: dict[Cell, Ratio] = {}
    members: dict[str, list[AnswerRecord]] = {}
    for record in records:
        for group in groups_of(record):
            members.setdefault(group, []).append(record)
    for group, questions in members.items():
        counts[group] += len(questions)
        ratios = image_ratios(questions, rules)
        names = KIND_SCORES if group.startswith((KIND, TOPIC, SOURCE, OVERLAP)) else tuple(ratios)
        cells.update({(group, name): ratios[name] for name in names})
    source = records[0].source
    for size, ratios in size_ratios(records).items():
        for group in [SIZE + size, *([f"{SOURCE}{source}: targets {size}"] if source else [])]:
            counts[group] += int(ratios["target_iou"][1])
            cells.update({(group, name): ratio for name, ratio in ratios.items()})
    return cells


def groups_of(record: AnswerRecord) -> list[str]:
    """The groups of questions that a record belongs to."""
    topics, overlap = topics_of(record), overlap_bin(record)
    groups = [OVERALL, TARGETS + count_bin(len(record.targets)), *(TOPIC + one for one in topics)]
    if overlap:
        groups.append(OVERLAP + overlap)
    if record.kind:
        groups.append(KIND + record.kind)
    if record.source:
        groups.append(SOURCE + record.source)
        groups += [f"{SOURCE}{record.source}: {topic}" for topic in topics]
    return groups


def _cell_order(cell: Cell) -> tuple[int, int, str, int]:
    group, score = cell
    sorts = (OVERALL, TARGETS, OVERLAP, SIZE, TOPIC, SOURCE, KIND)
    rank = next(i for i, prefix in enumerate(sorts) if group.startswith(prefix))
    bins = [*(name for _, name in SIZE_BINS), NOT_SMALL, *(name for _, name in OVERLAPS)]
    within = bins.index(group.partition(" ")[2]) if group.startswith((SIZE, OVERLAP)) else 0
    names = [*SCORES, *SIZE_SCORES]
    return rank, within, group, names.index(score)
