"""Your own photos in COCO format, asked for what each annotation is described as.

For instances files whose annotations carry a sentence or several: "the cup with the blue rim". How
expressions are worded is :mod:`~pixellm.data.questions`'s business.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pixellm.data.dataset import BadRow, Dataset, LazySamples, UnusableDataError
from pixellm.data.json_values import text_fault
from pixellm.data.questions import NamedMasks, as_benchmark_asks, benchmark_turn, compose_dialogues
from pixellm.data.readers.coco_images import CocoImages, category_name, file_of, size_of
from pixellm.data.readers.own_coco import ANNOTATIONS, own_files
from pixellm.types import SEG_MARK, Sample, Target, Turn

_TEXT_KEYS = (
    "expressions",
    "expression",
    "captions",
    "caption",
    "descriptions",
    "description",
)


class OwnExpressions(Dataset[int]):
    """A COCO instances file of your own, asked for the expressions of its annotations.

    An item is up to so many expressions of one image, each of another annotation.

    Args:
        root: folder that the other two are below.
        split: put in place of ``{split}`` in both.
        seed: another seed gives another order and wording.
        annotations: the instances JSON, below ``root``; an annotation's expressions are a text or
            a list of texts under one of the keys expression(s), caption(s), description(s).
        images: the folder that each ``file_name`` is below, below ``root``; by default as for
            :class:`~pixellm.data.readers.own_coco.OwnCoco`.
        expressions_per_item: at most.

    Raises:
        ValueError: the file is damaged or no annotation has an expression.
        FileNotFoundError: the file or the folder is missing.
    """

    name = "coco-expressions"
    title = "Your own photos: a COCO instances file with a description of each annotation"
    splits = ("train", "val", "test")
    obtain = "export your annotations as COCO instances JSON, with an expression for each"

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        *,
        annotations: str = ANNOTATIONS,
        images: str = "",
        expressions_per_item: int = 3,
    ) -> None:
        super().__init__(root, split, seed)
        if expressions_per_item < 1:
            raise ValueError(f"expressions_per_item of {self.name} is at least 1.")
        self.annotations, self.images = own_files(self.root, split, annotations, images)
        self.require(self.annotations, self.images)
        self.index = CocoImages(self.annotations)
        self.bad_rows = (*self.index.bad_rows, *self._bad_texts())
        places = [(n, *place) for n in range(len(self.index)) for place in self._texts_of(n)]
        if not places:
            raise UnusableDataError(
                f"{self.annotations} has no annotation with an expression; put one under "
                "'expression', or read the file as the set coco.",
                self.bad_rows,
            )
        self._places = np.array(places, dtype=np.int64)
        """(num expressions, 3): image, round, and place of the annotation in the file."""
        self._starts = _item_starts(self._places, expressions_per_item)

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The annotation file and the folder of images under their default names."""
        return own_files(root, split)

    def __len__(self) -> int:
        """Groups of expressions."""
        return len(self._starts) - 1

    def where(self, item: int) -> tuple[Path, str]:
        """The annotation file, and which of its images."""
        return self.annotations, f"image {self.index.usable[self._places_of(item)[0, 0]]}"

    def compose(self, item: int, rng: random.Random) -> tuple[Sample, ...]:
        """The dialogues about a group of expressions."""
        places = self._places_of(item)
        rng.shuffle(things := [self._thing(*place) for place in places.tolist()])
        dialogues = compose_dialogues(rng, things)
        return tuple(
            self._sample(int(places[0, 0]), turns, f"{item}-{number}")
            for number, turns in enumerate(dialogues)
        )

    def evaluation_samples(self) -> LazySamples:
        """One question for each expression, as the benchmarks of expressions ask."""

        def build(number: int) -> Sample:
            image, text_round, row = self._places[number].tolist()
            turn = benchmark_turn([as_benchmark_asks(self._thing(image, text_round, row))])
            return self._sample(image, (turn,), f"{row}-{text_round}")

        return LazySamples(len(self._places), build)

    def counts(self) -> dict[str, int]:
        """Images with expressions, questions when each is asked alone, and targets."""
        images = len(np.unique(self._places[:, 0]))
        return {
            "images": images,
            "questions": len(self._places),
            "targets": len(self._places),
        }

    def _places_of(self, item: int) -> np.ndarray:
        return self._places[self._starts[item] : self._starts[item + 1]]

    def _texts_of(self, image: int) -> Iterator[tuple[int, int]]:
        """(round, annotation) of an image's expressions: the first of each annotation first."""
        rows = [int(row) for row in self.index.rows_of(image) if not self.index.is_faulty[row]]
        texts = {row: len(_texts(self.index.annotation(row))) for row in rows}
        for text_round in range(max(texts.values(), default=0)):
            yield from ((text_round, row) for row in rows if texts[row] > text_round)

    def _bad_texts(self) -> Iterator[BadRow]:
        for row in range(len(self.index.annotations)):
            texts = _all_texts(self.index.annotation(row))
            if not all(_is_expression(text) for text in texts):
                reason = f"An expression is empty, no text, or holds {SEG_MARK}: {texts!r:.80}."
                yield BadRow(self.annotations, f"annotation {row}", reason)

    def _thing(self, image: int, text_round: int, row: int) -> NamedMasks:
        try:
            mask = self.index.mask(row, size_of(self.index.image(image)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.annotations}, annotation {row}: {error}") from None
        text = _texts(self.index.annotation(row))[text_round]
        name = category_name(self.index.categories[int(self.index.category_of[row])])
        return NamedMasks(text, (Target(name, mask),))

    def _sample(self, image: int, turns: tuple[Turn, ...], label: str) -> Sample:
        entry = self.index.image(image)
        name = f"{self.name}-{self.split}-{entry['id']}-{label}"
        return Sample(self.images / file_of(entry), size_of(entry), turns, name)


def _all_texts(annotation: Mapping[str, Any]) -> list[Any]:
    """Whatever an annotation has under the keys of expressions, usable or not."""
    found: list[Any] = []
    for key in _TEXT_KEYS:
        value = annotation.get(key)
        found += value if isinstance(value, list) else [] if value is None else [value]
    return found


def _texts(annotation: Mapping[str, Any]) -> list[str]:
    """The expressions of an annotation that can stand in a sentence."""
    return [text for text in _all_texts(annotation) if _is_expression(text)]


def _is_expression(text: Any) -> bool:
    return text_fault(text) == ""


def _item_starts(places: np.ndarray, most: int) -> np.ndarray:
    """Where each group begins, and the end: one image, one round, at most so many rows."""
    starts = [0]
    for number in range(1, len(places)):
        other = (places[number, :2] != places[number - 1, :2]).any()
        if other or number - starts[-1] >= most:
            starts.append(number)
    return np.array([*starts, len(places)], dtype=np.int64)
