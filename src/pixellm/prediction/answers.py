"""The file that a prediction job writes: one line of JSON an answer, appended batch by batch.

After a kill at any moment the file holds whole batches and perhaps a torn end, which is cut off
when the job goes on. It knows rows and bytes; it knows no engine and no picture.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pixellm.prediction.rows import LazyRows, Row

if sys.platform != "win32":
    import fcntl


class AnswerFile:
    """Answers on disk, in the order of the rows; a context manager.

    One process at a time may write. Opening finds out what is done already: a torn last line is
    dropped, and so are the last lines of a batch that was written in part, since an answer may
    depend, in the last bit of a score, on what it was batched with.

    Args:
        path: the file; made where missing, but not its folder.
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
        # Without a buffer: what a full disk has refused must not be written at the end after all.
        self._file = path.open("ab", buffering=0)
        try:
            self._lock()
            self._end = self._find_end(rows, model, batch_size)
            self._file.truncate(self._end)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, lines: bytes) -> None:
        """Put a batch's lines on disk, all or none.

        Raises:
            OSError: the disk is full or gone.
        """
        try:
            left = memoryview(lines)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self._end)
            reason = error.strerror or str(error)
            raise type(error)(
                f"{self.path} cannot be written ({reason}); make room and run the same again."
            ) from error
        self._end += len(lines)
        self.num_done += lines.count(b"\n")
        self.num_bad += sum(is_bad(json.loads(line)) for line in lines.splitlines())

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OSError(
                f"Another process is writing {self.path}; wait for it or choose another file."
            ) from None

    def _find_end(self, rows: Sequence[Row], model: str, batch_size: int) -> int:
        """The byte behind the last batch that is done; counts what is."""
        last_batch = done, bad, end = 0, 0, 0
        with self.path.open("rb") as written:
            for line in written:
                if not line.endswith(b"\n"):
                    break
                # Building a row may take reading a picture's labels: one a batch has to do.
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

        Of a row that is spared the picture and the question are not compared.
        """
        try:
            values = json.loads(line)
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


def is_bad(values: dict[str, Any]) -> bool:
    """Whether a line tells a problem instead of an answer."""
    return "error" in values
