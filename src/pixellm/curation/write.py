"""From accepted questions to a data set: deduplicate, split, MUSE JSON, Parquet, licences, card.

A pure function of the ledger and of the reviewers' marks, so it can be repeated at will: files are
written to a temporary folder and replace the old ones at the end. Asks no model.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pixellm.curation.card import card_values
from pixellm.curation.deduplicate import near_duplicates
from pixellm.curation.ledger import FinishedRun
from pixellm.curation.photos import Photo, seeded_fraction
from pixellm.curation.proposal import Task
from pixellm.curation.rules import Row
from pixellm.data.muse import SPLITS, MuseWriter, make_entry, row_key
from pixellm.files import (
    check_listed,
    json_bytes,
    locked,
    merged_folder,
    plain_cell,
    read_json,
    write_files,
)
from pixellm.report.page import render_page

MARKS_NAME = "marks.json"

FEW_TARGETS = 3
"""Most targets of a question in ``test_less``."""

_PATIENCE = 30.0
"""Seconds to wait while another reviewer's mark is saved."""


@dataclass(frozen=True, slots=True)
class WriteSettings:
    """How the set is laid out.

    Attributes:
        train: share of the photos for training.
        val: share for validation; the rest is for testing.
        shard_photos: photos per file.
        max_repeats: how often near-equal questions may be asked over the set.
        seed: decides which photo goes where.
    """

    train: float = 0.97
    val: float = 0.012
    shard_photos: int = 10_000
    max_repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.train >= 0 and self.val >= 0 and self.train + self.val <= 1 + 1e-9):
            raise ValueError(
                f"Shares of {self.train} and {self.val} can't be; train and val lie between 0 and "
                "1 and add up to at most 1, the rest is for testing."
            )


def check_set(folder: Path) -> None:
    """Refuse a folder where a set would replace files of something else than an earlier set."""
    splits = [
        f"{part}muse_{split}{end}"
        for part in ("", "parquet/")
        for split in SPLITS
        for end in (".*", "-*-of-*")
    ]
    check_listed(folder, ("README.md", "summary.json", "licenses.csv", *splits))


def write_set(ledger: FinishedRun, folder: Path, settings: WriteSettings) -> dict[str, Any]:
    """Write the whole data set of a run into a folder, in place of an earlier one.

    Returns:
        The summary that the card shows: counts by stage, split and licence.
    """
    check_set(folder)
    rows, dropped = _kept_rows(ledger, folder, settings)
    with merged_folder(folder) as staging:
        summary: dict[str, Any] = {"dropped": dropped, **ledger.counts()}
        splits, licenses = _write_splits(ledger, rows, staging, settings)
        summary |= {"splits": splits, "licenses": licenses}
        summary["models"] = ledger.models()
        summary["run"] = ledger.get("run") or {}
        # How often the network failed is no property of the set: the same rows, the same files.
        lasting = {key: value for key, value in summary.items() if key != "requests"}
        (staging / "summary.json").write_bytes(json_bytes(lasting))
        (staging / "README.md").write_bytes(render_page("card.md", card_values(summary)))
    return summary


def read_marks(folder: Path) -> dict[str, str]:
    """The reviewers' marks: ``accept`` or ``reject`` by the key of the row."""
    path = folder / MARKS_NAME
    return load_marks(path) if path.is_file() else {}


def load_marks(path: Path) -> dict[str, str]:
    """Marks from a file, such as the one that a gallery hands out."""
    try:
        marks = read_json(path)
        if not all(mark in ("accept", "reject") for mark in marks.values()):
            raise ValueError("only accept and reject are known")
    except ValueError as error:
        raise ValueError(f"{path} can't be read ({error}); mend or remove it.") from None
    return marks


def change_marks(folder: Path, marks: Mapping[str, str]) -> None:
    """Set some of the reviewers' marks, by the key of the row; "" takes one back.

    Others may do the same at once, in this process or another: each sees the others' marks.
    """
    with locked(folder / MARKS_NAME, patience=_PATIENCE):
        changed = {**read_marks(folder), **marks}
        kept = {key: mark for key, mark in sorted(changed.items()) if mark}
        write_files({folder / MARKS_NAME: json_bytes(kept)})


def _kept_rows(
    ledger: FinishedRun, folder: Path, settings: WriteSettings
) -> tuple[set[tuple[str, int]], dict[str, int]]:
    """Photo and number of the tasks to write, and how many fell to reviewers and to repetition."""
    marks = read_marks(folder)
    candidates: list[tuple[bool, int, Task, Row]] = []
    dropped: Counter[str] = Counter()
    for task, row in ledger.accepted():
        mark = marks.get(row_key(task.photo.file_name, row.question, row.answer), "")
        if mark == "reject":
            dropped["rejected by a reviewer"] += 1
        else:
            candidates.append((mark != "accept", len(candidates), task, row))
    candidates.sort(key=lambda item: item[:2])  # rows that a reviewer accepted come first
    questions = [(task.photo.id, row.question) for *_, task, row in candidates]
    repeated = near_duplicates(questions, max_repeats=settings.max_repeats)
    repeated = {n for n in repeated if candidates[n][0]}
    if repeated:
        dropped["near-equal question"] = len(repeated)
    kept = [task for n, (*_, task, _) in enumerate(candidates) if n not in repeated]
    return {(task.photo.id, task.number) for task in kept}, dict(dropped)


def _split_of(photo: Photo, row: Row, settings: WriteSettings) -> str:
    """All questions about a photo go to one part, so that no photo is both seen and tested."""
    share = seeded_fraction(settings.seed, "split", photo.id)
    if share < settings.train:
        return "train"
    if share < settings.train + settings.val:
        return "val"
    return "test_less" if len(row.targets) <= FEW_TARGETS else "test_many"


def _write_splits(
    ledger: FinishedRun, kept: set[tuple[str, int]], folder: Path, settings: WriteSettings
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Write all splits and the licences; returns counts by split and photos by licence."""
    (folder / "parquet").mkdir()
    writers = {split: MuseWriter(folder, split, settings.shard_photos) for split in SPLITS}
    licenses: Counter[str] = Counter()
    with (folder / "licenses.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "license", "license_url", "source"])
        rows = (
            (task, row) for task, row in ledger.accepted() if (task.photo.id, task.number) in kept
        )
        for _, group in groupby(rows, key=lambda pair: pair[0].photo.id):
            about_photo = list(group)
            photo = about_photo[0][0].photo
            for split, writer in writers.items():
                own = [p for p in about_photo if _split_of(photo, p[1], settings) == split]
                if own:
                    writer.add(_entry(photo, (row for _, row in own)), [_flat_row(*p) for p in own])
            terms = [photo.license.get(key, "") for key in ("name", "url", "source")]
            table.writerow(map(plain_cell, (photo.file_name, *terms)))
            licenses[terms[0] or "not stated"] += 1
    for writer in writers.values():
        writer.close()
    counts = {split: writer.counts for split, writer in writers.items()}
    return counts, dict(sorted(licenses.items()))


def _entry(photo: Photo, rows: Iterable[Row]) -> dict[str, Any]:
    """The accepted questions about a photo as an entry of a MUSE file."""
    everything = [one.entry(one.category) for one in photo.instances]
    entry = make_entry(photo.file_name, photo.size, everything)
    known = photo.by_id()
    for row in rows:
        entry["questions"].append(row.question)
        entry["answers"].append([known[number].entry(text) for number, text in row.targets])
        entry["text_answers"].append(row.answer)
    return entry


def _flat_row(task: Task, row: Row) -> dict[str, Any]:
    known = task.photo.by_id()
    return {
        "key": row_key(task.photo.file_name, row.question, row.answer),
        "file_name": task.photo.file_name,
        "height": task.photo.size[0],
        "width": task.photo.size[1],
        "license": task.photo.license.get("name", ""),
        "style": task.style,
        "question": row.question,
        "answer": row.answer,
        "targets": [known[number].entry(text) for number, text in row.targets],
    }
