"""Rows of annotation files as Arrow files: written once as a stream, memory-mapped afterwards.

A large annotation file is read once. What its data set needs of each row lies then in the user's
cache, under a key of the file's path, size and time, and opens in milliseconds in every process,
which share its pages. Records are JSON, so nothing in the cache can run code.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixellm.files import user_cache

Integers = NDArray[np.int64]

SMALLEST_CACHED = 1 << 20
"""Sources of fewer bytes in all are read anew each time, into memory."""

_VERSION = 4
"""Rises when what a data set keeps of its files changes."""

_RECORD = "record"
_BAD = "bad"
_BATCH_BYTES = 1 << 20
_BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of a data set that can't be used.

    Attributes:
        file: the annotation file, or the image.
        row: where it is in the file, such as "entry 12, question 3"; "" for the file as a whole.
        reason: what is wrong, one sentence.
    """

    file: Path
    row: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{', ' if self.row else ''}{self.row}: {self.reason}"


class Table(Sequence[Any]):
    """Records by number, with columns of whole numbers beside them: an Arrow file, or a buffer."""

    def __init__(self, source: Any) -> None:
        import pyarrow

        self._source = source
        stored = pyarrow.memory_map(str(source)) if isinstance(source, Path) else source
        self._table = pyarrow.ipc.open_file(stored).read_all()
        self._records = self._table.column(_RECORD)

    def __reduce__(self) -> tuple[Any, ...]:
        """Where the file is, or its content; another process maps it for itself."""
        return Table, (self._source,)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        """The record of a row, parsed."""
        return json.loads(self._records[int(index)].as_buffer().to_pybytes())

    def numbers(self, column: str) -> Integers:
        """(N,) int64 column; without a copy where it was written at once."""
        parts = [
            np.frombuffer(part.buffers()[1], np.int64, len(part), 8 * part.offset)
            for part in self._table.column(column).chunks
            if len(part)
        ]  # pyarrow's own way imports pandas where that is installed
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.int64), *parts])


class TableWriter:
    """Writes a table batch by batch, into a file, or into memory where ``path`` is None.

    ``columns`` names the columns of numbers.
    """

    def __init__(self, path: Path | None, columns: Sequence[str]) -> None:
        import pyarrow

        self._arrow = pyarrow
        fields = [(_RECORD, pyarrow.binary()), *((name, pyarrow.int64()) for name in columns)]
        self._schema = pyarrow.schema(fields)
        self._path = path
        self._sink = pyarrow.OSFile(str(path), "wb") if path else pyarrow.BufferOutputStream()
        self._writer = pyarrow.ipc.new_file(self._sink, self._schema)
        self._rows: list[tuple[bytes | int, ...]] = []
        self._num_bytes = self._num_rows = 0

    def __len__(self) -> int:
        return self._num_rows + len(self._rows)

    def append(self, record: Any, *numbers: int) -> None:
        """Add a row: what JSON can hold, or JSON as bytes, and a number for each column."""
        content = record if isinstance(record, bytes) else json.dumps(record).encode("ascii")
        self._rows.append((content, *numbers))
        self._num_bytes += len(content)
        if self._num_bytes >= _BATCH_BYTES or len(self._rows) >= _BATCH_ROWS:
            self._flush()

    def extend(self, *columns: Integers) -> None:
        """Add rows of numbers alone, at once."""
        self._write([b""] * len(columns[0]), *columns)

    def close(self) -> Any:
        """Write what is left; returns the content where it went into memory."""
        self._flush()
        self._writer.close()
        return self._sink.close() if self._path else self._sink.getvalue()

    def _flush(self) -> None:
        if self._rows:
            records, *columns = zip(*self._rows, strict=True)
            # An array takes whole numbers alone, where Arrow makes 1 of 1.5.
            self._write(records, *(array("q", one) for one in columns))
        self._rows, self._num_bytes = [], 0

    def _write(self, *columns: Any) -> None:
        self._writer.write_batch(self._arrow.record_batch(list(columns), schema=self._schema))
        self._num_rows += len(columns[0])


class TablesWriter:
    """Writes the tables of some files, and their bad rows, into a folder, or into memory."""

    def __init__(self, sources: Sequence[Path], folder: Path | None) -> None:
        self._sources = sources
        self._folder = folder
        self._writers: dict[str, TableWriter] = {}
        self._bad = self.table(_BAD)

    def table(self, name: str, *columns: str) -> TableWriter:
        """Begin a table with these columns of numbers."""
        path = self._folder / name if self._folder else None
        writer = self._writers[name] = TableWriter(path, columns)
        return writer

    def refuse(self, bad: BadRow) -> None:
        """Keep a bad row with its reason."""
        self._bad.append([self.key_of(bad.file), bad.row, bad.reason])

    def key_of(self, file: Path) -> int | str:
        """What stands for a file in a record: a source's number, as paths may be relative."""
        return self._sources.index(file) if file in self._sources else str(file)

    def close(self) -> dict[str, Any]:
        """Write what is left of all tables; returns what :meth:`TableWriter.close` does of each."""
        return {name: writer.close() for name, writer in self._writers.items()}


@dataclass(frozen=True)
class Tables:
    """The tables of some files by name."""

    sources: Sequence[Path]
    by_name: Mapping[str, Table]

    def __getitem__(self, name: str) -> Table:
        return self.by_name[name]

    @cached_property
    def bad_rows(self) -> tuple[BadRow, ...]:
        """What of the source can't be used."""
        return tuple(BadRow(self.file_of(key), *rest) for key, *rest in self.by_name[_BAD])

    def file_of(self, key: int | str) -> Path:
        """The file that a key of a record stands for."""
        return Path(key) if isinstance(key, str) else self.sources[key]


def open_tables(sources: Sequence[Path], key: str, fill: Callable[[TablesWriter], None]) -> Tables:
    """The tables of some files: from the cache, or made by ``fill`` and put there.

    ``key`` is what else they depend on: the data set, its version and options.
    """
    stamps = [(path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    if sum(size for size, _ in stamps) >= SMALLEST_CACHED:
        name = _digest(key, *(path.absolute() for path in sources))
        folder = user_cache() / "tables" / f"{name}-{_digest(_VERSION, stamps)}"
        found = _open_folder(sources, folder) or _fill_folder(sources, folder, fill)
        if found:
            return found
    writer = TablesWriter(sources, None)
    fill(writer)
    return Tables(sources, {name: Table(content) for name, content in writer.close().items()})


def _open_folder(sources: Sequence[Path], folder: Path) -> Tables | None:
    """Tables in the cache; None where there are none, or damaged ones."""
    try:
        return Tables(sources, {path.name: Table(path) for path in folder.iterdir()})
    except (OSError, ValueError, KeyError):  # pyarrow's own errors are among them
        return None


def _fill_folder(
    sources: Sequence[Path], folder: Path, fill: Callable[[TablesWriter], None]
) -> Tables | None:
    """Make tables in the cache, in place of those of an earlier version of the same files.

    None where the cache can't be written.
    """
    staging = folder.with_name(f".writing-{secrets.token_hex(8)}")
    try:
        staging.mkdir(parents=True)
        writer = TablesWriter(sources, staging)
        fill(writer)
        writer.close()
        for old in folder.parent.glob(f"{folder.name.partition('-')[0]}-*"):
            if old != folder or _open_folder(sources, folder) is None:  # not what another has made
                shutil.rmtree(old, ignore_errors=True)
        staging.rename(folder)
    except OSError:  # where it is the files' fault, filling tables in memory says so again
        pass
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _open_folder(sources, folder)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
