"""The file that a prediction job writes: one line of JSON an answer, appended batch by batch.

After a kill at any moment the file holds whole batches and perhaps a torn end, which is cut off
when the job goes on. It knows rows and bytes; it knows no engine and no image.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pixellm.files import STANDARD, LineLog, locked, parse_json, read_lines
from pixellm.prediction.rows import LazyRows, Row


class AnswerFile:
    """Answers on disk, in the order of the rows; a context manager.

    One process at a time may write. Opening finds out what is done already: a torn last line is
    dropped, and so are the last lines of a batch that was written in part, since an answer may
    depend, in the last bit of a score, on what it was batched with.

    Args:
        path: the file; made where missing, with its folder.
        rows: of the whole job.
        model: what the model is called in the answers.
        batch_size: rows that are answered together.

    Raises:
        ValueError: the file holds answers of another job, or a damaged line.
        OSError: it cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path, rows: Sequence[Row], model: str, batch_size: int) -> None:
        self.path = path
        self.num_done = 0
        """Rows with their answer, or the reason why there is none, in the file."""
        self.num_bad = 0
        """Of these, the rows without an answer."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = ExitStack()
        self._lock.enter_context(locked(path))
        try:
            self._log = LineLog(path, start='{"row": ')
            try:
                self._log.cut(self._find_end(rows, model, batch_size))
            except BaseException:
                self._log.close()
                raise
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._log.close()
        self._lock.close()

    def append(self, lines: bytes) -> None:
        """Put a batch's lines on disk, all or none.

        Raises:
            OSError: the disk is full or gone.
        """
        self._log.append(lines)
        self.num_done += lines.count(b"\n")
        self.num_bad += sum(is_bad(json.loads(line)) for line in lines.splitlines())

    def _find_end(self, rows: Sequence[Row], model: str, batch_size: int) -> int:
        """The byte behind the last batch that is done; counts what is."""
        last_batch = done, bad, end = 0, 0, 0
        for _, line in read_lines(self.path):
            # Building a row may take reading an image's labels: one a batch has to do.
            spared = isinstance(rows, LazyRows) and done % batch_size > 0
            bad += is_bad(self._check(line, done, rows, model, spared=spared))
            done, end = done + 1, end + len(line)
            if done % batch_size == 0 or done == len(rows):
                last_batch = done, bad, end
        self.num_done, self.num_bad, end = last_batch
        return end

    def _check(
        self, line: bytes, number: int, rows: Sequence[Row], model: str, *, spared: bool
    ) -> Any:
        """One line as values; it has to be the answer to the row of its number.

        Of a row that is spared the image and the question are not compared.
        """
        try:
            values = parse_json(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ValueError(
                f"Line {number + 1} of {self.path} is damaged; choose another file for the answers."
            )
        asked: dict[str, Any] = {"row": number, "model": model}
        if number < len(rows) and not spared:
            row = rows[number]
            asked |= {"image": row.image, "question": row.question}
        told = {key: values.get(key) for key in asked}
        if number >= len(rows) or told != asked:
            raise ValueError(
                f"Line {number + 1} of {self.path} answers something else than this job asks; "
                "choose another file for the answers, or remove it."
            )
        return values


class AnswerStream:
    """Answers to standard output or a pipe, which keep nothing to go on from; a context manager.

    Args:
        path: "-", or a pipe.
    """

    def __init__(self, path: Path) -> None:
        self.num_done = 0
        self.num_bad = 0
        self._owns = str(path) != STANDARD
        self._file = path.open("wb") if self._owns else sys.stdout.buffer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._owns:
            self._file.close()

    def append(self, lines: bytes) -> None:
        """Hand a batch's lines on."""
        self._file.write(lines)
        self._file.flush()
        self.num_done += lines.count(b"\n")
        self.num_bad += sum(is_bad(json.loads(line)) for line in lines.splitlines())


def open_answers(
    path: Path, rows: Sequence[Row], model: str, batch_size: int
) -> AnswerFile | AnswerStream:
    """Where answers go: a file that a job goes on with, or a stream for "-" and pipes."""
    if str(path) == STANDARD or (path.exists() and not path.is_file() and not path.is_dir()):
        return AnswerStream(path)
    return AnswerFile(path, rows, model, batch_size)


def is_bad(values: dict[str, Any]) -> bool:
    """Whether a line tells a problem instead of an answer."""
    return "error" in values
