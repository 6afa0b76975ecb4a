"""COCO-style annotation files: which annotations belong to which image, without holding them.

The file is streamed once. What stays in memory is a few numbers per annotation and the place of
each record in the file; records are parsed when an image is asked for. This module knows the
keys that all COCO-style files share, and nothing of questions or of any one data set.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pixellm.data.readers.base import BadRow
from pixellm.data.readers.json_index import JsonRecords, SpanList, scan_json
from pixellm.data.readers.run_lengths import areas_of
from pixellm.masks import segmentation_to_rle
from pixellm.types import RLE, SEG_MARK


def category_name(category: Mapping[str, Any]) -> str:
    """The name of an entry of ``categories``, underscores as spaces."""
    return " ".join(str(category["name"]).replace("_", " ").split())


def size_of(image: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of an entry of ``images``."""
    return int(image["height"]), int(image["width"])


def photo_name(entry: Mapping[str, Any]) -> str:
    """What a COCO-style file calls an image: a path below the folder of images.

    Without ``file_name``, as in LVIS, it is the tail of ``coco_url``: "train2017/000000000009.jpg".

    Raises:
        KeyError: neither is given.
    """
    return str(entry.get("file_name") or "/".join(str(entry["coco_url"]).split("/")[-2:]))


def file_of(image: Mapping[str, Any]) -> PurePosixPath:
    """The image's file of an entry of ``images``, below the folder of images.

    Raises:
        KeyError: neither is given.
        ValueError: the name leads out of its folder.
    """
    path = PurePosixPath(photo_name(image))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file_name {str(path)!r} leads out of the folder of images")
    return path


def source_of(image: Mapping[str, Any]) -> str:
    """The folder in an entry's ``coco_url``, such as "val2017"; "" without one."""
    return "/".join(str(image.get("coco_url") or "").split("/")[-2:-1])


class CocoImages:
    """A COCO-style file by image.

    Args:
        path: the JSON file, an object with ``images``, ``annotations`` and ``categories``.

    Attributes:
        categories: category id -> its entry, in the order of the file.
        usable: the usable images, as indices in the file's ``images``.
        category_of: (num annotations,) category id of each annotation.
        is_crowd: (num annotations,) bool, regions that hold many objects.
        is_faulty: (num annotations,) bool, annotations whose mask can't be used.
        bad_rows: entries left out, with reasons.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no COCO-style file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.categories: dict[int, dict[str, Any]] = {}
        self.bad_rows: list[BadRow] = []
        found = _Scan(self)
        self.images: JsonRecords = found.image_spans.records(path)
        self.annotations: JsonRecords = found.annotation_spans.records(path)
        self.category_of = np.array(found.category_ids, dtype=np.int64)
        self.is_crowd = np.array(found.crowds, dtype=np.int8).astype(bool)
        self.usable = np.array(list(found.images.values()), dtype=np.int64)
        self.is_faulty = np.array(found.faulty, dtype=np.int8).astype(bool)
        items = found.items_of_annotations()
        rows = np.flatnonzero(items >= 0)
        self._rows = rows[np.argsort(items[rows], kind="stable")]
        self._starts = np.searchsorted(items[self._rows], np.arange(len(self.usable) + 1))

    def __len__(self) -> int:
        """Usable images."""
        return len(self.usable)

    def image(self, item: int) -> dict[str, Any]:
        """The entry of a usable image, by its number."""
        entry: dict[str, Any] = self.images[int(self.usable[item])]
        return entry

    def rows_of(self, item: int) -> np.ndarray:
        """The places in ``annotations`` that belong to a usable image, in the file's order.

        Faulty ones are among them: what they show is in the image all the same.
        """
        return self._rows[self._starts[item] : self._starts[item + 1]]

    def annotation(self, row: int) -> dict[str, Any]:
        """One annotation, by its place in the file."""
        entry: dict[str, Any] = self.annotations[int(row)]
        return entry

    def mask(self, row: int, size: tuple[int, int]) -> RLE:
        """The mask of an annotation.

        Raises:
            ValueError: it is malformed, of another size than the image, or empty.
        """
        mask = segmentation_to_rle(self.annotation(row)["segmentation"], size)
        if not areas_of([mask])[0]:
            raise ValueError("The mask covers no pixel.")
        return mask


class _Scan:
    """What one pass over the file collects; thrown away when the index is built."""

    def __init__(self, index: CocoImages) -> None:
        self.index = index
        self.images: dict[int | str, int] = {}
        self.refused: set[int | str] = set()
        self.image_spans, self.annotation_spans = SpanList(), SpanList()
        self.image_ids: list[int | str | None] = []
        self.category_ids, self.crowds, self.faulty = array("q"), array("b"), array("b")
        keys = set()
        for key, start, end, value in scan_json(index.path):
            keys.add(key)
            if key == "images":
                self._add_image(value)
                self.image_spans.append(start, end)
            elif key == "annotations":
                self._add_annotation(value)
                self.annotation_spans.append(start, end)
            elif key == "categories":
                self._add_category(value)
        self._require(keys)

    def _require(self, keys: set[str]) -> None:
        """Refuse a foreign file; a list without entries leaves no trace, as annotations may be."""
        missing = [key for key in ("images", "categories") if key not in keys]
        if missing:
            raise ValueError(
                f"{self.index.path} has no {' and no '.join(missing)}; a COCO instances file with "
                "images, annotations and categories is needed."
            )

    def _refuse(self, what: str, reason: str) -> None:
        self.index.bad_rows.append(BadRow(self.index.path, what, reason))

    def _add_category(self, value: Any) -> None:
        try:
            number, name = int(value["id"]), str(value["name"])
        except (KeyError, TypeError, ValueError):
            self._refuse(f"category {value!r:.60}", "It needs an id and a name.")
            return
        if number in self.index.categories:
            self._refuse(f"category {number}", "Two categories have this id; the first counts.")
        elif not name.strip(" _.") or SEG_MARK in name:
            self._refuse(f"category {number}", f"The name {name!r} can't stand in a sentence.")
        else:
            self.index.categories[number] = value

    def _add_image(self, value: Any) -> None:
        place = len(self.image_spans)
        number = value.get("id") if isinstance(value, Mapping) else None
        if not isinstance(number, int | str):
            self._refuse(f"image {place}", "It needs an id, a number or a text.")
            return
        try:
            file_of(value)
            fault = "" if min(size_of(value)) >= 1 else "Its width or height is below 1."
        except (KeyError, TypeError, ValueError) as error:
            fault = f"It needs file_name, width and height ({error})."
        if fault:
            self._refuse(f"image {place}", fault)
            self.refused.add(number)
        elif number in self.images:
            self._refuse(f"image {place}", f"Two images have the id {number}; the first counts.")
        else:
            self.images[number] = place

    def _add_annotation(self, value: Any) -> None:
        entry = value if isinstance(value, Mapping) else {}
        image, category = entry.get("image_id"), entry.get("category_id")
        fault = _shape_fault(entry.get("segmentation"))
        if not isinstance(image, int | str) or not isinstance(category, int):
            image, category, fault = None, -1, "It needs an image_id and a category_id."
        self.image_ids.append(image)
        self.category_ids.append(category)
        self.crowds.append(bool(entry.get("iscrowd")))
        self.faulty.append(bool(fault))
        if fault:
            self._refuse(f"annotation {len(self.annotation_spans)}", fault)

    def items_of_annotations(self) -> np.ndarray:
        """(num annotations,) number of each annotation's image among the usable; -1 for none."""
        numbers = {image: item for item, image in enumerate(self.images)}
        items = np.full(len(self.image_ids), -1, dtype=np.int64)
        for row, image in enumerate(self.image_ids):
            if image is None:  # listed when it was read
                continue
            if self.category_ids[row] not in self.index.categories:
                reason = f"There is no category {self.category_ids[row]} in the file."
            elif image in numbers:
                items[row] = numbers[image]
                continue
            elif image in self.refused:
                reason = "Its image is left out."
            else:
                reason = f"There is no image {image!r} in the file."
            self._refuse(f"annotation {row}", reason)
        return items


def _shape_fault(shape: Any) -> str:
    """What is wrong with a segmentation, seen without decoding it; "" where nothing is."""
    if isinstance(shape, Mapping):
        return "" if {"size", "counts"} <= shape.keys() else "Its run lengths lack size or counts."
    if not isinstance(shape, list) or not shape:
        return "It needs a segmentation, polygons or run lengths; a box alone is no mask."
    if all(isinstance(ring, list) and len(ring) < 6 for ring in shape):
        return "Its polygons have fewer than three points."
    return ""
