"""The MUSE file format: read as a stream, and check row by row.

Holds for files written here and for released ones (PAPER: Ren et al., CVPR 2024, and the code its
authors released). Knows nothing of ledgers, models or images' pixels.

Frames: boxes are ``(x, y, width, height)`` in pixels of the photo, sizes ``(height, width)``.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from pixellm.data.coco import photo_name
from pixellm.data.readers.json_index import scan_json
from pixellm.masks import Size, decode_mask, mask_to_box, segmentation_to_rle
from pixellm.types import SEG_MARK, split_marks

_BOX_SLACK = 3.0


@dataclass(frozen=True, slots=True)
class MuseRow:
    """One question of a MUSE file.

    Attributes:
        photo: ``file_name``, or the tail of ``coco_url``.
        size: (height, width) of the photo.
        question: the question.
        answer: the answer with one ``{seg}`` per target.
        targets: the instances in the order of their marks, as in the file.
    """

    photo: str
    size: tuple[int, int]
    question: str
    answer: str
    targets: tuple[Mapping[str, Any], ...]

    @property
    def key(self) -> str:
        """Names the row by its content, so that a mark set on it survives a new run."""
        return row_key(self.photo, self.question, self.answer)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a file: where, which check, and in words."""

    where: str
    check: str
    says: str

    def __str__(self) -> str:
        return f"{self.where}: {self.check}: {self.says}"


def row_key(photo: str, question: str, answer: str) -> str:
    """The name of a row: 16 hexadecimal digits made from its content."""
    return hashlib.sha256("\0".join((photo, question, answer)).encode()).hexdigest()[:16]


def muse_files(path: Path) -> list[Path]:
    """The MUSE files at a path: the file itself, or ``muse*.json`` in a folder.

    Raises:
        FileNotFoundError: there are none.
    """
    if path.is_file():
        return [path]
    files = sorted(f for f in path.glob("*.json") if f.name.lower().startswith("muse"))
    if not files:
        raise FileNotFoundError(f"There is no MUSE file (muse*.json) at {path}.")
    return files


def read_entries(path: Path) -> Iterator[Any]:
    """The entries of a JSON list one by one, in memory of one entry.

    Raises:
        ValueError: the file is no JSON list, or ends early.
    """
    if not _holds_list(path):
        raise ValueError(f"{path.name} is no JSON list; a MUSE file is one.")
    try:
        for _, _, _, entry in scan_json(path):
            yield entry
    except ValueError as error:
        raise ValueError(f"{path.name} ends in the middle or is damaged; copy it again.") from error


def rows_of(entry: Mapping[str, Any]) -> Iterator[MuseRow]:
    """The rows of an entry that are whole; :func:`check_entry` names the others."""
    answers, texts = entry["answers"], entry.get("text_answers") or ()
    for number, (question, targets) in enumerate(zip(entry["questions"], answers, strict=False)):
        answer = texts[number] if number < len(texts) else compose_answer(targets)
        if len(split_marks(answer)[1]) == len(targets):
            size = (int(entry["height"]), int(entry["width"]))
            yield MuseRow(photo_name(entry), size, question, answer, tuple(targets))


def compose_answer(targets: list[Mapping[str, Any]]) -> str:
    """The answer of a row without text: the rephrased names in order."""
    return ", ".join(f"{target.get('rephrased_name', '')}{SEG_MARK}" for target in targets) + "."


def validate(path: Path, images: Path | None = None) -> Iterator[Problem]:
    """Every problem of the MUSE files at a path.

    Args:
        path: a file, or a folder of them.
        images: folder of the photos, to check that they are there; None to skip that.

    Yields:
        Problems in the order of the files.

    Raises:
        FileNotFoundError: there is no MUSE file.
    """
    for file in muse_files(path):
        seen: Counter[str] = Counter()
        names: dict[Any, str] = {}
        number = -1
        try:
            for number, entry in enumerate(read_entries(file)):
                where = f"{file.name}, entry {number}"
                yield from check_entry(entry, where, images, seen, names)
        except (ValueError, RecursionError) as error:
            yield Problem(f"{file.name}, after entry {number}", "file", str(error))


def check_entry(
    entry: Any, where: str, images: Path | None, seen: Counter[str], names: dict[Any, str]
) -> Iterator[Problem]:
    """The problems of one entry.

    Args:
        entry: as read from the file.
        where: its place, for the reports.
        images: folder of the photos, or None.
        seen: photos met so far in the file; updated.
        names: category name by id met so far; updated.
    """

    def problem(check: str, says: str) -> Problem:
        return Problem(where, check, says)

    if not isinstance(entry, dict):
        yield problem("entry", "it is no JSON object.")
        return
    size = entry.get("height"), entry.get("width")
    if not all(isinstance(side, int) and side > 0 for side in size):
        yield problem("size", f"height and width are {size[0]!r} and {size[1]!r}.")
        return
    if not entry.get("file_name") and not entry.get("coco_url"):
        yield problem("photo", "neither file_name nor coco_url is given.")
    else:
        name = photo_name(entry)
        where = f"{where} ({name})"
        seen[name] += 1
        if seen[name] > 1:
            yield problem("repeated_photo", "an earlier entry has the same photo.")
        if images is not None and not (images / name).is_file():
            yield problem("missing_photo", f"there is no {name} below the folder of images.")
    if not isinstance(entry.get("ann_list"), list) or not entry["ann_list"]:
        yield problem("ann_list", "the list of instances is missing or empty.")
    questions, answers = entry.get("questions"), entry.get("answers")
    texts = entry.get("text_answers")
    if not isinstance(questions, list) or not isinstance(answers, list):
        yield problem("questions", "questions and answers have to be lists.")
        return
    lengths = {len(questions), len(answers), *([len(texts)] if isinstance(texts, list) else [])}
    if len(lengths) > 1 or not (texts is None or isinstance(texts, list)):
        yield problem("counts", "questions, answers and text_answers differ in number.")
    for repeated, times in Counter(q for q in questions if isinstance(q, str)).items():
        if times > 1:
            yield problem("repeated_question", f"{repeated!r} is asked {times} times.")
    for number, (question, targets) in enumerate(zip(questions, answers, strict=False)):
        text = texts[number] if isinstance(texts, list) and number < len(texts) else None
        place = f"{where}, question {number}"
        yield from _check_row(question, targets, text, place, cast(Size, size), names)


def _check_row(
    question: Any,
    targets: Any,
    text: Any,
    where: str,
    size: tuple[int, int],
    names: dict[Any, str],
) -> Iterator[Problem]:
    if not isinstance(question, str) or not question.strip():
        yield Problem(where, "question", "it is empty or no text.")
    elif "{seg" in question.casefold():
        yield Problem(where, "question", "it holds a mark; marks belong to answers.")
    if not isinstance(targets, list) or not all(isinstance(t, dict) for t in targets):
        yield Problem(where, "targets", "the answer is no list of instances.")
        return
    if len(targets) < 2:
        yield Problem(where, "few_targets", f"{len(targets)} targets; MUSE asks for at least 2.")
    if text is None and not all(target.get("rephrased_name") for target in targets):
        yield Problem(where, "no_text", "no text_answers, and no rephrased_name to make one from.")
    elif text is not None and not isinstance(text, str):
        yield Problem(where, "text", "the text answer is no text.")
    elif text is not None and (marks := len(split_marks(text)[1])) != len(targets):
        yield Problem(where, "seg_count", f"{marks} {SEG_MARK} for {len(targets)} targets.")
    masks = Counter(json.dumps(target.get("segmentation"), sort_keys=True) for target in targets)
    if any(times > 1 for times in masks.values()):
        yield Problem(where, "repeated_target", "two targets have the same mask.")
    for number, target in enumerate(targets):
        for check in (_check_category, _check_mask):
            found = check(target, size, names)
            if found:
                yield Problem(f"{where}, target {number}", *found)


_Check = Callable[[Mapping[str, Any], tuple[int, int], dict[Any, str]], tuple[str, str] | None]


def _check_category(
    target: Mapping[str, Any], size: tuple[int, int], names: dict[Any, str]
) -> tuple[str, str] | None:
    identity, name = target.get("category_id"), target.get("category_name")
    if identity is None or not isinstance(name, str) or not name:
        return "category", "category_id or category_name is missing."
    known = names.setdefault(str(identity), name)
    if known != name:
        return "category", f"category {identity} is {name!r} here and {known!r} before."
    return None


def _check_mask(
    target: Mapping[str, Any], size: tuple[int, int], names: dict[Any, str]
) -> tuple[str, str] | None:
    box = target.get("bbox")
    try:
        x, y, width, height = (float(value) for value in box or ())
    except (TypeError, ValueError):
        return "bbox", f"it is {box!r} instead of [x, y, width, height]."
    inside = min(x, y) >= -_BOX_SLACK
    inside &= x + width <= size[1] + _BOX_SLACK and y + height <= size[0] + _BOX_SLACK
    if not (inside and min(width, height) > 0):
        return "bbox", f"{box} does not lie in a photo of {size[1]} x {size[0]} pixels."
    try:
        mask = decode_mask(segmentation_to_rle(target.get("segmentation") or [], size))
    except ValueError as error:
        return "segmentation", str(error)
    tight = mask_to_box(mask)
    if not mask.any():
        return "segmentation", "the mask is empty."
    far = np.abs(np.subtract(tight, (x, y, width, height))).max()
    if far > max(_BOX_SLACK, 0.1 * max(size)):
        return "bbox_mask", f"the box {box} is not that of the mask, {list(tight)}."
    return None


def _holds_list(path: Path) -> bool:
    """Whether a JSON file holds a list, as its first character tells."""
    with path.open("rb") as file:
        while (character := file.read(1)).isspace():
            pass
    return character == b"["
