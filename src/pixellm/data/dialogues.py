"""Dialogues word for word: JSONL files of one's own, and LLaVA-Instruct-150k.

A row is a dialogue; nothing of it is left to chance.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, field_validator, model_validator

from pixellm.data.dataset import GUIDE, BadRow, Dataset, Entry, Row, Text, path_of_split
from pixellm.data.json_stream import scan_list
from pixellm.data.json_values import (
    identity,
    inner_file,
    parse_line,
    size_fault,
    text_fault,
    whole_number,
)
from pixellm.image_files import image_size
from pixellm.masks import areas_of, segmentation_to_rle
from pixellm.types import SEG_MARK, Sample, Target, Turn, split_marks

_IMAGE_MARK = "<image>"


def _size(value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2 or size_fault(*value):
        raise ValueError(f"Its size is [height, width], not {value!r:.40}.")
    height, width = map(whole_number, value)
    assert height is not None and width is not None, "size_fault has looked"
    return height, width


def _id(value: Any) -> int | str:
    found = identity(value)
    if found is None:
        raise ValueError(f"Its id is a number or a text, not {value!r:.40}.")
    return found


class _Known(Row):
    model_config = ConfigDict(extra="forbid")


class TargetRow(_Known):
    """A target of a line; its masks are polygons or run lengths."""

    noun = "target"
    name: Text
    segmentation: Any
    ignore: Any = None

    def to_target(self, size: tuple[int, int]) -> Target:
        """The target in an image of a size."""
        mask = segmentation_to_rle(self.segmentation, size)
        if not areas_of([mask])[0]:
            raise ValueError(f"The mask of {self.name!r} covers no pixel.")
        ignore = None if self.ignore is None else segmentation_to_rle(self.ignore, size)
        return Target(self.name, mask, ignore)


class TurnRow(_Known):
    """A question and its answer."""

    noun = "turn"
    question: Text
    answer: str
    targets: tuple[TargetRow, ...] = ()
    kind: str = ""

    @field_validator("answer", mode="before")
    @classmethod
    def _check_answer(cls, value: Any) -> Any:
        if fault := text_fault(value if value != "" else "-", "answer", marks=True):
            raise ValueError(fault)
        return value

    @model_validator(mode="after")
    def _check_marks(self) -> TurnRow:
        marks = len(split_marks(self.answer)[1])
        if marks != len(self.targets):
            named = len(self.targets)
            raise ValueError(f"An answer has {marks} {SEG_MARK} marks but {named} targets.")
        return self


class LineRow(_Known):
    """A line of a JSONL file: a dialogue about an image."""

    noun = "line"
    image: str
    turns: tuple[TurnRow, ...]
    id: Annotated[int | str | None, BeforeValidator(_id)] = None
    size: Annotated[tuple[int, int] | None, BeforeValidator(_size)] = None
    objects: tuple[TargetRow, ...] = ()

    @field_validator("turns")
    @classmethod
    def _check_turns(cls, turns: tuple[TurnRow, ...]) -> tuple[TurnRow, ...]:
        if not turns:
            raise ValueError("It has no turns.")
        return turns

    @property
    def num_questions(self) -> int:
        """Turns."""
        return len(self.turns)

    @property
    def num_targets(self) -> int:
        """Targets of all turns."""
        return sum(len(turn.targets) for turn in self.turns)


class _Dialogues(Dataset[LineRow]):
    """Dialogues of rows that say everything, with images below one folder.

    Ids name dialogues in answers and reports; one that comes again is told apart by its place.
    """

    row_type = LineRow
    place: ClassVar[str]
    """What the file's rows are called."""
    file: Path
    images: Path

    def numbered(self) -> Iterator[tuple[int, Any]]:
        """What the file holds, each with its number."""
        raise NotImplementedError

    def read(self, found: Any) -> LineRow:
        """A row of what the file holds; ValueError where it is none."""
        raise NotImplementedError

    def rows(self) -> Iterator[Entry | BadRow]:
        """The rows, each with an id of its own; one without goes by its number."""
        named: set[str] = set()
        for number, found in self.numbered():
            place = f"{self.place} {number}"
            try:
                row = self.read(found)
                inner_file(self.images, row.image)
            except ValueError as error:
                yield BadRow(self.file, place, str(error))
                continue
            name = f"{self.name}-{self.split}-{number}" if row.id is None else str(row.id)
            name = f"{name} ({place})" if name in named else name
            named.add(name)
            yield Entry(self.file, place, row.model_copy(update={"id": name}))

    def compose(self, row: LineRow, rng: random.Random) -> tuple[Sample, ...]:
        path = inner_file(self.images, row.image)
        size = row.size or image_size(path)
        turns = tuple(
            Turn(
                turn.question,
                turn.answer,
                tuple(one.to_target(size) for one in turn.targets),
                turn.kind,
            )
            for turn in row.turns
        )
        objects = tuple(one.to_target(size) for one in row.objects)
        return (Sample(path, size, turns, str(row.id), objects),)


class JsonlSamples(_Dialogues):
    """A JSONL file of dialogues in the form that docs/data.md shows; an item is a line.

    Unknown keys are errors, so that a typing mistake loses nothing silently.

    Args:
        root: folder that the file is below.
        split: put in place of ``{split}``.
        seed: another seed gives another order.
        file: the JSONL file, below ``root``.
        images: the folder that images lie in, below ``root``; that of the file where "".
    """

    name, place = "jsonl", "line"
    title = "Your own dialogues: a JSONL file of samples"
    splits = ("train", "val", "test")
    is_public = False
    obtain = f"write one dialogue a line, as {GUIDE} shows"

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        *,
        file: str = "{split}.jsonl",
        images: str = "",
    ) -> None:
        super().__init__(root, split, seed)
        self.file = path_of_split(self.root, file, split)
        self.images = self.root / images if images else self.file.parent
        self.require(self.file, self.images)
        self.open_rows(self.file, nothing=f"{self.file} holds no line that can be used.")

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The file under its default name."""
        return (root / f"{split}.jsonl",)

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not empty."""
        with self.file.open("rb") as file:
            yield from ((n, line) for n, line in enumerate(file, start=1) if line.strip())

    def read(self, found: bytes) -> LineRow:
        """A line's dialogue."""
        return LineRow.read(parse_line(found))


class LlavaInstruct(_Dialogues):
    """LLaVA-Instruct-150k: conversations about COCO photos, without masks.

    They keep the language model's ability to talk. An item is one conversation.

    Args:
        root, split, seed: see :class:`~pixellm.data.dataset.Dataset`.
        conversations: the JSON file, below ``root``; any file in LLaVA's format will do.
        images: the folder that ``image`` of a row is below, below ``root``.
    """

    name, place = "llava", "entry"
    title = "LLaVA-Instruct-150k: conversations without masks"
    splits: ClassVar = ("train",)
    obtain = (
        "download llava_instruct_150k.json from huggingface.co/datasets/liuhaotian/"
        "LLaVA-Instruct-150K into llava_dataset, and train2017 from cocodataset.org into coco"
    )

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        *,
        conversations: str = "llava_dataset/llava_instruct_150k.json",
        images: str = "coco/train2017",
    ) -> None:
        super().__init__(root, split, seed)
        self.file, self.images = self.root / conversations, self.root / images
        self.require(self.file, self.images)
        self.open_rows(self.file, nothing=f"{self.file} holds no conversation that can be used.")

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The conversations, and the folder of photos."""
        return root / "llava_dataset" / "llava_instruct_150k.json", root / "coco" / "train2017"

    def numbered(self) -> Iterator[tuple[int, Any]]:
        """The entries; several of the published file are about one image, and have its id."""
        return enumerate(scan_list(self.file))

    def read(self, found: Any) -> LineRow:
        """An entry's conversation."""
        values = found if isinstance(found, dict) else {}
        image = _file_name(values.get("image") or values.get("images"))
        row: dict[str, Any] = {"image": image, "turns": _turns(values)}
        if values.get("id") is not None:
            row["id"] = f"{self.name}-{self.split}-{values['id']}"
        return LineRow.read(row)


def _file_name(name: Any) -> str:
    """The image of a LLaVA row; a list of one image is that image."""
    if isinstance(name, list):
        if len(name) > 1:
            raise ValueError(f"It has {len(name)} images; a dialogue is about one.")
        name = name[0] if name else None
    if not isinstance(name, str) or not name:
        raise ValueError("It has no image; rows of text alone are not used.")
    return name


def _turns(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Questions of "human" and answers of "gpt", in turn; the mark for the image goes."""
    try:
        said = [(part["from"], part["value"]) for part in values["conversations"]]
    except (KeyError, TypeError):
        raise ValueError("It has no conversations with 'from' and 'value'.") from None
    speakers = [speaker for speaker, _ in said]
    if not said or speakers != ["human", "gpt"] * (len(said) // 2):
        raise ValueError(f"Its speakers do not alternate between human and gpt: {speakers}.")
    texts = [v.replace(_IMAGE_MARK, "").strip() if isinstance(v, str) else v for _, v in said]
    for answer in texts[1::2]:
        if answer is not None and (fault := text_fault(answer, "answer")):
            raise ValueError(fault)
    pairs = zip(texts[0::2], texts[1::2], strict=True)
    return [{"question": question, "answer": answer} for question, answer in pairs]
