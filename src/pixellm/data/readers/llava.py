"""LLaVA-Instruct-150k: conversations about COCO photos, without masks.

They keep the language model's ability to talk. Text alone: a row whose turns do not alternate, or
that holds a segmentation mark, is bad. This module knows nothing of masks or classes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pixellm.data.readers.base import (
    BadRow,
    LazySamples,
    Reader,
    UnusableDataError,
)
from pixellm.data.readers.json_index import SpanList, scan_json
from pixellm.data.readers.json_values import inner_path, text_fault
from pixellm.image_files import image_size
from pixellm.types import Sample, Turn

_IMAGE_MARK = "<image>"


class LlavaInstruct(Reader):
    """Conversations about images; an item is one conversation with all its turns.

    Args:
        root: folder that holds all data sets.
        split: ``train``.
        seed: another seed gives another order.
        conversations: the JSON file, below ``root``; any file in LLaVA's format will do.
        images: the folder that ``image`` of a row is below, below ``root``.

    Raises:
        ValueError: the file is damaged or no row of it can be used.
        FileNotFoundError: a file is missing; says where to get it.
    """

    name = "llava"
    title = "LLaVA-Instruct-150k: conversations without masks"
    splits = ("train",)
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
        self.conversations, self.images = self.root / conversations, self.root / images
        self.require(self.conversations, self.images)
        spans, bad_rows, places = SpanList(), list[BadRow](), SpanList()
        self._num_questions = 0
        for place, (_, start, end, row) in enumerate(scan_json(self.conversations)):
            try:
                _file_name(row)
                self._num_questions += len(_turns(row))
            except ValueError as error:
                bad_rows.append(BadRow(self.conversations, f"entry {place}", str(error)))
            else:
                spans.append(start, end)
                places.append(place, place)
        self.bad_rows = tuple(bad_rows)
        self._rows = spans.records(self.conversations)
        self._places = places.records(self.conversations).spans[:, 0]
        if not len(self._rows):
            raise UnusableDataError(
                f"{self.conversations} holds no conversation that can be used.", bad_rows
            )

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The conversations, and the folder of photos."""
        return root / "llava_dataset" / "llava_instruct_150k.json", root / "coco" / "train2017"

    def __len__(self) -> int:
        """Conversations that can be used."""
        return len(self._rows)

    def where(self, item: int) -> tuple[Path, str]:
        """The file, and which of its entries."""
        return self.conversations, f"entry {self._places[item]}"

    def compose(self, item: int, rng: random.Random) -> tuple[Sample, ...]:
        """The conversation; nothing of it is left to chance."""
        return (self._sample(item, None),)

    def evaluation_samples(self) -> LazySamples:
        """The first question of each conversation; no benchmark is made of this set."""
        return LazySamples(len(self), lambda item: self._sample(item, 1))

    def counts(self) -> dict[str, int]:
        """Images (one a conversation), questions, and no targets."""
        return {"images": len(self), "questions": self._num_questions, "targets": 0}

    def _sample(self, item: int, num_turns: int | None) -> Sample:
        row = self._rows[item]
        path = self.images / _file_name(row)
        name = f"{self.name}-{self.split}-{row.get('id', self._places[item])}"
        try:
            size = image_size(path)
        except (OSError, ValueError) as error:
            file, place = self.where(item)
            raise ValueError(f"{file}, {place}: {error}") from None
        return Sample(path, size, _turns(row)[:num_turns], name)


def _file_name(row: Any) -> PurePosixPath:
    """The image of a row; a list of one image is that image.

    Raises:
        ValueError: it has none, several, or one outside the folder of images.
    """
    name = row.get("image") if isinstance(row, Mapping) else None
    if isinstance(name, list):
        if len(name) > 1:
            raise ValueError(f"It has {len(name)} images; a dialogue is about one.")
        name = name[0] if name else None
    if not isinstance(name, str) or not name:
        raise ValueError("It has no image; rows of text alone are not used.")
    return inner_path(name)


def _turns(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Questions of "human" and answers of "gpt", in turn; the mark for the image goes.

    Raises:
        ValueError: they do not alternate, or a text is none, empty, or holds a segmentation mark.
    """
    try:
        said = [(part["from"], part["value"]) for part in row["conversations"]]
    except (KeyError, TypeError):
        raise ValueError("It has no conversations with 'from' and 'value'.") from None
    speakers = [speaker for speaker, _ in said]
    if not said or speakers != ["human", "gpt"] * (len(said) // 2):
        raise ValueError(f"Its speakers do not alternate between human and gpt: {speakers}.")
    texts = [
        text.replace(_IMAGE_MARK, "").strip() if isinstance(text, str) else text for _, text in said
    ]
    for text in texts:
        if fault := text_fault(text):
            raise ValueError(fault)
    return tuple(Turn(*pair) for pair in zip(texts[0::2], texts[1::2], strict=True))
