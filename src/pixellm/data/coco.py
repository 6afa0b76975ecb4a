"""COCO-style annotation files: which annotations belong to which image, without holding them.

The file is streamed once into tables (:mod:`pixellm.data.table`); its records are parsed when an
image is asked for. Ids, sizes and flags may be written in any form, as annotation tools do.

Source of the format: Lin et al., ECCV 2014.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pixellm.data.dataset import BadRow, path_of_split
from pixellm.data.json_stream import scan_json
from pixellm.data.json_values import (
    flag,
    identity,
    inner_path,
    is_nothing,
    size_fault,
    text_fault,
    whole_number,
)
from pixellm.data.table import Integers, TablesWriter, open_tables
from pixellm.masks import areas_of, list_polygons, segmentation_to_rle
from pixellm.types import RLE, SEG_MARK

ANNOTATIONS = "annotations/instances_{split}.json"
"""Where the annotations usually are, below the root."""

ROBOFLOW_FILE = "_annotations.coco.json"
"""What Roboflow calls the annotations in each split's folder of images."""

_TEXT_KEYS = ("expressions", "expression", "captions", "caption", "descriptions", "description")
_SOUND, _MALFORMED, _WITHOUT_MASK = 0, 1, 2
_NO_NUMBER = -1 << 62
"""Stands for an id that is no whole number."""


class CocoFile:
    """A COCO-style file by image, and by the ids of images and annotations.

    An annotation that repeats an earlier one, its image, category, crowd and mask as written, is
    among the bad rows and belongs to no image; its id is known all the same.

    Args:
        path: the JSON file, an object with ``images``, ``annotations`` and ``categories``.
        by_texts: two annotations with different expressions don't repeat each other.

    Attributes:
        categories: category id -> its entry, in the order of the file; names are texts.
        licenses: the entries of ``licenses``.
        num_images: entries of ``images``, usable or not.
        image_indices: (N,) the usable images, as indices in the file's ``images``.
        category_of: (num annotations,) category id of each annotation.
        is_crowd: (num annotations,) bool, regions that hold many objects.
        is_faulty: (num annotations,) bool, annotations whose mask can't be used.
        num_texts: (num annotations,) how many expressions each has.
        bad_rows: entries left out, with reasons.
        bad_texts: annotations with an expression that can't be used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no COCO-style file.
    """

    def __init__(self, path: Path, *, by_texts: bool = False) -> None:
        self.path = path
        key = "coco by texts" if by_texts else "coco"
        tables = open_tables([path], key, lambda tables: _Scan(path, tables, by_texts).run())
        self.bad_rows = tables.bad_rows
        self.bad_texts = tuple(BadRow(path, *one) for one in tables["bad texts"])
        self.categories: dict[int, dict[str, Any]] = dict(tables["categories"])
        self.licenses: tuple[dict[str, Any], ...] = tuple(tables["licenses"])
        self._images, self._annotations = tables["images"], tables["annotations"]
        self.image_indices = self._images.numbers("index")
        (self.num_images,) = tables["size"].numbers("images").tolist()
        self.category_of = self._annotations.numbers("category")
        self.is_crowd = self._annotations.numbers("crowd").astype(bool)
        self.is_faulty = self._annotations.numbers("fault") != _SOUND
        self.num_texts = self._annotations.numbers("texts")
        self.sorted_rows = tables["rows"].numbers("row")
        self._starts = tables["starts"].numbers("start")

    def __len__(self) -> int:
        """Usable images."""
        return len(self.image_indices)

    def image(self, item: int) -> dict[str, Any]:
        """The entry of a usable image, by its number."""
        return self._images[item]

    def rows_of(self, item: int) -> Integers:
        """The indices of the annotations that belong to a usable image, in the file's order.

        Faulty ones are among them: what they show is in the image all the same.
        """
        return self.sorted_rows[self._starts[item] : self._starts[item + 1]]

    @property
    def items_of_sorted_rows(self) -> Integers:
        """The usable image of each of ``sorted_rows``, in ascending order."""
        return np.repeat(np.arange(len(self)), np.diff(self._starts))

    def annotation(self, row: int) -> dict[str, Any]:
        """One annotation, by its index in the file."""
        return self._annotations[row]

    def mask(self, row: int, size: tuple[int, int]) -> RLE:
        """The mask of an annotation; ValueError where it is malformed, does not fit or is empty."""
        mask = segmentation_to_rle(self.annotation(row)["segmentation"], size)
        if not areas_of([mask])[0]:
            raise ValueError("The mask covers no pixel.")
        return mask

    def find_image(self, identity: int) -> int:
        """The number of the usable image with an id; -1 where there is none."""
        return _find(self._images_by_id, identity)

    def find_annotation(self, identity: int) -> int:
        """The index of the first annotation with an id and some mask; -1 where there is none."""
        return _find(self._annotations_by_id, identity)

    @cached_property
    def _images_by_id(self) -> tuple[Integers, Integers]:
        return _sorted_by_id(self._images.numbers("id"), np.arange(len(self)))

    @cached_property
    def _annotations_by_id(self) -> tuple[Integers, Integers]:
        ids = self._annotations.numbers("id")
        has_mask = self._annotations.numbers("fault") != _WITHOUT_MASK
        return _sorted_by_id(ids, np.flatnonzero(has_mask & (ids != _NO_NUMBER)))


def _sorted_by_id(ids: Integers, rows: Integers) -> tuple[Integers, Integers]:
    order = rows[np.argsort(ids[rows], kind="stable")]
    return ids[order], order


def _find(by_id: tuple[Integers, Integers], identity: int) -> int:
    ids, rows = by_id
    index = int(np.searchsorted(ids, identity))
    return int(rows[index]) if index < len(ids) and ids[index] == identity else -1


def category_name(category: Mapping[str, Any]) -> str:
    """The name of an entry of ``categories``, underscores as spaces.

    A number, as digits are often called by, counts as its digits.
    """
    return " ".join(str(category["name"]).replace("_", " ").split())


def size_of(image: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of an entry of ``images``; KeyError or ValueError without one."""
    fault = size_fault(image["height"], image["width"])
    if fault:
        raise ValueError(fault)
    return int(float(image["height"])), int(float(image["width"]))


def photo_name(entry: Mapping[str, Any]) -> str:
    """What a COCO-style file calls an image: a path below the folder of images.

    Without ``file_name``, as in LVIS, it is the tail of ``coco_url``: "train2017/000000000009.jpg".
    Backslashes are turned. KeyError where neither is given, ValueError where it is no text.
    """
    key = "file_name" if entry.get("file_name") else "coco_url"
    name = entry[key]
    if not isinstance(name, str):
        raise ValueError(f"{key} is no text but {name!r:.40}")
    name = name if key == "file_name" else "/".join(name.split("/")[-2:])
    return name.replace("\\", "/")


def file_of(image: Mapping[str, Any]) -> PurePosixPath:
    """The image's file of an entry of ``images``, below the folder; raises as its name does."""
    return inner_path(photo_name(image))


def is_background(category: Mapping[str, Any]) -> bool:
    """Whether an entry of ``categories`` stands for what is nothing, such as "_background_"."""
    return is_nothing(category_name(category))


def source_of(image: Mapping[str, Any]) -> str:
    """The folder in an entry's ``coco_url``, such as "val2017"; "" without one."""
    return "/".join(str(image.get("coco_url") or "").split("/")[-2:-1])


def expressions_of(annotation: Mapping[str, Any]) -> list[str]:
    """The expressions of an annotation that can stand in a sentence."""
    return [text for text in _all_texts(annotation) if not text_fault(text)]


def read_captions(path: Path) -> dict[int | str | None, list[str]]:
    """The captions that are texts of each image, by its id, of a file in COCO's format."""
    captions: dict[int | str | None, list[str]] = defaultdict(list)
    for key, value, _ in scan_json(path):
        if key == "annotations" and isinstance(value, Mapping):
            image, caption = identity(value.get("image_id")), value.get("caption")
            if image is not None and not text_fault(caption):
                captions[image].append(str(caption))
    return captions


# Where the files are.


def own_files(
    root: Path, split: str, annotations: str = ANNOTATIONS, images: str = ""
) -> tuple[Path, Path]:
    """The annotation file and the folder of images, there or not, below ``root`` or its "coco".

    Both are paths with ``{split}`` for the split. Where the usual file is not there, it is the
    first of these that is: COCO's own "instances_train2017.json" with the folder "train2017";
    Roboflow's "train/_annotations.coco.json", whose val is "valid"; and for the split to train on
    CVAT's "annotations/instances_default.json". No path of images stands for the first of
    ``{split}/images``, ``{split}``, ``images/{split}`` and ``images`` that is there.
    """
    found = [_files_below(one, split, annotations, images) for one in (root, root / "coco")]
    complete = (one for one in found if one[0].is_file() and one[1].is_dir())
    begun = (one for one in found if one[0].is_file())
    return next(chain(complete, begun), found[0])


def _files_below(root: Path, split: str, annotations: str, images: str) -> tuple[Path, Path]:
    """The same for one folder."""
    usual = path_of_split(root, annotations, split)
    path = published_or(usual)
    folder = _image_folder(root, split if path == usual else f"{split}2017")
    if annotations == ANNOTATIONS and not path.exists():
        for other, beside in _exported(root, split):
            if other.is_file():
                path, folder = other, beside
                break
    return path, path_of_split(root, images, split) if images else folder


def published_or(path: Path) -> Path:
    """The path, or that of COCO's own file with 2017 in its name where only that one is there."""
    published = path.with_name(f"{path.stem}2017{path.suffix}")
    return published if published.exists() and not path.exists() else path


def _exported(root: Path, split: str) -> Iterator[tuple[Path, Path]]:
    """Where annotation tools put the file and the images of a split."""
    for folder in (root / split, *([root / "valid"] if split == "val" else ())):
        yield folder / ROBOFLOW_FILE, folder
    if split == "train":
        folder = root / "images" / "default"
        folder = folder if folder.is_dir() else _image_folder(root, split)
        yield root / "annotations/instances_default.json", folder


def _image_folder(root: Path, split: str) -> Path:
    """Where the images of a split usually are; the plain ``root/split`` where there are none."""
    usual = (root / split / "images", root / split, root / "images" / split, root / "images")
    return next((folder for folder in usual if folder.is_dir()), root / split)


# Reading a file once.


class _Scan:
    """One pass over a file; thrown away when its tables are written."""

    def __init__(self, path: Path, tables: TablesWriter, by_texts: bool) -> None:
        self.path, self.tables, self.by_texts = path, tables, by_texts
        self.images = tables.table("images", "index", "id")
        self.annotations = tables.table("annotations", "category", "crowd", "fault", "texts", "id")
        self.categories, self.licenses = tables.table("categories"), tables.table("licenses")
        self.bad_texts = tables.table("bad texts")
        self.item_of: dict[int | str, int] = {}
        self.num_images = 0
        self.refused: set[int | str] = set()
        self.named: set[int] = set()
        self.nameless: set[int] = set()
        self.image_ids: list[int | str | None] = []
        self.category_ids = array("q")
        self.contents = array("q")

    def run(self) -> None:
        filled, keys = set(), set[str]()
        for key, value, text in scan_json(self.path, keys):
            filled.add(key)
            if key == "images":
                self._add_image(value, text)
            elif key == "annotations":
                self._add_annotation(value, text)
            elif key == "categories":
                self._add_category(value)
            elif key == "licenses" and isinstance(value, Mapping):
                self.licenses.append(value)
        missing = [key for key in ("images", "categories") if key not in filled]
        if "annotations" not in keys:  # they may be none, but of no list nobody knows what is shown
            missing.append("annotations")
        if missing:
            raise ValueError(
                f"{self.path} has no {' and no '.join(missing)}; a COCO instances file with "
                "images, annotations and categories is needed."
            )
        items = self._items_of_annotations()
        rows = np.flatnonzero(items >= 0)
        rows = rows[np.argsort(items[rows], kind="stable")]
        starts = np.searchsorted(items[rows], np.arange(len(self.images) + 1))
        self.tables.table("rows", "row").extend(rows)
        self.tables.table("starts", "start").extend(starts.astype(np.int64))
        self.tables.table("size", "images").extend(np.array([self.num_images]))

    def _refuse(self, what: str, reason: str) -> None:
        self.tables.refuse(BadRow(self.path, what, reason))

    def _add_category(self, value: Any) -> None:
        entry = value if isinstance(value, Mapping) else {}
        number, name = whole_number(entry.get("id")), entry.get("name")
        if whole_number(name) is not None:
            name = str(name)
        if number is None:
            self._refuse(f"category {value!r:.60}", "It needs an id, a whole number, and a name.")
        elif number in self.named:
            self._refuse(f"category {number}", "Two categories have this id; the first counts.")
        elif fault := text_fault(name, "name"):
            self._refuse(f"category {number}", f"{fault} Nothing of it is asked for.")
            self.nameless.add(number)
        else:
            self.named.add(number)
            self.categories.append([number, {**entry, "name": name}])

    def _add_image(self, value: Any, text: str) -> None:
        index = self.num_images
        self.num_images += 1
        number = identity(value.get("id")) if isinstance(value, Mapping) else None
        if number is None:
            self._refuse(f"image {index}", "It needs an id, a number or a text.")
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
            self._refuse(f"image {index}", fault if fault.endswith(".") else f"{fault}.")
            self.refused.add(number)
        elif number in self.item_of:
            self._refuse(f"image {index}", f"Two images have the id {number}; the first counts.")
        else:
            self.item_of[number] = len(self.images)
            self.images.append(text.encode(), index, _number_or_none(number))

    def _add_annotation(self, value: Any, text: str) -> None:
        index = len(self.annotations)
        entry = value if isinstance(value, Mapping) else {}
        image, category = identity(entry.get("image_id")), whole_number(entry.get("category_id"))
        crowd = flag(entry.get("iscrowd"))
        reason = _shape_fault(entry.get("segmentation"))
        if crowd is None:
            reason = f"Its iscrowd is {entry['iscrowd']!r:.40}, neither 0 nor 1."
        if image is None or category is None:
            image, category, reason = None, -1, "It needs an image_id and a category_id."
        if reason:
            self._refuse(f"annotation {index}", reason)
        fault = _MALFORMED if reason else _SOUND
        if not entry.get("segmentation"):
            fault = _WITHOUT_MASK
        texts = _all_texts(entry)
        usable = sum(not text_fault(one) for one in texts)
        if usable < len(texts):
            reason = f"An expression is empty, no text, or holds {SEG_MARK}: {texts!r:.80}."
            self.bad_texts.append([f"annotation {index}", reason])
        self.image_ids.append(image)
        self.category_ids.append(category)
        shown = (image, category, crowd, repr(entry.get("segmentation")))
        said = repr(texts) if self.by_texts else ""
        self.contents.append(hash((index,) if fault else (*shown, said)))
        number = _number_or_none(whole_number(entry.get("id")))
        self.annotations.append(text.encode(), category, int(bool(crowd)), fault, usable, number)

    def _items_of_annotations(self) -> Integers:
        """(num annotations,) number of each annotation's image among the usable; -1 for none."""
        items = np.full(len(self.image_ids), -1, dtype=np.int64)
        contents = np.array(self.contents, dtype=np.int64)
        _, first, of_content = np.unique(contents, return_index=True, return_inverse=True)
        earliest = first[of_content.reshape(-1)].tolist()
        for row, image in enumerate(self.image_ids):
            if image is None:  # listed when it was read
                continue
            category = self.category_ids[row]
            if category in self.nameless:
                reason = f"Its category {category} has no name."
            elif category not in self.named:
                reason = f"There is no category {category} in the file."
            elif image in self.item_of and earliest[row] != row:
                same = ", mask and expressions" if self.by_texts else " and mask"
                reason = f"It repeats annotation {earliest[row]}, with its image, category{same}."
            elif image in self.item_of:
                items[row] = self.item_of[image]
                continue
            elif image in self.refused:
                reason = "Its image is left out."
            else:
                reason = f"There is no image {image!r} in the file."
            self._refuse(f"annotation {row}", reason)
        return items


def _number_or_none(value: int | str | None) -> int:
    return value if isinstance(value, int) else _NO_NUMBER


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


def _all_texts(annotation: Mapping[str, Any]) -> list[Any]:
    """Whatever an annotation has under the keys of expressions, usable or not."""
    found: list[Any] = []
    for key in _TEXT_KEYS:
        value = annotation.get(key)
        found += value if isinstance(value, list) else [] if value is None else [value]
    return found
