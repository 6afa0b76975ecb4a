"""Your own photos in COCO format, asked for their categories.

Reads an instances JSON as annotation tools export it. The file and the folder of pictures have
names that the caller chooses; everything else that makes a question is
:mod:`~pixellm.data.readers.class_reader`'s business.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from pixellm.data.readers.base import BadRow
from pixellm.data.readers.class_reader import AnnotatedClass, AnnotatedPicture, ClassReader
from pixellm.data.readers.coco_pictures import CocoPictures, file_of, size_of
from pixellm.types import RLE


class OwnCoco(ClassReader):
    """A COCO instances file of your own, asked for its categories.

    Args:
        root: folder that the other two are below.
        split: put in place of ``{split}`` in both.
        seed: another seed gives another order, grouping and wording.
        annotations: the instances JSON, below ``root``.
        images: the folder that each ``file_name`` is below, below ``root``.
        options: see :class:`~pixellm.data.readers.class_reader.ClassReader`; here ``targets`` is
            ``instances`` unless told otherwise.

    Raises:
        ValueError: the file is damaged or holds nothing to ask for.
        FileNotFoundError: the file or the folder is missing.
    """

    name = "coco"
    title = "Your own photos: a COCO instances file, asked for its categories"
    splits = ("train", "val", "test")
    obtain = "export your annotations as COCO instances JSON"

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        *,
        annotations: str = "annotations/instances_{split}.json",
        images: str = "{split}",
        **options: Any,
    ) -> None:
        super().__init__(root, split, seed, **{"targets": "instances", **options})
        self.annotations = self.root / annotations.replace("{split}", split)
        self.images = self.root / images.replace("{split}", split)
        self.require(self.annotations, self.images)
        self.index = CocoPictures(self.annotations)
        self.bad_rows = tuple(self.index.bad_rows)
        self._items = self._askable_pictures()
        if not len(self._items):
            raise ValueError(
                f"{self.annotations} has no picture with an annotation to ask for; see "
                "`pixellm data check`."
            )

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The annotation file and the folder of pictures under their default names."""
        return root / "annotations" / f"instances_{split}.json", root / split

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all categories, in the order of the file."""
        return self.index.class_names

    def __len__(self) -> int:
        """Pictures that can be asked about; without annotations only where there are negatives."""
        return len(self._items)

    def where(self, item: int) -> tuple[Path, str]:
        """The annotation file, and which of its images."""
        return self.annotations, f"image {self.index.pictures[self._items[item]]}"

    def picture(self, item: int) -> AnnotatedPicture:
        """A picture with its categories; an annotation that can't be used spoils its category."""
        entry = self.index.picture(int(self._items[item]))
        size = size_of(entry)
        masks: dict[str, list[RLE]] = defaultdict(list)
        crowds: dict[str, list[RLE]] = defaultdict(list)
        faults = []
        for row in self.index.rows_of(int(self._items[item])):
            name = self.index.name_of(row)
            try:
                mask = self.index.mask(row, size)
            except (KeyError, TypeError, ValueError) as error:
                faults.append((name, int(row), str(error)))
                continue
            (crowds if self.index.is_crowd[row] else masks)[name].append(mask)
        spoiled = {name for name, _, _ in faults}
        classes = tuple(
            AnnotatedClass(name, tuple(masks[name]), tuple(crowds[name]), name not in spoiled)
            for name in dict.fromkeys((*masks, *crowds, *spoiled))
        )
        return AnnotatedPicture(
            self.images / file_of(entry),
            size,
            f"{self.name}-{self.split}-{entry['id']}",
            classes,
            self._rows_known_late(faults),
        )

    def _rows_known_late(self, faults: list[tuple[str, int, str]]) -> tuple[BadRow, ...]:
        """The faults that only decoding showed; the others are listed already."""
        return tuple(
            BadRow(self.annotations, f"annotation {row}", reason)
            for _, row, reason in faults
            if not self.index.is_faulty[row]
        )

    def _askable_pictures(self) -> np.ndarray:
        """Numbers of the pictures that some question fits, as far as seen without their masks."""
        if self.negatives:
            return np.arange(len(self.index))
        return np.array(
            [item for item in range(len(self.index)) if self._shows_something(item)], np.int64
        )

    def _shows_something(self, item: int) -> bool:
        rows = self.index.rows_of(item)
        categories = self.index.category_of[rows]
        spoiled = self.index.is_faulty[rows]
        if self.targets == "instances":
            spoiled = spoiled | self.index.is_crowd[rows]
        for category in np.unique(categories):
            same = categories == category
            few = self.targets == "regions" or same.sum() <= self.max_instances
            if few and not spoiled[same].any():
                return True
        return False
