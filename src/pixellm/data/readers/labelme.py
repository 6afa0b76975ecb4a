"""Your own photos as LabelMe leaves them: a JSON file beside each image.

Shapes of one label and one ``group_id`` are one instance. Polygons, rectangles, circles and painted
masks have an area; points and lines have none and are reported. What is asked together is
:mod:`~pixellm.data.readers.class_reader`'s business.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pixellm.data.readers.annotated import AnnotatedClass, AnnotatedImage
from pixellm.data.readers.base import BadRow, image_size, path_of_split
from pixellm.data.readers.class_reader import ClassReader
from pixellm.data.readers.run_lengths import areas_of, union_of
from pixellm.masks import encode_mask, segmentation_to_rle
from pixellm.types import RLE, SEG_MARK, BoolMask


class LabelMe(ClassReader):
    """A folder of LabelMe files, asked for their labels. An item is a file.

    Args:
        root: folder that the files are in, themselves or below it.
        split: put in place of ``{split}``.
        seed: another seed gives another order, grouping and wording.
        folder: the folder of files, below ``root``; its folders are searched too.
        options: see :class:`~pixellm.data.readers.class_reader.ClassReader`; here ``targets`` is
            ``instances`` unless told otherwise.

    Raises:
        ValueError: no file can be used.
        FileNotFoundError: there is no such folder.
    """

    name = "labelme"
    title = "Your own photos: a folder of LabelMe files"
    splits = ("train", "val", "test")
    obtain = "save your LabelMe files in it"

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        *,
        folder: str = "{split}",
        **options: Any,
    ) -> None:
        super().__init__(root, split, seed, **{"targets": "instances", **options})
        self.folder = path_of_split(self.root, folder, split)
        self.require(self.folder)
        bad_rows = []
        names: dict[str, None] = {}
        self._files = []
        for path in sorted(self.folder.rglob("*.json")):
            try:
                shapes = _read(path)["shapes"]
                labels = [_label(shape) for shape in shapes if _name_fault(shape) == ""]
            except ValueError as error:
                bad_rows.append(BadRow(path, "", str(error)))
                continue
            bad_rows += [
                BadRow(path, f"shape {number}", fault)
                for number, shape in enumerate(shapes)
                if (fault := _name_fault(shape))
            ]
            names |= dict.fromkeys(labels)
            if self._shows_something(shapes):
                self._files.append(path)
        self.bad_rows = tuple(bad_rows)
        self._names = tuple(names)
        if not self._files:
            raise ValueError(f"{self.folder} holds no LabelMe file with a shape that can be used.")

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """A LabelMe file in the folder of the default name, to tell it from others."""
        folder = root / split
        return (next(folder.rglob("*.json"), folder / "*.json"),)

    def _shows_something(self, shapes: list[Any]) -> bool:
        """Whether some label can be asked for, as far as seen without masks."""
        instances = {
            (_label(shape), _instance_of(shape, number))
            for number, shape in enumerate(shapes)
            if not _name_fault(shape)
        }
        counts = Counter(name for name, _ in instances).values()
        return bool(counts) and (self.targets == "regions" or min(counts) <= self.max_instances)

    @property
    def class_names(self) -> tuple[str, ...]:
        """All labels, in the order of the files."""
        return self._names

    def __len__(self) -> int:
        """Files with at least one label."""
        return len(self._files)

    def where(self, item: int) -> tuple[Path, str]:
        """The file."""
        return self._files[item], ""

    def image(self, item: int) -> AnnotatedImage:
        """An image with its labels, in the order of the file's shapes."""
        path = self._files[item]
        content = _read(path)
        image, size = _image_of(path, content)
        instances: dict[str, dict[str, list[RLE]]] = {}
        spoiled, faults = set(), []
        for number, shape in enumerate(content["shapes"]):
            if _name_fault(shape):
                continue
            name = _label(shape)
            parts = instances.setdefault(name, {})
            try:
                mask = shape_to_rle(shape, size)
            except ValueError as error:
                spoiled.add(name)
                faults.append(BadRow(path, f"shape {number}", str(error)))
                continue
            parts.setdefault(_instance_of(shape, number), []).append(mask)
        classes = tuple(
            AnnotatedClass(name, tuple(map(union_of, parts.values())), askable=name not in spoiled)
            for name, parts in instances.items()
        )
        label = f"{self.name}-{self.split}-{path.relative_to(self.folder).with_suffix('')}"
        return AnnotatedImage(image, size, label, classes, tuple(faults))


def shape_to_rle(shape: Mapping[str, Any], size: tuple[int, int]) -> RLE:
    """The mask of a LabelMe shape.

    Args:
        shape: an entry of ``shapes``: ``points`` [[x, y], ...] in pixels, ``shape_type``.
        size: (height, width) of the image.

    Raises:
        ValueError: the shape has no area, lies outside the image or is malformed.
    """
    kind = shape.get("shape_type") or "polygon"
    try:
        points = np.asarray(shape["points"], dtype=np.float64).reshape(-1, 2)
        if kind == "polygon" and len(points) >= 3:
            mask = segmentation_to_rle([points.ravel().tolist()], size)
        elif kind == "rectangle" and len(points) >= 2:
            mask = segmentation_to_rle([_corners(points)], size)
        elif kind == "circle" and len(points) == 2:
            mask = encode_mask(_fill_circle(points, size))
        elif kind == "mask" and len(points) == 2:
            mask = encode_mask(_paste_mask(points, shape["mask"], size))
        else:
            raise ValueError(
                f"A {kind} of {len(points)} points has no area; draw a polygon, rectangle, circle "
                "or mask."
            )
    except (KeyError, TypeError, OSError) as error:
        raise ValueError(f"The {kind} is damaged ({error}).") from None
    if not areas_of([mask])[0]:
        raise ValueError(f"The {kind} covers no pixel of the image.")
    return mask


def _read(path: Path) -> dict[str, Any]:
    """A LabelMe file.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"The file can't be read as JSON ({error}).") from None
    shapes = content.get("shapes") if isinstance(content, Mapping) else None
    if not isinstance(shapes, list) or not isinstance(content.get("imagePath"), str):
        raise ValueError("It is no LabelMe file: shapes or imagePath is missing.")
    return dict(content)


def _label(shape: Mapping[str, Any]) -> str:
    return " ".join(str(shape["label"]).replace("_", " ").split())


def _instance_of(shape: Mapping[str, Any], number: int) -> str:
    """What the shapes of one instance share: their group, or nothing where there is none."""
    group = shape.get("group_id")
    return f"shape {number}" if group is None else f"group {group}"


def _name_fault(shape: Any) -> str:
    """Why a shape's label can't be asked for; "" where it can."""
    label = shape.get("label") if isinstance(shape, Mapping) else None
    if not isinstance(label, str) or not label.strip(" _."):
        return "It has no label."
    if SEG_MARK in label:
        return f"Its label {label!r} can't stand in a sentence."
    if label.startswith("_") and label.endswith("_"):
        return f"Its label {label!r} is LabelMe's mark for what is not to be used."
    return ""


def _image_of(
    path: Path, content: Mapping[str, Any]
) -> tuple[Path | NDArray[np.uint8], tuple[int, int]]:
    """The image's file and its (height, width); its pixels where they are only in the JSON.

    Raises:
        ValueError: neither can be read.
    """
    photo = path.parent / content["imagePath"].replace("\\", "/")
    try:
        if photo.is_file() or not content.get("imageData"):
            return photo, image_size(photo)
        with Image.open(io.BytesIO(base64.b64decode(content["imageData"]))) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} has no image that can be read: {error}") from None
    return pixels, (pixels.shape[0], pixels.shape[1])


def _corners(points: NDArray[np.float64]) -> list[float]:
    """A rectangle as a polygon, of two opposite corners or of all four."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return [left, top, right, top, right, bottom, left, bottom]


def _fill_circle(points: NDArray[np.float64], size: tuple[int, int]) -> BoolMask:
    """The pixels whose centre lies in a circle given by its centre and a point on it."""
    (x, y), edge = points
    rows, columns = (np.arange(side) + 0.5 for side in size)
    radius = np.hypot(*(edge - points[0]))
    inside: BoolMask = np.hypot(columns[None] - x, rows[:, None] - y) <= radius
    return inside


def _paste_mask(points: NDArray[np.float64], data: str, size: tuple[int, int]) -> BoolMask:
    """A painted mask: a PNG in base64 that fills the box between two pixels, both included."""
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        painted = np.asarray(image) > 0
    (left, top), (right, bottom) = np.rint(points).astype(int)
    if painted.shape != (bottom - top + 1, right - left + 1) or min(left, top) < 0:
        raise ValueError(f"The painted mask is {painted.shape}, not the size of its box.")
    mask = np.zeros(size, dtype=np.bool_)
    height, width = mask[top : bottom + 1, left : right + 1].shape
    mask[top : bottom + 1, left : right + 1] = painted[:height, :width]
    return mask
