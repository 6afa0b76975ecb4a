"""The file that a job writes: JSON lines, a batch of items at a time.

After a kill at any moment the file holds whole batches, perhaps a part of one and a torn end; what
is no whole batch is dropped when the job goes on.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from pixellm.files import (
    STANDARD,
    LineLog,
    check_log,
    check_place,
    is_stream,
    locked,
    open_stream,
    parse_json,
    read_lines,
    write_files,
)

Check = Callable[[dict[str, Any], bool], bool]
"""Whether the values of a line answer what the job asks; told whether it is its batch's first."""

_START = '{"row": '


def accept(values: dict[str, Any], is_first: bool) -> bool:
    """Take every line for an answer to what is asked."""
    return True


@dataclass(frozen=True, slots=True)
class BatchSpan:
    """A whole batch in a file, [start, end) in bytes, and how many of its items have no answer."""

    number: int
    start: int
    end: int
    bad: int


@dataclass(frozen=True, slots=True)
class _Line:
    row: int
    batch: int
    num_turns: int
    length: int
    bad: bool


class AnswerFile:
    """Answers on disk; a context manager.

    One process at a time may write. Opening finds out what is done already. A torn last line is
    dropped, and so are lines of a batch that is there in part, since an answer may depend, in the
    last bit of a score, on what it was batched with.

    The file is made where missing, with its folder.

    Attributes:
        done: numbers of the batches in the file.
        num_bad: items in the file without an answer.
    """

    def __init__(self, path: Path, num_items: int, batch_size: int, check: Check = accept) -> None:
        self.path = path
        self.done: set[int] = set()
        self.num_bad = 0
        self._job = (num_items, batch_size, check)
        self._spans: list[BatchSpan] = []
        check_place(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(locked(path))
            if path.exists():  # what is refused stays as it is, a torn end included
                check_log(path, start=_START)
            self._rewrite(find_batches(path, *self._job))
            self._log = stack.enter_context(LineLog(path, start=_START))
            for span in self._spans:
                self._count(span)
            self._log.cut(self._spans[-1].end if self._spans else 0)
            self._gather()
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    def append(self, number: int, lines: bytes) -> None:
        """Put a batch's lines on disk, all or none."""
        start = self._log.end
        self._log.append(lines)
        bad = sum(is_bad(json.loads(line)) for line in lines.splitlines())
        span = BatchSpan(number, start, self._log.end, bad)
        self._spans.append(span)
        self._count(span)

    def finish(self) -> None:
        """Take in what other processes wrote, and put the batches in order."""
        self._gather()
        self._log.close()
        self._rewrite(sorted(self._spans, key=lambda span: span.number))

    def _count(self, span: BatchSpan) -> None:
        self.done.add(span.number)
        self.num_bad += span.bad

    def _gather(self) -> None:
        """Take in the parts that other processes wrote, of this call or of one that was killed."""
        for part in sorted(self.path.parent.glob(f".{self.path.name}.part[0-9][0-9][0-9]")):
            content = part.read_bytes()
            for span in find_batches(part, *self._job):
                if span.number not in self.done:
                    self.append(span.number, content[span.start : span.end])
            part.unlink()

    def _rewrite(self, spans: list[BatchSpan]) -> None:
        """Keep these batches, in this order; the file stays where they are its beginning."""
        ends = [0, *(span.end for span in spans)]
        if all(span.start == end for span, end in zip(spans, ends, strict=False)):
            self._spans = spans
            return
        content = self.path.read_bytes()
        self._spans, end = [], 0
        for span in spans:
            length = span.end - span.start
            self._spans.append(BatchSpan(span.number, end, end + length, span.bad))
            end += length
        write_files({self.path: b"".join(content[span.start : span.end] for span in spans)})


class AnswerStream:
    """Answers to standard output or a pipe, which keep nothing to go on from; a context manager."""

    def __init__(self, path: Path) -> None:
        self.done: set[int] = set()
        self.num_bad = 0
        self._owns = str(path) != STANDARD
        self._file = open_stream(path) if self._owns else sys.stdout.buffer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._owns:
            self._file.close()

    def append(self, number: int, lines: bytes) -> None:
        """Hand a batch's lines on."""
        self._file.write(lines)
        self._file.flush()
        self.num_bad += sum(is_bad(json.loads(line)) for line in lines.splitlines())

    def finish(self) -> None:
        """Nothing is left to do."""


def open_answers(
    path: Path, num_items: int, batch_size: int, check: Check = accept
) -> AnswerFile | AnswerStream:
    """Where answers go: a file that a job goes on with, or a stream for "-" and pipes."""
    if is_stream(path):
        return AnswerStream(path)
    return AnswerFile(path, num_items, batch_size, check)


def find_batches(path: Path, num_items: int, batch_size: int, check: Check) -> list[BatchSpan]:
    """The whole batches of a file, each once; none where there is no file."""
    found: dict[int, BatchSpan] = {}
    end = 0
    lines = _read(path, num_items, batch_size, check) if path.is_file() else iter(())
    for number, group in groupby(lines, key=lambda line: line.batch):
        batch = list(group)
        start, end = end, end + sum(line.length for line in batch)
        size = min(batch_size, num_items - number * batch_size)
        turns = Counter(line.row for line in batch)
        if len(turns) == size and all(turns[line.row] == line.num_turns for line in batch):
            bad = sum(line.bad for line in batch)
            found.setdefault(number, BatchSpan(number, start, end, bad))
    return list(found.values())


def is_bad(values: dict[str, Any]) -> bool:
    """Whether a line tells a problem instead of an answer."""
    return "error" in values


def _read(path: Path, num_items: int, batch_size: int, check: Check) -> Iterator[_Line]:
    before = -1
    for number, line in read_lines(path):
        try:
            values = parse_json(line)
            row, turns = values["row"], values.get("num_turns", 1)
            batch = row // batch_size
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Line {number} of {path} is damaged; delete that line, and what it answered is "
                "asked again, or choose another file for the answers."
            ) from error
        if not (0 <= row < num_items and check(values, batch != before)):
            raise ValueError(
                f"Line {number} of {path} answers something else than this job asks; "
                "choose another file for the answers, or remove it."
            )
        before = batch
        yield _Line(row, batch, turns, len(line), is_bad(values))
