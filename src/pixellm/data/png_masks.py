"""A PNG mask of each object of an image, and a CSV of the sentences that mean them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from pixellm.data.csv_rows import csv_rows
from pixellm.data.dataset import GUIDE, BadRow, Dataset, Entry, Row, Text, path_of_split
from pixellm.data.json_values import inner_path
from pixellm.data.questions import NamedMasks, compose_dialogues
from pixellm.data.semantic import read_mask
from pixellm.image_files import image_size
from pixellm.types import Sample, Target


class SentenceRow(Row):
    """A line of the table: a sentence about an image, and the objects that it means."""

    noun = "line"
    image: str
    object: Text
    sentence: Text

    @property
    def objects(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(name.strip() for name in self.object.split(";")))

    @property
    def num_targets(self) -> int:
        """Objects."""
        return len(self.objects)


class PngMasks(Dataset[SentenceRow]):
    """``sentences.csv`` (image, object, sentence), ``images/A.jpg`` and ``masks/A/OBJECT.png``.

    Args:
        root, split, seed: as of :class:`~pixellm.data.dataset.Dataset`.
        folder: what holds the three, below ``root``; ``{split}`` is replaced.
    """

    name, title = "png-masks", "Your own images: a PNG mask of each object, a table of sentences"
    splits, is_public = ("train", "val", "test"), False
    obtain = f"lay your sentences.csv, images and masks out as {GUIDE} shows"
    row_type = SentenceRow

    def __init__(
        self, root: Path | str, split: str = "train", seed: int = 0, *, folder: str = "{split}"
    ) -> None:
        super().__init__(root, split, seed)
        self.folder = path_of_split(self.root, folder, split)
        self.require(*self.files(self.folder, "."))
        table = self.folder / "sentences.csv"
        self.open_rows(table, nothing=f"{table} holds no line that can be used.")

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The table, the images and the masks in the default folder of a split."""
        return tuple(root / split / name for name in ("sentences.csv", "images", "masks"))

    def rows(self) -> Iterator[Entry | BadRow]:
        """The lines; of two with one sentence about one image nobody could tell which it means."""
        said: dict[tuple[str, str], str] = {}
        for found in csv_rows(self.folder / "sentences.csv"):
            if isinstance(found, Entry):
                image, sentence = (found.values.get(key) or "" for key in ("image", "sentence"))
                first = said.setdefault((image, sentence.lower()), found.row)
                if sentence and first != found.row:
                    reason = f"It repeats {first}; name all objects in one line, with ; between."
                    yield BadRow(found.file, found.row, reason)
                    continue
            yield found

    def compose(self, row: SentenceRow, rng: random.Random) -> tuple[Sample, ...]:
        """A question for the sentence; its answer has a mask for each object."""
        path = inner_path(row.image)
        image, masks = self.folder / "images" / path, self.folder / "masks" / path.with_suffix("")
        size = image_size(image)
        targets = tuple(
            Target(name, read_mask(masks / inner_path(f"{name}.png"), size)) for name in row.objects
        )
        (turns,) = compose_dialogues(rng, [NamedMasks(row.sentence, targets)])
        name = f"{self.name}-{self.split}-{row.image}: {row.sentence}"
        return (Sample(image, size, turns, name),)

    def counts(self) -> dict[str, int]:
        """Images, sentences and masks."""
        images = {self.stored_row(number).image for number in range(len(self))}
        return {**super().counts(), "images": len(images)}
