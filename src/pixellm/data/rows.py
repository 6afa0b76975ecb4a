"""What a job asks: one row a question, from a JSONL file, a folder or samples.

Reads lists of questions and nothing else: images are opened when their row is answered. A line
or sample that can't be asked becomes a row that says why, so that none of them stops a job.
"""

from __future__ import annotations

import os
import shlex
from array import array
from bisect import bisect_right
from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationInfo, field_validator

from pixellm.data.dataset import Row
from pixellm.data.json_values import parse_line, text_fault, whole_number
from pixellm.data.lazy import LastKept, Lazy
from pixellm.files import STANDARD, read_input
from pixellm.image_files import DRAWINGS, has_image_name, image_size, is_url
from pixellm.types import Sample


@dataclass(frozen=True, slots=True, eq=False)
class JobRow:
    """One question of a job.

    Attributes:
        number: its index in the job, from 0.
        image: what the input calls the image.
        question: as typed.
        source: where the image is, or its pixels as (H, W, 3) uint8 RGB; None in a bad row.
        history: earlier (question, answer) pairs that the input gives, answers with ``{seg}``.
        problem: why the row can't be asked; "" where it can.
        id: names the question in its data set, as in evaluations; "" where there is none.
        takes_suffix: see :class:`~pixellm.types.Turn`.
    """

    number: int
    image: str
    question: str
    source: Path | NDArray[np.uint8] | None
    history: tuple[tuple[str, str], ...] = ()
    problem: str = ""
    id: str = ""
    takes_suffix: bool = False


class _Line(Row):
    noun = "line"
    image: str
    question: str
    history: tuple[tuple[str, str], ...] = ()
    id: str = ""

    @field_validator("id", mode="before")
    @classmethod
    def _check_id(cls, value: Any) -> str:
        name = value if isinstance(value, str) else whole_number(value)
        if name is None:
            raise ValueError(f"Its id is a number or a text, not {value!r:.40}.")
        return str(name)

    @field_validator("image", "question", mode="before")
    @classmethod
    def _check_text(cls, value: Any, info: ValidationInfo) -> Any:
        if fault := text_fault(value, str(info.field_name), marks=True):
            raise ValueError(fault)
        if info.field_name == "image" and is_url(value):
            raise ValueError("Its image is a URL, and lists name files: download it first.")
        return value


def read_rows(path: Path, question: str = "") -> list[JobRow]:
    """The rows of a JSONL file, "-" for standard input, or of a folder of images.

    A line of the file is an object with ``image`` (a path, relative to the file's folder),
    ``question`` and optionally ``history``, a list of [question, answer] pairs, and ``id``, which
    comes back with the answer; null is as if it were not there, other keys are passed over. In a
    folder, and those below it, every file with an image's suffix counts, in the order of names. The
    question given is asked about every image of a folder, and in lines without one.

    FileNotFoundError where there is neither, ValueError for nothing to ask, or no question.
    """
    if str(path) == STANDARD:
        rows = _rows_of_lines(path, question)
    elif path.is_dir():
        rows = _rows_of_folder(path, question)
    elif path.is_file() and _is_image(path):
        asked = shlex.quote(question or "What is there?")
        raise ValueError(
            f"{path} is one image; ask about it with: pixellm segment {shlex.quote(str(path))} "
            f"{asked}"
        )
    elif path.exists():
        rows = _rows_of_lines(path, question)
    else:
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if not rows:
        raise ValueError(f"{path} holds no images to ask about.")
    return rows


def rows_of_samples(
    samples: Sequence[Sample],
    root: Path = Path(),
    *,
    single_turns: bool = False,
    problems: Sequence[str] = (),
) -> Lazy[JobRow]:
    """Every question of a data set, without its answer; images go by their path below ``root``.

    A later turn of a dialogue is asked with the data's own earlier turns as its history. A sample
    that can't be built is one row with the reason; ``problems``, why rows were left out of the
    samples, become the last rows. Unless each sample is known to have one turn, all are built once,
    to count.
    """
    starts = range(len(samples) + 1) if single_turns else _first_rows(samples)
    sample_at = LastKept(samples.__getitem__)  # turns of one dialogue follow each other

    def build(number: int) -> JobRow:
        if number >= starts[-1]:
            return JobRow(number, "", "", None, problem=problems[number - starts[-1]])
        index = bisect_right(starts, number) - 1
        try:
            sample = sample_at(index)
        except (OSError, ValueError) as error:
            return JobRow(number, "", "", None, problem=describe_error(error))
        position = number - starts[index]
        turn = sample.turns[position]
        return JobRow(
            number,
            name_of_image(sample, root),
            turn.question,
            sample.image,
            tuple((one.question, one.answer) for one in sample.turns[:position]),
            id=f"{sample.id}/{position}",
            takes_suffix=turn.takes_suffix,
        )

    return Lazy(range(starts[-1] + len(problems)), build)


def describe_error(error: Exception) -> str:
    """What went wrong with a row, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'The image'}: {error.strerror}."
    return " ".join(str(error).split())


def _first_rows(samples: Sequence[Sample]) -> Sequence[int]:
    """(S + 1,) number of the first row of each sample, and the end; all samples are built."""
    starts = array("q", [0])
    for index in range(len(samples)):
        try:
            turns = len(samples[index].turns)
        except (OSError, ValueError):
            turns = 1
        starts.append(starts[-1] + turns)
    return starts


def name_of_image(sample: Sample, root: Path) -> str:
    """What answers call an image: its path below a folder, or its sample where it is drawn."""
    if not isinstance(sample.image, Path):
        return sample.id
    below = sample.image.is_relative_to(root)
    return sample.image.relative_to(root).as_posix() if below else str(sample.image)


def _rows_of_folder(folder: Path, question: str) -> list[JobRow]:
    if not question.strip():
        raise ValueError(f"{folder} is a folder of images; say what to ask about each of them.")
    found = sorted(
        path
        for path in folder.rglob("*")
        if has_image_name(path) and not path.name.startswith(".") and path.is_file()
    )
    names = [path.relative_to(folder).as_posix() for path in found]
    return [JobRow(n, names[n], question, path) for n, path in enumerate(found)]


def _is_image(path: Path) -> bool:
    try:
        image_size(path)
    except ValueError:
        if has_image_name(path) or path.suffix.lower() in DRAWINGS:
            raise
        return False
    return True


def _rows_of_lines(path: Path, question: str) -> list[JobRow]:
    content = read_input(path).removeprefix(BOM_UTF8)
    lines = [line for line in content.split(b"\n") if line.strip()]
    return [_row_of_line(n, line, path.parent, question) for n, line in enumerate(lines)]


def _row_of_line(number: int, line: bytes, folder: Path, default: str) -> JobRow:
    image = question = ""
    try:
        values = parse_line(line)
        if isinstance(values, dict):
            if values.get("question") is None:
                values["question"] = default or None
            given = (values.get("image"), values["question"])
            image, question = (value if isinstance(value, str) else "" for value in given)
        row = _Line.read(values)
    except ValueError as error:
        return JobRow(number, image, question, None, problem=str(error))
    source = Path(os.path.normpath(folder / row.image.replace("\\", "/")))
    return JobRow(number, image, question, source, row.history, id=row.id)
