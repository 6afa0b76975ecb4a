"""COCO-style annotations asked for their categories: what own files and sets of parts share.

Groups the annotations of an image by class and decodes their masks. A subclass says where the
files are and how its categories are called.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pixellm.data.classes import AnnotatedClass, AnnotatedImage, ClassDataset
from pixellm.data.dataset import BadRow, UnusableDataError
from pixellm.data.json_values import whole_number
from pixellm.data.readers.coco_images import (
    CocoImages,
    category_name,
    file_of,
    is_background,
    size_of,
    source_of,
)
from pixellm.types import RLE

_CROWDS_ALONE = (
    "all its annotations are crowds (iscrowd 1). CVAT marks brush masks so: set iscrowd to 0, or "
    "ask for whole regions with targets=regions"
)


class CocoClasses(ClassDataset):
    """A COCO-style file asked for its categories.

    Categories of one name are one class. A class is not asked for in an image where one of its
    annotations can't be used, or that the file says is not annotated exhaustively (LVIS).

    Args:
        root: folder that holds all data sets.
        split: one of :attr:`splits`.
        seed: another seed gives another order, grouping and wording.
        annotations: the JSON file.
        images: the folder that each ``file_name`` is below.
        options: see :class:`~pixellm.data.classes.ClassDataset`.

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
        self._called = {key: self.names_of(one) for key, one in self.index.categories.items()}
        self._silent = frozenset(
            self._called[key][0] for key, one in self.index.categories.items() if is_background(one)
        )
        askable, never = self._look_at_images()
        self._items = np.arange(len(self.index)) if self.negatives else askable
        self.bad_rows = (*self.index.bad_rows, *never)
        if not len(self._items):
            raise UnusableDataError(
                f"{annotations} has no image with a mask that can be asked for.", self.bad_rows
            )

    def names_of(self, category: Mapping[str, Any]) -> tuple[str, ...]:
        """What an entry of ``categories`` is called: its class, then what a question may say."""
        return (category_name(category),)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, in the order of the file; not those of groups and backgrounds."""
        return self._names

    @cached_property
    def _names(self) -> tuple[str, ...]:
        named = dict.fromkeys(names[0] for names in self._called.values())
        used = np.unique(self.index.category_of).tolist()
        annotated = {self._called[number][0] for number in used if number in self._called}
        empty_groups = self._parents - annotated
        return tuple(n for n in named if n not in self._silent and n not in empty_groups)

    @property
    def deniable_names(self) -> tuple[str, ...]:
        """See :meth:`ClassDataset.deniable_names`: not those that hold other classes."""
        return tuple(name for name in self.class_names if name not in self._parents)

    @cached_property
    def _parents(self) -> frozenset[str]:
        """Classes that are the supercategory of another one, as Roboflow's root is."""
        above = {
            " ".join(str(one.get("supercategory") or "").replace("_", " ").split())
            for one in self.index.categories.values()
            if str(one.get("supercategory") or "") != one["name"]
        }
        return frozenset(names[0] for names in self._called.values() if names[0] in above)

    def __len__(self) -> int:
        """Images that can be asked about; without annotations only where there are negatives."""
        return len(self._items)

    def where(self, item: int) -> tuple[Path, str]:
        """The annotation file, and which of its images."""
        return self.annotations, f"image {self.index.usable[self._items[item]]}"

    def row(self, item: int) -> AnnotatedImage:
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
            AnnotatedClass(
                name,
                tuple(masks[name]),
                tuple(crowds[name]),
                name not in unsure and name not in self._silent,
                words,
            )
            for name, words in wordings.items()
        )
        path = self.images / file_of(entry)
        label = f"{self.name}-{self.split}-{entry['id']}"
        return AnnotatedImage(path, size, label, classes, tuple(faults), source_of(entry))

    def _not_exhaustive(self, entry: Mapping[str, Any]) -> set[str]:
        """Classes of which an image may show more than is annotated."""
        given = entry.get("not_exhaustive_category_ids")
        numbers = map(whole_number, given if isinstance(given, list) else ())
        return {self._called[number][0] for number in numbers if number in self._called}

    def _look_at_images(self) -> tuple[np.ndarray, list[BadRow]]:
        """What can be asked, as far as seen without masks.

        Returns:
            Numbers of the images that some question fits, and the classes that are asked for
            nowhere because they have crowds alone, or too many targets wherever they are.
        """
        items: list[int] = []
        asked: set[str] = set()
        too_many: dict[str, str] = {}
        for item in range(len(self.index)):
            counts, refused = self._classes_in(item)
            fit = counts.keys() - refused
            asked |= fit
            if fit:
                items.append(item)
            for name in counts.keys() - fit - too_many.keys():
                if counts[name] > self.max_instances and self.targets == "instances":
                    place = int(self.index.usable[item])
                    too_many[name] = (
                        f"in image {place} it has {counts[name]} targets, "
                        f"max_instances is {self.max_instances}"
                    )
        reasons = dict.fromkeys(self._crowds_alone(), _CROWDS_ALONE) | too_many
        never = [
            BadRow(self.annotations, f"category {name!r}", f"It is asked for nowhere: {reason}.")
            for name, reason in reasons.items()
            if name not in asked | self._silent
        ]
        return np.array(items, dtype=np.int64), never

    def _classes_in(self, item: int) -> tuple[Counter[str], set[str]]:
        """How many annotations each class has in an image, and which can't be asked for."""
        rows = self.index.rows_of(item)
        names = [self._called[int(number)][0] for number in self.index.category_of[rows]]
        counts = Counter(names)
        spoiled = self.index.is_faulty[rows]
        if self.targets == "instances":
            spoiled = spoiled | self.index.is_crowd[rows]
        refused = {name for name, bad in zip(names, spoiled, strict=True) if bad}
        most = len(names) if self.targets == "regions" else self.max_instances
        return counts, refused | {n for n in counts if counts[n] > most or n in self._silent}

    def _crowds_alone(self) -> list[str]:
        """Classes of which every annotation is a crowd, where these are not asked for."""
        if self.targets == "regions":
            return []
        of_crowds, of_others = (
            {self._called[n][0] for n in np.unique(numbers).tolist() if n in self._called}
            for numbers in (
                self.index.category_of[self.index.is_crowd],
                self.index.category_of[~self.index.is_crowd],
            )
        )
        return sorted(of_crowds - of_others)
