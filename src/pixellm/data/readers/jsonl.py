"""Your own dialogues: one :class:`~pixellm.types.Sample` a line of a JSONL file.

The most general way in: any question, any answer with ``{seg}`` marks, masks as polygons or run
lengths. The format is that of docs/data.md. Unknown keys are errors, so that a typing mistake loses
nothing silently.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pixellm.data.readers.base import BadRow, LazySamples, Reader, image_size, path_of_split
from pixellm.data.readers.json_index import SpanList
from pixellm.masks import segmentation_to_rle
from pixellm.types import SEG_MARK, Sample, Target, Turn

_KEYS = {
    "line": ({"image", "turns"}, {"id", "size", "objects"}),
    "turn": ({"question", "answer"}, {"targets", "kind"}),
    "target": ({"name", "segmentation"}, {"ignore"}),
}
"""Needed and optional keys of each level."""


class JsonlSamples(Reader):
    """A JSONL file of dialogues; an item is a line.

    Args:
        root: folder that the file is below.
        split: put in place of ``{split}``.
        seed: another seed gives another order.
        file: the JSONL file, below ``root``; images are found from its folder.

    Raises:
        ValueError: no line can be used.
        FileNotFoundError: there is no such file.
    """

    name = "jsonl"
    title = "Your own dialogues: a JSONL file of samples"
    splits = ("train", "val", "test")
    obtain = "write one dialogue a line, as docs/data.md shows"

    def __init__(
        self, root: Path | str, split: str = "train", seed: int = 0, *, file: str = "{split}.jsonl"
    ) -> None:
        super().__init__(root, split, seed)
        self.file = path_of_split(self.root, file, split)
        self.require(self.file)
        spans, numbers, bad_rows = SpanList(), SpanList(), list[BadRow]()
        self._num_questions = self._num_targets = 0
        for number, start, end, line in _lines(self.file):
            try:
                turns = _checked_line(line)
            except ValueError as error:
                bad_rows.append(BadRow(self.file, f"line {number}", str(error)))
                continue
            spans.append(start, end)
            numbers.append(number, number)
            self._num_questions += len(turns)
            self._num_targets += sum(len(turn.get("targets", ())) for turn in turns)
        self.bad_rows = tuple(bad_rows)
        self._rows = spans.records(self.file)
        self._numbers = numbers.records(self.file).spans[:, 0]
        if not len(self._rows):
            first = f": {bad_rows[0].row}: {bad_rows[0].reason}" if bad_rows else "."
            raise ValueError(f"{self.file} holds no line that can be used{first}")

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The file under its default name."""
        return (root / f"{split}.jsonl",)

    def __len__(self) -> int:
        """Lines that can be used."""
        return len(self._rows)

    def where(self, item: int) -> tuple[Path, str]:
        """The file, and which line, counted from 1."""
        return self.file, f"line {self._numbers[item]}"

    def compose(self, item: int, rng: random.Random) -> tuple[Sample, ...]:
        """The dialogue; nothing of it is left to chance."""
        try:
            return (self._sample(item),)
        except (OSError, ValueError) as error:
            file, row = self.where(item)
            raise ValueError(f"{file}, {row}: {error}") from None

    def evaluation_samples(self) -> LazySamples:
        """The first question of each dialogue."""
        return LazySamples(len(self), self._first_question)

    def counts(self) -> dict[str, int]:
        """Images (one a line), questions and targets."""
        return {
            "images": len(self),
            "questions": self._num_questions,
            "targets": self._num_targets,
        }

    def _first_question(self, item: int) -> Sample:
        (whole,) = self.compose(item, random.Random(0))
        return replace(whole, turns=whole.turns[:1])

    def _sample(self, item: int) -> Sample:
        row = self._rows[item]
        path = self.file.parent / row["image"]
        height, width = row.get("size") or image_size(path)
        size = (height, width)
        turns = tuple(
            Turn(
                turn["question"],
                turn["answer"],
                tuple(_target(one, size) for one in turn.get("targets", ())),
                turn.get("kind", ""),
            )
            for turn in row["turns"]
        )
        objects = tuple(_target(one, size) for one in row.get("objects", ()))
        name = str(row.get("id", f"{self.name}-{self.split}-{self._numbers[item]}"))
        return Sample(path, size, turns, name, objects)


def _lines(path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """(number from 1, first byte, byte past the end, line) of each line that is not empty."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, start, start + len(line), line
            start += len(line)


def _checked_line(line: bytes) -> list[dict[str, Any]]:
    """The turns of a line whose keys and types are right; masks are not decoded.

    Raises:
        ValueError: something is wrong, one sentence.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"It is no JSON ({error}).") from None
    _check_keys("line", row)
    size = row.get("size", [1, 1])
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size)):
        raise ValueError(f"Its size is [height, width], not {size!r}.")
    if not isinstance(row["image"], str) or not isinstance(row["turns"], list):
        raise ValueError("Its image is a path, and its turns are a list.")
    targets = list(row.get("objects", ()))
    for turn in row["turns"]:
        _check_keys("turn", turn)
        if not all(isinstance(turn.get(key, ""), str) for key in ("question", "answer", "kind")):
            raise ValueError("The question, answer and kind of a turn are texts.")
        marks, named = turn["answer"].count(SEG_MARK), turn.get("targets", [])
        if marks != len(named):
            raise ValueError(f"An answer has {marks} {SEG_MARK} marks but {len(named)} targets.")
        targets += named
    for target in targets:
        _check_keys("target", target)
    return list(row["turns"])


def _check_keys(level: str, value: Any) -> None:
    needed, optional = _KEYS[level]
    if not isinstance(value, Mapping):
        raise ValueError(f"A {level} is a JSON object, not {value!r:.40}.")
    missing = sorted(needed - value.keys())
    unknown = sorted(value.keys() - needed - optional)
    if missing or unknown:
        wrong = f"lacks {missing[0]!r}" if missing else f"has an unknown key {unknown[0]!r}"
        known = ", ".join(sorted(needed | optional))
        raise ValueError(f"A {level} {wrong}; its keys are {known}.")


def _target(value: Mapping[str, Any], size: tuple[int, int]) -> Target:
    """A target of a line; its masks are polygons or run lengths."""
    masks = [
        segmentation_to_rle(value[key], size) for key in ("segmentation", "ignore") if key in value
    ]
    return Target(str(value["name"]), *masks)
