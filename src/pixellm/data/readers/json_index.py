"""Large JSON files without holding them: where each record lies, and the record when asked for.

A file is read once as a stream; of a list with a million entries only the byte offsets stay. The
records are parsed from a memory map of the file itself, whose pages all processes share. Knows
JSON, and nothing of what the records mean.
"""

from __future__ import annotations

import codecs
import json
import mmap
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20
_SPACES = " \t\n\r"


class JsonRecords:
    """The entries of a list in a JSON file, each parsed when asked for.

    Args:
        path: the file.
        spans: (N, 2) int64, first byte and byte past the end of each entry.
    """

    def __init__(self, path: Path, spans: NDArray[np.int64]) -> None:
        self.path = path
        self.spans = spans
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Any:
        """Parse an entry.

        Raises:
            ValueError: the file has changed since it was indexed.
        """
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start, end = self.spans[index]
        try:
            return json.loads(self._map[int(start) : int(end)])
        except ValueError:
            raise ValueError(f"{self.path} has changed while it was in use; start again.") from None

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory map, which another process opens for itself."""
        return {**self.__dict__, "_map": None}


class SpanList:
    """Collects the spans of records while a file is scanned; 16 bytes a record."""

    def __init__(self) -> None:
        self._numbers = array("q")

    def append(self, start: int, end: int) -> None:
        """Add a record."""
        self._numbers.extend((start, end))

    def __len__(self) -> int:
        return len(self._numbers) // 2

    def records(self, path: Path) -> JsonRecords:
        """The records that were added, in order."""
        return JsonRecords(path, np.array(self._numbers, dtype=np.int64).reshape(-1, 2))


def scan_json(path: Path) -> Iterator[tuple[str, int, int, Any]]:
    """Walk through a JSON file whose root is a list, or an object that holds lists.

    Holds one entry at a time.

    Yields:
        (key, first byte, byte past the end, value): per entry of a list, with the key that the
        list has in the root object or "" where the list is the root; per value that is no list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such JSON, is damaged or ends early.
    """
    with path.open("rb") as file:
        yield from _Scanner(file, path).walk()


class _Scanner:
    """Reads JSON values one after the other and counts bytes."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self.path = path
        self.text = ""
        self.position = 0
        self.byte = 0
        self.ended = False
        self.decode_bytes = codecs.getincrementaldecoder("utf-8")()
        self.decoder = json.JSONDecoder()

    def walk(self) -> Iterator[tuple[str, int, int, Any]]:
        if self.peek() == "\ufeff":
            self.advance(self.position + 1)
        opening = self.peek()
        if opening == "[":
            yield from self.entries("")
        elif opening == "{":
            yield from self.members()
        else:
            raise ValueError(f"{self.path} is no JSON list or object.")

    def members(self) -> Iterator[tuple[str, int, int, Any]]:
        self.expect("{")
        while self.peek() != "}":
            _, _, key = self.value()
            self.expect(":")
            if self.peek() == "[":
                yield from self.entries(str(key))
            else:
                yield (str(key), *self.value())
            if self.peek() != "}":
                self.expect(",")

    def entries(self, key: str) -> Iterator[tuple[str, int, int, Any]]:
        self.expect("[")
        while self.peek() != "]":
            yield (key, *self.value())
            if self.peek() != "]":
                self.expect(",")
        self.expect("]")

    def peek(self) -> str:
        """The next character that is no space, which stays."""
        while True:
            start = self.position
            while start < len(self.text) and self.text[start] in _SPACES:
                start += 1
            self.advance(start)
            if start < len(self.text):
                return self.text[start]
            if self.ended:
                raise ValueError(f"{self.path} ends in the middle; copy it again.")
            self.read_more()

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise ValueError(f"{self.path} is damaged at byte {self.byte}; copy it again.")
        self.advance(self.position + 1)

    def value(self) -> tuple[int, int, Any]:
        """The next value with its first byte and the byte past its end."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
                if end < len(self.text) or self.ended:  # a number may go on in the next chunk
                    break
            except RecursionError:
                raise ValueError(f"{self.path} is nested too deep to be read.") from None
            except ValueError:
                if self.ended:
                    place = f"{self.path} is damaged or ends behind byte {self.byte}"
                    raise ValueError(f"{place}; copy it again.") from None
            self.read_more()
        start = self.byte
        self.advance(end)
        return start, self.byte, value

    def advance(self, position: int) -> None:
        passed = self.text[self.position : position]
        self.byte += len(passed) if passed.isascii() else len(passed.encode())
        self.position = position

    def read_more(self) -> None:
        """Drop what was read and add at least as much as is left, so that long values cost little.

        Raises:
            ValueError: the file is no UTF-8.
        """
        left = self.text[self.position :]
        piece = self.file.read(max(_CHUNK, len(left)))
        self.ended = not piece
        try:
            self.text = left + self.decode_bytes.decode(piece, final=self.ended)
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} is no UTF-8 text; save it as UTF-8.") from None
        self.position = 0
