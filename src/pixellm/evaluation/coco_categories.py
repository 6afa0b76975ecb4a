"""The ``coco`` benchmark: "segment the {category}", for every category that an image shows.

All instances of the category are the targets, each its own mask. Reads annotations in COCO's
format; knows no model and scores nothing. Source of the format: Lin et al., ECCV 2014.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixellm.data.dataset import BadRow, UnusableDataError, check_header
from pixellm.data.readers.coco_images import source_of
from pixellm.data.readers.own_coco import own_files
from pixellm.masks import decode_mask, encode_mask, segmentation_to_rle
from pixellm.types import RLE, SEG_MARK, Sample, Target, Turn


class CocoCategories(Sequence[Sample]):
    """One question per image and category, images in the order of the file.

    Regions marked as crowds hold objects of their category that are not told apart; their pixels
    are left out of the category's scores. A category of which an image shows only a crowd is
    not asked for.

    Args:
        root: a layout of :func:`~pixellm.data.readers.own_coco.own_files`, or its folder "coco".
        split: such as "val".

    Attributes:
        bad_rows: images that are missing, damaged or of another size than annotated; nothing is
            asked about them.

    Raises:
        FileNotFoundError: no such files.
        ValueError: the annotation file is damaged, or no image can be used.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.path, self.images = _find_files(root, split)
        values = _read_annotations(self.path)
        self._names = {one["id"]: str(one["name"]) for one in values["categories"]}
        self._images = {one["id"]: one for one in values["images"]}
        self._found: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
        for one in values["annotations"]:
            self._found.setdefault((one["image_id"], one["category_id"]), []).append(one)
        order = {image: place for place, image in enumerate(self._images)}
        asked = (key for key, found in self._found.items() if not all(map(_is_crowd, found)))
        try:
            self._keys = sorted(asked, key=lambda key: (order[key[0]], key[1]))
        except KeyError as error:
            raise ValueError(
                f"{self.path} annotates the image {error} that it does not list."
            ) from None
        self.bad_rows = self._leave_out_bad_images()

    def _leave_out_bad_images(self) -> tuple[BadRow, ...]:
        """Drop the questions about images that can't be used."""
        bad_rows: dict[int, BadRow] = {}
        for number in dict.fromkeys(image for image, _ in self._keys):
            image = self._images[number]
            try:
                size = (int(image["height"]), int(image["width"]))
                path = self.images / str(image["file_name"])
            except (KeyError, TypeError, ValueError, OverflowError):
                fault = "It needs a file_name, and a height and a width in pixels."
                bad_rows[number] = BadRow(self.path, f"image {number}", fault)
                continue
            bad_rows.update((number, row) for row in check_header(path, size))
        self._keys = [key for key in self._keys if key[0] not in bad_rows]
        rows = tuple(bad_rows.values())
        if rows and not self._keys:
            raise UnusableDataError(f"No image of {self.path} can be used.", rows)
        return rows

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: Any) -> Any:  # a sample; for a slice, several
        """The question at that place.

        Raises:
            ValueError: a damaged mask, or a category that the file does not list.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image_id, category = self._keys[index]
        try:
            return self._sample(self._images[image_id], category)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{self.path}: image {image_id}, category {category}: {error}"
            ) from error

    def _sample(self, image: Mapping[str, Any], category: int) -> Sample:
        size = (int(image["height"]), int(image["width"]))
        name, found = self._names[category], self._found[image["id"], category]
        ignored = [_rle(one, size) for one in found if _is_crowd(one)]
        ignore = _join(ignored) if ignored else None
        masks = [_rle(one, size) for one in found if not _is_crowd(one)]
        mentions = [f"the {name} {SEG_MARK}" for _ in masks]
        listed = " and ".join(filter(None, [", ".join(mentions[:-1]), mentions[-1]]))
        answer = listed[0].upper() + listed[1:] + "."
        targets = tuple(Target(name, mask, ignore) for mask in masks)
        turn = Turn(f"segment the {name}", answer, targets, name)
        return Sample(
            self.images / str(image["file_name"]),
            size,
            (turn,),
            f"{image['id']}-{name}",
            source=source_of(image),
        )


def _find_files(root: Path, split: str) -> tuple[Path, Path]:
    """The annotation file and the folder of images, below the root or its folder "coco"."""
    found = [own_files(folder, split) for folder in (root, root / "coco")]
    for path, folder in found:
        if path.is_file() and folder.is_dir():
            return path, folder
    lacking = next((f for p, f in found if p.is_file()), None)
    wanted = f"its images, {lacking}, are" if lacking else f"{found[0][0]} is"
    raise FileNotFoundError(
        f"{root} holds no COCO split {split!r}: {wanted} missing; give another --data."
    )


def _read_annotations(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        needed = {"images": "id", "annotations": "image_id", "categories": "name"}
        for part, key in needed.items():
            if not all(key in one for one in values[part]):
                raise KeyError(key)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no annotation file in COCO's format ({error}).") from error
    return dict(values)


def _is_crowd(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("iscrowd"))


def _rle(annotation: Mapping[str, Any], size: tuple[int, int]) -> RLE:
    return segmentation_to_rle(annotation["segmentation"], size)


def _join(masks: Sequence[RLE]) -> RLE:
    return encode_mask(np.logical_or.reduce([decode_mask(mask) for mask in masks]))
