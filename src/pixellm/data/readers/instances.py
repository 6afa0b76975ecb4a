"""A COCO-style instances file by id: for data sets whose questions lie in a file of their own.

Of images and annotations only ids and byte offsets stay in memory. Knows neither where images
lie nor what is asked.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixellm.data.json_values import size_fault, whole_number
from pixellm.data.readers.coco_images import file_of, size_of
from pixellm.data.readers.json_index import JsonRecords, SpanList, scan_json
from pixellm.masks import segmentation_to_rle
from pixellm.types import RLE

_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image of an instances file: its name, and its (height, width) in pixels."""

    file_name: str
    size: tuple[int, int]


class InstanceFile:
    """Images, categories and annotations of a COCO-style file, by id.

    Args:
        path: the file; read once, as a stream.

    Attributes:
        path: the file.
        categories: name by id.
        problems: (row, reason) of entries that can't be used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or lacks a list.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.categories: dict[int, str] = {}
        self.problems: list[tuple[str, str]] = []
        ids = {"images": array("q"), "annotations": array("q")}
        spans = {"images": SpanList(), "annotations": SpanList()}
        counts = dict.fromkeys(_LISTS, 0)
        for key, start, end, value in scan_json(path):
            if key not in counts:
                continue
            reason = self._fault(key, value)
            if reason:
                self.problems.append((f"{key} {counts[key]}", reason))
            elif key in spans:
                ids[key].append(_id_of(value))
                spans[key].append(start, end)
            counts[key] += 1
        missing = [key for key, count in counts.items() if not count]
        if missing:
            raise ValueError(
                f"{path} has no {' and no '.join(missing)}; an instances file needs them."
            )
        self._images = _Records(path, ids["images"], spans["images"])
        self._annotations = _Records(path, ids["annotations"], spans["annotations"])

    def _fault(self, key: str, value: Any) -> str:
        """What is wrong with an entry, or ""; remembers categories."""
        if not isinstance(value, Mapping) or whole_number(value.get("id")) is None:
            return "It has no whole number as its id."
        if key == "categories":
            name = value.get("name")
            self.categories[_id_of(value)] = name if isinstance(name, str) else ""
            return ""
        if key == "images":
            try:
                file_of(value)
            except (KeyError, ValueError) as error:
                return f"Its file_name is no path inside a folder: {error}."
            return size_fault(value.get("height"), value.get("width"))
        return "" if value.get("segmentation") else "It has no mask."

    def has_image(self, identity: int) -> bool:
        """Whether there is a usable image of this id."""
        return self._images.place(identity) >= 0

    def has_annotation(self, identity: int) -> bool:
        """Whether there is an annotation of this id, with a mask."""
        return self._annotations.place(identity) >= 0

    def image(self, identity: int) -> ImageEntry:
        """An image.

        Raises:
            ValueError: there is none of this id.
        """
        entry = self._entry(self._images, identity, "image")
        return ImageEntry(str(file_of(entry)), size_of(entry))

    def annotation(self, identity: int) -> Mapping[str, Any]:
        """An annotation, as it stands in the file.

        Raises:
            ValueError: there is none of this id.
        """
        return self._entry(self._annotations, identity, "annotation")

    def name_and_mask(self, identity: int, size: tuple[int, int]) -> tuple[str, RLE]:
        """The category's name of an annotation ("" where unknown), and its mask.

        Args:
            identity: of the annotation.
            size: (height, width) of its image.

        Raises:
            ValueError: the mask is malformed or of another size; names the annotation.
        """
        entry = self.annotation(identity)
        try:
            mask = segmentation_to_rle(entry["segmentation"], size)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path}, annotation {identity}: {error}") from None
        category = whole_number(entry.get("category_id"))
        return self.categories.get(-1 if category is None else category, ""), mask

    def _entry(self, records: _Records, identity: int, kind: str) -> Mapping[str, Any]:
        place = records.place(identity)
        if place < 0:
            raise ValueError(f"{self.path} has no {kind} {identity}.")
        entry: Mapping[str, Any] = records.entries[place]
        return entry


class _Records:
    """Entries of one list, sorted by id."""

    def __init__(self, path: Path, ids: array[int], spans: SpanList) -> None:
        numbers: NDArray[np.int64] = np.array(ids, dtype=np.int64)
        order = np.argsort(numbers, kind="stable")
        self.ids = numbers[order]
        self.entries = JsonRecords(path, spans.records(path).spans[order])

    def place(self, identity: int) -> int:
        """Number of the first entry of an id; -1 where there is none."""
        place = int(np.searchsorted(self.ids, identity))
        return place if place < len(self.ids) and self.ids[place] == identity else -1


def _id_of(entry: Mapping[str, Any]) -> int:
    number = whole_number(entry["id"])
    assert number is not None, "checked when the file was read"
    return number
