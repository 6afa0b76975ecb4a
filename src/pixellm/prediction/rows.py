"""What a prediction job asks: one row a question, from a JSONL file, a folder or samples.

Reads lists of questions and nothing else: pictures are opened when their row is answered. A line
that can't be asked becomes a row that says why, so that one bad line never stops a job.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixellm.types import Sample


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One question of a job.

    Attributes:
        number: its place in the job, from 0.
        image: what the input calls the picture.
        question: as typed.
        source: where the picture is, or its pixels as (H, W, 3) uint8 RGB; None in a bad row.
        history: earlier (question, answer) pairs that the input gives, answers with ``{seg}``.
        problem: why the row can't be asked; "" where it can.
    """

    number: int
    image: str
    question: str
    source: Path | NDArray[np.uint8] | None
    history: tuple[tuple[str, str], ...] = ()
    problem: str = ""


def read_rows(path: Path, question: str = "") -> list[Row]:
    """The rows of a JSONL file, or of a folder of pictures.

    A line of the file is an object with ``image`` (a path, relative to the file's folder),
    ``question`` and optionally ``history``, a list of [question, answer] pairs; other keys are
    passed over. In a folder, and those below it, every file with a picture's suffix counts, in
    the order of their names.

    Args:
        path: a file or a folder.
        question: asked about every picture of a folder, and in lines without a question.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: nothing to ask, or pictures without a question.
    """
    if path.is_dir():
        rows = _rows_of_folder(path, question)
    elif path.is_file():
        rows = _rows_of_lines(path, question)
    else:
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if not rows:
        raise ValueError(f"{path} holds no pictures to ask about.")
    return rows


def rows_of_samples(samples: Iterable[Sample]) -> Iterator[Row]:
    """Every question of a data set, without its answer.

    A later turn of a dialogue is asked with the data's own earlier turns as its history.
    """
    number = 0
    for sample in samples:
        is_file = isinstance(sample.image, Path)
        for index, turn in enumerate(sample.turns):
            earlier = tuple((t.question, t.answer) for t in sample.turns[:index])
            name = str(sample.image) if is_file else sample.id
            yield Row(number, name, turn.question, sample.image, earlier)
            number += 1


def split_rows(rows: Sequence[Row], start: int, batch_size: int) -> list[Sequence[Row]]:
    """The rows from ``start`` on, in batches whose borders never move with ``start``."""
    edges = [start, *range(start - start % batch_size + batch_size, len(rows), batch_size)]
    return [rows[a:b] for a, b in zip(edges, [*edges[1:], len(rows)], strict=True) if a < b]


def _rows_of_folder(folder: Path, question: str) -> list[Row]:
    if not question.strip():
        raise ValueError(f"{folder} is a folder of pictures; say what to ask about each of them.")
    suffixes = Image.registered_extensions().keys()
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )
    names = [path.relative_to(folder).as_posix() for path in found]
    return [Row(n, names[n], question, path) for n, path in enumerate(found)]


def _rows_of_lines(path: Path, question: str) -> list[Row]:
    with path.open("rb") as file:
        lines = [line for line in file if line.strip()]
    return [_row_of_line(n, line, path.parent, question) for n, line in enumerate(lines)]


def _row_of_line(number: int, line: bytes, folder: Path, default: str) -> Row:
    try:
        values = json.loads(line)
    except ValueError as error:
        return Row(number, "", "", None, problem=f"The line is not valid JSON ({error}).")
    if not isinstance(values, dict):
        return Row(number, "", "", None, problem="The line is no JSON object.")
    image, question = values.get("image"), values.get("question", default)
    shown = (image if isinstance(image, str) else "", question if isinstance(question, str) else "")
    history = values.get("history", [])
    problem = ""
    if not shown[0]:
        problem = 'The line has no "image" with the path of a picture.'
    elif not shown[1].strip():
        problem = 'The line has no "question", and none is given for all.'
    elif not _is_history(history):
        problem = '"history" is no list of [question, answer] pairs.'
    if problem:
        return Row(number, *shown, None, problem=problem)
    return Row(number, *shown, Path(os.path.normpath(folder / shown[0])), _pairs(history))


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in value
    )


def _pairs(history: list[list[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((question, answer) for question, answer in history)
