"""COCO-style annotations asked for their categories: what own files and sets of parts share.

Groups the annotations of an image by class and decodes their masks. A subclass says where the
files are and how its categories are called.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pixellm.data.readers.annotated import AnnotatedClass, AnnotatedImage
from pixellm.data.readers.base import BadRow
from pixellm.data.readers.class_reader import ClassReader
from pixellm.data.readers.coco_images import (
    CocoImages,
    category_name,
    file_of,
    size_of,
    source_of,
)
from pixellm.types import RLE


class CocoClasses(ClassReader):
    """A COCO-style file asked for its categories.

    Categories of one name are one class. A class is not asked for in an image where one of its
    annotations can't be used, or that the file says is not annotated exhaustively (LVIS).

    Args:
        root: folder that holds all data sets.
        split: one of :attr:`splits`.
        seed: another seed gives another order, grouping and wording.
        annotations: the JSON file.
        images: the folder that each ``file_name`` is below.
        options: see :class:`~pixellm.data.readers.class_reader.ClassReader`.

    Raises:
        ValueError: the file is damaged or holds nothing to ask for.
        FileNotFoundError: the file or the folder is missing.
    """

    def __init__(
        self,
        root: Path | str,
        split: str,
        seed: int,
        annotations: Path,
        images: Path,
        **options: Any,
    ) -> None:
        super().__init__(root, split, seed, **options)
        self.annotations, self.images = annotations, images
        self.require(annotations, images)
        self.index = CocoImages(annotations)
        self.bad_rows = tuple(self.index.bad_rows)
        self._called = {key: self.names_of(one) for key, one in self.index.categories.items()}
        self._items = self._askable_images()
        if not len(self._items):
            raise ValueError(f"{annotations} has no image with a mask that can be asked for.")

    def names_of(self, category: Mapping[str, Any]) -> tuple[str, ...]:
        """What an entry of ``categories`` is called: its class, then what a question may say."""
        return (category_name(category),)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, in the order of the file."""
        return tuple(dict.fromkeys(names[0] for names in self._called.values()))

    def __len__(self) -> int:
        """Images that can be asked about; without annotations only where there are negatives."""
        return len(self._items)

    def where(self, item: int) -> tuple[Path, str]:
        """The annotation file, and which of its images."""
        return self.annotations, f"image {self.index.usable[self._items[item]]}"

    def image(self, item: int) -> AnnotatedImage:
        """An image with its classes, in the order of its annotations."""
        number = int(self._items[item])
        entry = self.index.image(number)
        size = size_of(entry)
        masks: dict[str, list[RLE]] = defaultdict(list)
        crowds: dict[str, list[RLE]] = defaultdict(list)
        wordings = {}
        unsure = self._not_exhaustive(entry)
        faults = []
        for row in self.index.rows_of(number):
            name, *others = self._called[int(self.index.category_of[row])]
            wordings[name] = tuple(others)
            try:
                mask = self.index.mask(row, size)
            except (KeyError, TypeError, ValueError) as error:
                unsure.add(name)
                if not self.index.is_faulty[row]:  # the others were listed when the file was read
                    faults.append(BadRow(self.annotations, f"annotation {row}", str(error)))
            else:
                (crowds if self.index.is_crowd[row] else masks)[name].append(mask)
        classes = tuple(
            AnnotatedClass(name, tuple(masks[name]), tuple(crowds[name]), name not in unsure, words)
            for name, words in wordings.items()
        )
        path = self.images / file_of(entry)
        label = f"{self.name}-{self.split}-{entry['id']}"
        return AnnotatedImage(path, size, label, classes, tuple(faults), source_of(entry))

    def _not_exhaustive(self, entry: Mapping[str, Any]) -> set[str]:
        """Classes of which an image may show more than is annotated."""
        numbers = entry.get("not_exhaustive_category_ids") or ()
        return {self._called[number][0] for number in numbers if number in self._called}

    def _askable_images(self) -> np.ndarray:
        """Numbers of the images that some question fits, as far as seen without their masks."""
        if self.negatives:
            return np.arange(len(self.index))
        return np.array(
            [item for item in range(len(self.index)) if self._shows_something(item)], np.int64
        )

    def _shows_something(self, item: int) -> bool:
        rows = self.index.rows_of(item)
        spoiled = self.index.is_faulty[rows]
        if self.targets == "instances":
            spoiled = spoiled | self.index.is_crowd[rows]
        names = [self._called[int(number)][0] for number in self.index.category_of[rows]]
        bad = {name for name, is_bad in zip(names, spoiled, strict=True) if is_bad}
        most = len(names) if self.targets == "regions" else self.max_instances
        return any(name not in bad and names.count(name) <= most for name in names)
