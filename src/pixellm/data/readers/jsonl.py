"""Your own dialogues: one :class:`~pixellm.types.Sample` a line of a JSONL file.

The most general way in: any question, any answer with ``{seg}`` marks, masks as polygons or run
lengths. The format is that of docs/data.md. Unknown keys are errors, so that a typing mistake loses
nothing silently.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pixellm.data.readers.base import (
    BadRow,
    LazySamples,
    Reader,
    UnusableDataError,
    path_of_split,
)
from pixellm.data.readers.json_index import SpanList
from pixellm.data.readers.json_values import identity, size_fault, text_fault, whole_number
from pixellm.files import parse_json
from pixellm.image_files import image_size
from pixellm.masks import segmentation_to_rle
from pixellm.types import SEG_MARK, Sample, Target, Turn, split_marks

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
        ids: dict[int | str, int] = {}
        for number, start, end, line in _lines(self.file):
            try:
                row = _checked_line(line)
                _check_id(row, number, ids)
            except ValueError as error:
                bad_rows.append(BadRow(self.file, f"line {number}", str(error)))
                continue
            spans.append(start, end)
            numbers.append(number, number)
            self._num_questions += len(row["turns"])
            self._num_targets += sum(len(turn.get("targets", ())) for turn in row["turns"])
        self.bad_rows = tuple(bad_rows)
        self._rows = spans.records(self.file)
        self._numbers = numbers.records(self.file).spans[:, 0]
        if not len(self._rows):
            raise UnusableDataError(f"{self.file} holds no line that can be used.", bad_rows)

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
        row = _without_nulls(self._rows[item])
        path = self.file.parent / row["image"]
        height, width = map(whole_number, row.get("size") or image_size(path))
        assert height is not None and width is not None, "checked when the file was read"
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
        name = str(identity(row.get("id", f"{self.name}-{self.split}-{self._numbers[item]}")))
        return Sample(path, size, turns, name, objects)


def _lines(path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """(number from 1, first byte, byte past the end, line) of each line that is not empty."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, start, start + len(line), line
            start += len(line)


def _checked_line(line: bytes) -> dict[str, Any]:
    """A line whose keys, types and texts are right, without keys that are null.

    Masks are not decoded.

    Raises:
        ValueError: something is wrong, one sentence.
    """
    try:
        row = _without_nulls(parse_json(line))
    except ValueError as error:
        raise ValueError(f"It is no JSON ({error}).") from None
    _check_keys("line", row)
    size = row.get("size", [1, 1])
    if not isinstance(size, list) or len(size) != 2 or size_fault(*size):
        raise ValueError(f"Its size is [height, width], not {size!r:.40}.")
    if "id" in row and identity(row["id"]) is None:
        raise ValueError(f"Its id is a number or a text, not {row['id']!r:.40}.")
    if not isinstance(row["image"], str) or not isinstance(row["turns"], list):
        raise ValueError("Its image is a path, and its turns are a list.")
    if not row["turns"]:
        raise ValueError("It has no turns.")
    targets = _list_of(row, "objects")
    for turn in row["turns"]:
        targets += _checked_turn(turn)
    for target in targets:
        _check_keys("target", target)
        if fault := text_fault(target["name"], "name of a target"):
            raise ValueError(fault)
    return dict(row)


def _checked_turn(turn: Any) -> list[Any]:
    """The targets of a turn whose texts are right."""
    _check_keys("turn", turn)
    if not isinstance(turn.get("kind", ""), str):
        raise ValueError("The kind of a turn is a text.")
    faults = (
        text_fault(turn["question"], "question"),
        text_fault(turn["answer"] or "-", "answer", marks=True),
    )
    if any(faults):
        raise ValueError(next(filter(None, faults)))
    marks, named = len(split_marks(turn["answer"])[1]), _list_of(turn, "targets")
    if marks != len(named):
        raise ValueError(f"An answer has {marks} {SEG_MARK} marks but {len(named)} targets.")
    return named


def _check_id(row: Mapping[str, Any], number: int, seen: dict[int | str, int]) -> None:
    """Refuse the second line of an id, as answers are filed under it."""
    name = identity(row.get("id"))
    if name is not None and seen.setdefault(name, number) != number:
        raise ValueError(f"Line {seen[name]} has the id {name!r} too; give each its own.")


def _list_of(values: Mapping[str, Any], key: str) -> list[Any]:
    found = values.get(key, [])
    if not isinstance(found, list):
        raise ValueError(f"The {key} are a list, not {found!r:.40}.")
    return list(found)


def _without_nulls(values: Any) -> Any:
    """Values without optional keys that are null, which are as if they were not there."""
    if isinstance(values, list):
        return [_without_nulls(value) for value in values]
    if not isinstance(values, Mapping) or "counts" in values:
        return values
    return {
        key: value if key == "segmentation" else _without_nulls(value)
        for key, value in values.items()
        if value is not None
    }


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
    return Target(value["name"], *masks)
