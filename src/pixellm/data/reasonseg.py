"""ReasonSeg: one region of a photo, described by what one has to reason out.

``reason_seg/ReasonSeg/SPLIT/`` holds images, each with a JSON file of polygons and questions;
``explanatory/train.json`` has reasons for some of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixellm.data.dataset import BadRow, Dataset, Entry, Row, check_at_least_one
from pixellm.data.json_values import flag, text_fault
from pixellm.data.lazy import Lazy
from pixellm.data.questions import (
    NamedMasks,
    ask_for_regions,
    benchmark_turn,
    load_phrases,
    to_noun,
)
from pixellm.files import parse_json
from pixellm.image_files import image_size
from pixellm.masks import Size, corners_of_box, encode_mask, read_points
from pixellm.polygons import fill_polygons
from pixellm.types import SEG_MARK, Sample, Target, Turn

KIND = "reasoning"
"""Label of the turns."""

EXPLAINED_SHARE = 0.5
"""Share of the questions with a known reason that ask for it."""

_TARGET, _IGNORED = 1, 255
_FEWEST_CORNERS = 3


class Shape(Row):
    """A polygon.

    Attributes:
        is_target: whether it is asked for; else a score leaves its pixels out.
        points: ``(x, y)`` in whole pixels of the image.
    """

    is_target: bool
    points: tuple[tuple[int, int], ...]


class Region(Row):
    """A region of an image with some of the texts that describe it.

    Attributes:
        stem: name of the image and of its annotation file.
        shapes: the polygons, in the order of the file.
        texts: descriptions of the same region, stripped.
        is_sentence: whether they are whole questions, not noun phrases.
        first: number of the first text that is asked here.
        end: number past the last one.
    """

    stem: str
    shapes: tuple[Shape, ...]
    texts: tuple[str, ...]
    is_sentence: bool
    first: int
    end: int

    @property
    def num_questions(self) -> int:
        """Texts that are asked here."""
        return self.end - self.first

    @property
    def num_targets(self) -> int:
        """One for each text."""
        return self.num_questions


class ReasonSeg(Dataset[Region]):
    """ReasonSeg. An item is a few texts of an image.

    Args:
        root, split, seed: see :class:`~pixellm.data.dataset.Dataset`.
        per_item: questions about an image in one item, at most.
    """

    name = "reasonseg"
    title = "ReasonSeg: a region of a photo, described by what one has to reason out"
    splits = ("train", "val", "test")
    obtain = "github.com/dvlab-research/LISA says where to download ReasonSeg"

    row_type = Region

    def __init__(
        self, root: Path | str, split: str = "train", seed: int = 0, per_item: int = 3
    ) -> None:
        super().__init__(root, split, seed)
        check_at_least_one(self.name, per_item=per_item)
        self.per_item = per_item
        self.folder = self.files(self.root, split)[0]
        self.require(self.folder)
        self.reasons = _read_reasons(self.folder.parent / "explanatory" / "train.json")
        self.open_rows(nothing=f"{self.folder} has no usable annotation file; {self.obtain}.")

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """See :meth:`Dataset.files`."""
        return (root / "reason_seg" / "ReasonSeg" / split,)

    def rows(self) -> Iterator[Entry | BadRow]:
        """The texts of each annotation file, a few at a time."""
        for path in sorted(self.folder.glob("[!.]*.json")):
            try:
                annotation = read_annotation(path)
                if not path.with_suffix(".jpg").is_file():
                    raise ValueError(f"Its image {path.stem}.jpg is missing.")
            except ValueError as error:
                yield BadRow(path, "", str(error))
                continue
            for first in range(0, len(annotation["texts"]), self.per_item):
                end = min(first + self.per_item, len(annotation["texts"]))
                part = {"stem": path.stem, "first": first, "end": end}
                yield Entry(path, f"text {first}", annotation | part)

    def compose(self, row: Region, rng: random.Random) -> tuple[Sample, ...]:
        """Each question is a dialogue of its own."""
        image, size, target = self._open(row)
        return tuple(
            Sample(
                image,
                size,
                (self._turn(rng, row, number, target, image.name),),
                f"{self.name}-{self.split}-{row.stem}-{number}",
            )
            for number in range(row.first, row.end)
        )

    def evaluation_samples(self) -> Lazy[Sample]:
        """The first text of each image.

        It is asked as annotated but for space around it, whole sentences and phrases alike, as in
        the code that the authors of PixelLM (Ren et al., CVPR 2024) released.
        """
        firsts = self._firsts()
        return Lazy(range(len(firsts)), lambda number: self._benchmark(firsts[number]))

    def _firsts(self) -> list[int]:
        """The items that begin an image."""
        return [item for item in range(len(self)) if self.where(item)[1] == "text 0"]

    def _benchmark(self, item: int) -> Sample:
        row = self.row(item)
        with self.naming(item):
            image, size, target = self._open(row)
        turn = benchmark_turn([NamedMasks(row.texts[0], (target,))])
        if row.is_sentence:
            question = load_phrases("referring")["benchmark"]["sentence"]
            question = question.format(sentence=row.texts[0])
            turn = Turn(question, turn.answer, turn.targets, KIND)
        return Sample(image, size, (turn,), f"{self.name}-{self.split}-{row.stem}")

    def counts(self) -> dict[str, int]:
        """Images, questions (texts), targets, items of an epoch, and known reasons."""
        stems = [self.row(item).stem for item in self._firsts()]
        known = sum(f"{stem}.jpg" in self.reasons for stem in stems)
        return {**super().counts(), "images": len(stems), "items": len(self), "explained": known}

    def _open(self, row: Region) -> tuple[Path, Size, Target]:
        image = self.folder / f"{row.stem}.jpg"
        size = image_size(image)
        painted = paint_shapes(row.shapes, size)
        if not (painted == _TARGET).any():
            raise ValueError("The target lies outside the image, or is covered.")
        ignore = painted == _IGNORED
        name = "the answer" if row.is_sentence else row.texts[0]
        mask = encode_mask(painted == _TARGET)
        return image, size, Target(name, mask, encode_mask(ignore) if ignore.any() else None)

    def _turn(
        self, rng: random.Random, row: Region, number: int, target: Target, image: str
    ) -> Turn:
        """A question for one text, with its reason where one is known."""
        text = " ".join(row.texts[number].split())
        reason = self._reason(image, text, only=len(row.texts) == 1)
        explained = bool(reason) and rng.random() < EXPLAINED_SHARE
        if not explained and not row.is_sentence:
            return ask_for_regions(rng, [NamedMasks(to_noun(text), (target,))], KIND)
        bank = load_phrases("reasoning")["explained" if explained else "sentence"]
        sentence = text if text.endswith((".", "?", "!")) else f"{text}."
        question = rng.choice(bank["questions"]).format(sentence=sentence)
        answer = rng.choice(bank["answers"]).format(seg=SEG_MARK, explanation=reason)
        return Turn(question, answer, (target,), "explained" if explained else KIND)

    def _reason(self, image: str, text: str, *, only: bool) -> str:
        """The reason for an answer; "" where none is known for this text."""
        query, reason = self.reasons.get(image, ("", ""))
        return reason if only or query.strip().casefold() == text.casefold() else ""


def read_annotation(path: Path) -> dict[str, Any]:
    """The shapes, texts and is_sentence of an annotation file, UTF-8 or, as some are, cp1252."""
    values = _read_json(path)
    try:
        shapes = [_to_shape(shape) for shape in values["shapes"]]
        given = values["text"] if isinstance(values["text"], list) else [values["text"]]
        is_sentence = flag(values["is_sentence"])
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"It lacks shapes, text or is_sentence, or they are odd: {error}."
        ) from None
    known = tuple(shape for shape in shapes if shape is not None)
    if not any(shape.is_target for shape in known):
        raise ValueError("It has no shape labelled target.")
    if is_sentence is None:
        raise ValueError(f"Its is_sentence is {values['is_sentence']!r:.40}, no true or false.")
    if not given:
        raise ValueError("It has no text.")
    for text in given:
        if fault := text_fault(text):
            raise ValueError(fault)
    texts = [text.strip() for text in given]
    return {"shapes": known, "texts": texts, "is_sentence": is_sentence}


def paint_shapes(shapes: Sequence[Shape], size: Size) -> NDArray[np.uint8]:
    """Paint polygons with their borders, larger ones first, so that smaller ones stay on top.

    (H, W): 0 nothing, 1 target, 255 ignored. Source: how LISA (Lai et al., CVPR 2024) reads its
    data.
    """
    masks = [fill_polygons([np.array(shape.points)], size) for shape in shapes]
    painted = np.zeros(size, dtype=np.uint8)
    for index in sorted(range(len(shapes)), key=lambda index: -np.count_nonzero(masks[index])):
        painted[masks[index]] = _TARGET if shapes[index].is_target else _IGNORED
    return painted


def _to_shape(values: Mapping[str, Any]) -> Shape | None:
    """A shape; None for a flag, a point or a line, which have no region."""
    if not isinstance(values, Mapping):
        raise ValueError(f"A shape is no JSON object but {values!r:.40}.")
    label = str(values["label"]).strip().lower()
    if label == "flag":
        return None
    if label != "target" and "ignore" not in label:
        raise ValueError(f"A shape is labelled {label!r}; target or ignore is needed.")
    points = read_points(values["points"])
    kind = values.get("shape_type")
    if kind == "rectangle" and len(points) == 2:
        points = corners_of_box(points)
    elif kind == "circle":
        raise ValueError(f"A shape labelled {label!r} is a circle; draw it as a polygon.")
    if len(points) < _FEWEST_CORNERS:
        return None
    return Shape(is_target=label == "target", points=points.astype(np.int32).tolist())


def _read_reasons(path: Path) -> dict[str, tuple[str, str]]:
    """(question, reason) by the name of the image; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        rows = [(row["image"], row["query"], row["outputs"]) for row in _read_json(path)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} needs rows of image, query and outputs ({error}).") from None
    return {
        Path(str(image)).name: (query, " ".join(reason.split()))
        for image, query, reason in rows
        if isinstance(query, str) and not text_fault(reason)
    }


def _read_json(path: Path) -> Any:
    content = path.read_bytes()
    try:
        try:
            return parse_json(content)
        except UnicodeDecodeError:
            return parse_json(content.decode("cp1252"))
    except ValueError:
        raise ValueError(f"{path.name} is no readable JSON; copy it again.") from None
