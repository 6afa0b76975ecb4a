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

from pixellm.data.dataset import BadRow
from pixellm.data.json_values import (
    flag,
    identity,
    inner_path,
    size_fault,
    text_fault,
    whole_number,
)
from pixellm.data.readers.json_index import JsonRecords, SpanList, scan_json
from pixellm.masks import areas_of, list_polygons, segmentation_to_rle
from pixellm.types import RLE


def category_name(category: Mapping[str, Any]) -> str:
    """The name of an entry of ``categories``, underscores as spaces.

    A number, as digits are often called by, counts as its digits.
    """
    return " ".join(str(category["name"]).replace("_", " ").split())


def size_of(image: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of an entry of ``images``.

    Raises:
        KeyError, ValueError: they are missing, or no size.
    """
    fault = size_fault(image["height"], image["width"])
    if fault:
        raise ValueError(fault)
    return int(float(image["height"])), int(float(image["width"]))


def photo_name(entry: Mapping[str, Any]) -> str:
    """What a COCO-style file calls an image: a path below the folder of images.

    Without ``file_name``, as in LVIS, it is the tail of ``coco_url``: "train2017/000000000009.jpg".
    Backslashes are turned.

    Raises:
        KeyError: neither is given.
        ValueError: what is given is no text.
    """
    name = entry.get("file_name") or "/".join(_text(entry, "coco_url").split("/")[-2:])
    if not isinstance(name, str):
        raise ValueError(f"file_name is no text but {name!r:.40}")
    return name.replace("\\", "/")


def file_of(image: Mapping[str, Any]) -> PurePosixPath:
    """The image's file of an entry of ``images``, below the folder of images.

    Raises:
        KeyError: neither file_name nor coco_url is given.
        ValueError: the name is no text, or leads out of its folder.
    """
    return inner_path(photo_name(image))


def is_background(category: Mapping[str, Any]) -> bool:
    """Whether an entry of ``categories`` stands for what is nothing, such as "_background_"."""
    return category_name(category).lower() in ("background", "unlabeled", "unlabelled")


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
        self.nameless: set[int] = set()
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
        entry = value if isinstance(value, Mapping) else {}
        number, name = whole_number(entry.get("id")), entry.get("name")
        if whole_number(name) is not None:
            name = str(name)
        if number is None:
            self._refuse(f"category {value!r:.60}", "It needs an id, a whole number, and a name.")
        elif number in self.index.categories:
            self._refuse(f"category {number}", "Two categories have this id; the first counts.")
        elif fault := text_fault(name, "name"):
            self._refuse(f"category {number}", f"{fault} Nothing of it is asked for.")
            self.nameless.add(number)
        else:
            self.index.categories[number] = {**entry, "name": name}

    def _add_image(self, value: Any) -> None:
        place = len(self.image_spans)
        number = identity(value.get("id")) if isinstance(value, Mapping) else None
        if number is None:
            self._refuse(f"image {place}", "It needs an id, a number or a text.")
            return
        try:
            file_of(value)
            size_of(value)
            fault = ""
        except KeyError as error:
            fault = f"It needs file_name, width and height; {error} is missing."
        except ValueError as error:
            fault = str(error)
        if fault:
            self._refuse(f"image {place}", fault if fault.endswith(".") else f"{fault}.")
            self.refused.add(number)
        elif number in self.images:
            self._refuse(f"image {place}", f"Two images have the id {number}; the first counts.")
        else:
            self.images[number] = place

    def _add_annotation(self, value: Any) -> None:
        entry = value if isinstance(value, Mapping) else {}
        image, category = identity(entry.get("image_id")), whole_number(entry.get("category_id"))
        crowd = flag(entry.get("iscrowd"))
        fault = _shape_fault(entry.get("segmentation"))
        if crowd is None:
            fault = f"Its iscrowd is {entry['iscrowd']!r:.40}, neither 0 nor 1."
        if image is None or category is None:
            image, category, fault = None, -1, "It needs an image_id and a category_id."
        self.image_ids.append(image)
        self.category_ids.append(category)
        self.crowds.append(bool(crowd))
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
            if self.category_ids[row] in self.nameless:
                reason = f"Its category {self.category_ids[row]} has no name."
            elif self.category_ids[row] not in self.index.categories:
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
    if any(isinstance(part, Mapping) for part in shape):
        return ""
    try:
        polygons = list_polygons(shape)
    except ValueError as error:
        return str(error)
    if all(len(polygon) < 6 for polygon in polygons):
        return "Its polygons have fewer than three points."
    return ""


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text but {value!r:.40}")
    return value
