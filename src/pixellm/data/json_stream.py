"""Large JSON files entry by entry, in the memory of one entry."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20
_SPACES = re.compile(r"[ \t\n\r]*")


def scan_json(path: Path, keys: set[str] | None = None) -> Iterator[tuple[str, Any, str]]:
    """Walk through a JSON file whose root is a list, or an object that holds lists.

    Yields (key, value, text): per entry of a list, with the key that the list has in the root
    object or "" where the list is the root; per value that is no list. The text is the value's own.
    ``keys`` gets the keys of the root as they are met, also those of empty lists. FileNotFoundError
    where there is no file, ValueError where it is no such JSON, is damaged or ends early.
    """
    with path.open("rb") as file:
        yield from _Scanner(file, path, set() if keys is None else keys).walk()


def scan_list(path: Path) -> Iterator[Any]:
    """The entries of a JSON file whose root is a list; raises as :func:`scan_json`."""
    with path.open("rb") as file:
        scanner = _Scanner(file, path, set())
        if scanner.opening() != "[":
            raise ValueError(f"{path} is no JSON list.")
        for _, entry, _ in scanner.walk():
            yield entry


class _Scanner:
    """Reads JSON values one after the other and counts bytes."""

    def __init__(self, file: BinaryIO, path: Path, keys: set[str]) -> None:
        self.file = file
        self.path = path
        self.keys = keys
        self.text = ""
        self.position = 0
        self.byte = 0
        self.ended = False
        self.decode_bytes = codecs.getincrementaldecoder("utf-8")()
        self.decoder = json.JSONDecoder()

    def opening(self) -> str:
        """The first character, behind a byte order mark; it stays."""
        if self.peek() == "\ufeff":
            self.position += 1
        return self.peek()

    def walk(self) -> Iterator[tuple[str, Any, str]]:
        opening = self.opening()
        if opening == "[":
            yield from self.entries("")
        elif opening == "{":
            yield from self.members()
        else:
            raise ValueError(f"{self.path} is no JSON list or object.")
        if self.has_more():
            raise ValueError(f"{self.path} goes on behind its end, at byte {self.passed()}.")

    def members(self) -> Iterator[tuple[str, Any, str]]:
        self.expect("{")
        while self.peek() != "}":
            key = str(self.value()[0])
            self.keys.add(key)
            self.expect(":")
            if self.peek() == "[":
                yield from self.entries(key)
            else:
                yield (key, *self.value())
            if self.peek() != "}":
                self.expect(",")
        self.expect("}")

    def entries(self, key: str) -> Iterator[tuple[str, Any, str]]:
        self.expect("[")
        while self.peek() != "]":
            yield (key, *self.value())
            if self.peek() != "]":
                self.expect(",")
        self.expect("]")

    def peek(self) -> str:
        """The next character that is no space, which stays."""
        if not self.has_more() and not self.passed():
            raise ValueError(f"{self.path} is empty.")
        if not self.has_more():
            raise ValueError(f"{self.path} ends in the middle; copy it again.")
        return self.text[self.position]

    def has_more(self) -> bool:
        """Whether something other than spaces follows; these are passed."""
        while True:
            found = _SPACES.match(self.text, self.position)
            assert found is not None, "it matches nothing too"
            self.position = found.end()
            if self.position < len(self.text) or self.ended:
                return self.position < len(self.text)
            self.read_more()

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise ValueError(f"{self.path} is damaged at byte {self.passed()}; copy it again.")
        self.position += 1

    def value(self) -> tuple[Any, str]:
        """The next value, and its text."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
                if end < len(self.text) or self.ended:  # a number may go on in the next chunk
                    text = self.text[self.position : end]
                    self.position = end
                    return value, text
            except RecursionError:
                raise ValueError(f"{self.path} is nested too deep to be read.") from None
            except ValueError:
                if self.ended:
                    where = f"{self.path} is damaged or ends behind byte {self.passed()}"
                    raise ValueError(f"{where}; copy it again.") from None
            self.read_more()

    def passed(self) -> int:
        """Bytes before the position."""
        return self.byte + len(self.text[: self.position].encode())

    def read_more(self) -> None:
        """Drop what was read, add at least as much as is left, so that long values cost little."""
        self.byte = self.passed()
        left = self.text[self.position :]
        piece = self.file.read(max(_CHUNK, len(left)))
        self.ended = not piece
        try:
            self.text = left + self.decode_bytes.decode(piece, final=self.ended)
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} is no UTF-8 text; save it as UTF-8.") from None
        self.position = 0
