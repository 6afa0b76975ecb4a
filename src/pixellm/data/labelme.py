"""Your own photos as LabelMe leaves them: a JSON file beside each image.

Shapes of one label and one ``group_id`` are one instance. Polygons, rectangles, turned ones too,
circles and painted masks have an area; points and lines have none, are reported, and make no class.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixellm.data.annotated import AnnotatedClass, AnnotatedImage
from pixellm.data.classes import ClassDataset
from pixellm.data.dataset import BadRow, UnusableDataError, path_of_split
from pixellm.data.json_stream import scan_json
from pixellm.data.json_values import inner_file, is_nothing, text_fault, whole_number
from pixellm.files import parse_json
from pixellm.image_files import image_size, load_embedded, load_stored, size_mismatch
from pixellm.masks import (
    areas_of,
    corners_of_box,
    encode_mask,
    read_points,
    segmentation_to_rle,
    union_of,
)
from pixellm.types import RLE, BoolMask

_WITHOUT_AREA = ("point", "points", "line", "linestrip")
_OF_LABELME = frozenset({"shapes", "imagePath", "imageData", "imageHeight"})
_FIRST_ENTRIES = 9
_FILES = "[!.]*.json"
"""Hidden files are no annotations: the mark that an export leaves in its folder is one."""


class LabelMe(ClassDataset):
    """A folder of LabelMe files, asked for their labels. An item is a file.

    Args:
        root, split, seed: see :class:`~pixellm.data.dataset.Dataset`.
        folder: the folder of files, below ``root``, with ``{split}`` for the split; its folders
            are searched too.
        options: see :class:`~pixellm.data.classes.ClassDataset`; here ``targets`` is
            ``instances`` unless told otherwise.
    """

    name = "labelme"
    title = "Your own photos: a folder of LabelMe files"
    splits = ("train", "val", "test")
    is_public = False
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
        for path in sorted(self.folder.rglob(_FILES)):
            try:
                content = _read(path)
                _check_size(path, content, self.root)
            except ValueError as error:
                bad_rows.append(BadRow(path, "", str(error)))
                continue
            named, faults = _named_shapes(path, content)
            bad_rows += faults
            # Points and lines make no class.
            shown = {(s.name, s.instance) for s in named if s.kind not in _WITHOUT_AREA}
            names |= dict.fromkeys(s.name for s in named if s.kind not in _WITHOUT_AREA)
            counts = Counter(name for name, _ in shown).values()
            if counts and (self.targets == "regions" or min(counts) <= self.max_instances):
                self._files.append(path)
        self.bad_rows = tuple(bad_rows)
        self._names = tuple(names)
        self.num_items = len(self._files)
        if not self.num_items:
            raise UnusableDataError(
                f"{self.folder} holds no LabelMe file with a shape that can be used.", bad_rows
            )

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """A LabelMe file in the folder of the default name, to tell it from others."""
        folder = root / split
        found = (path for path in folder.rglob(_FILES) if _may_be_labelme(path))
        return (next(found, folder / "*.json"),)

    @property
    def class_names(self) -> tuple[str, ...]:
        """All labels, in the order of the files."""
        return self._names

    def where(self, item: int) -> tuple[Path, str]:
        """The file."""
        return self._files[item], ""

    def row(self, item: int) -> AnnotatedImage:
        """An image with its labels, in the order of the file's shapes."""
        path = self._files[item]
        content = _read(path)
        image, size = _image_of(path, content, self.root)
        instances: dict[str, dict[str, list[RLE]]] = {}
        invalid, faults = set(), []
        for shape in _named_shapes(path, content)[0]:
            # A point of a class says that it is there; one of no class says nothing.
            parts = instances.setdefault(shape.name, {}) if shape.name in self._names else {}
            try:
                mask = shape_to_rle(shape.values, size)
            except ValueError as error:
                invalid.add(shape.name)
                faults.append(BadRow(path, shape.row, str(error)))
                continue
            parts.setdefault(shape.instance, []).append(mask)
        classes = tuple(
            AnnotatedClass(name, tuple(map(union_of, parts.values())), askable=name not in invalid)
            for name, parts in instances.items()
        )
        label = f"{self.name}-{self.split}-{path.relative_to(self.folder).with_suffix('')}"
        return AnnotatedImage(image, size, label, classes, tuple(faults))


def shape_to_rle(shape: Mapping[str, Any], size: tuple[int, int]) -> RLE:
    """The mask of an entry of LabelMe's ``shapes``, in an image of (height, width).

    Its ``points`` are [[x, y], ...] in pixels. ValueError where it has no area, lies outside the
    image or is malformed.
    """
    kind = shape.get("shape_type") or "polygon"
    try:
        points = read_points(shape["points"])
        if kind in ("polygon", "rotation", "oriented_rectangle") and len(points) >= 3:
            mask = segmentation_to_rle([points.ravel().tolist()], size)
        elif kind == "rectangle" and len(points) >= 2:
            mask = segmentation_to_rle([corners_of_box(points).ravel().tolist()], size)
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
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"The file can't be read as JSON ({error}).") from None
    shapes = content.get("shapes") if isinstance(content, Mapping) else None
    if not isinstance(shapes, list) or not isinstance(content.get("imagePath"), str):
        raise ValueError("It is no LabelMe file: shapes or imagePath is missing.")
    return dict(content)


def _may_be_labelme(path: Path) -> bool:
    """Whether a JSON file begins as LabelMe's do; one that can't be read may be one."""
    try:
        return any(key in _OF_LABELME for key, _, _ in islice(scan_json(path), _FIRST_ENTRIES))
    except (OSError, ValueError):
        return True


def _check_size(path: Path, content: Mapping[str, Any], root: Path) -> None:
    """Refuse a file whose image has another size now; a missing image is told later."""
    height, width = (whole_number(content.get(key)) for key in ("imageHeight", "imageWidth"))
    if height is None or width is None:
        return
    try:
        _, size = _image_of(path, content, root)
    except ValueError:
        return
    if fault := size_mismatch(size, (height, width)):
        raise ValueError(fault)


class _NamedShape(NamedTuple):
    """A shape whose label can be asked for; those of one instance share their group."""

    row: str
    name: str
    instance: str
    kind: str | None
    values: Mapping[str, Any]


def _named_shapes(path: Path, file: Mapping[str, Any]) -> tuple[list[_NamedShape], list[BadRow]]:
    """The shapes of a file whose labels can be asked for, and why the others' can't.

    One that repeats an earlier one is no second instance.
    """
    named, bad_rows = [], []
    drawn: dict[str, str] = {}
    for number, shape in enumerate(file["shapes"]):
        row = f"shape {number}"
        fault = _label_fault(shape)
        if not fault:
            content = [shape.get(k) for k in ("label", "group_id", "shape_type", "points", "mask")]
            if (first := drawn.setdefault(repr(content), row)) != row:
                fault = f"It repeats {first}: label, group and points are the same."
        if fault:
            bad_rows.append(BadRow(path, row, fault))
            continue
        name = " ".join(shape["label"].replace("_", " ").split())
        group = shape.get("group_id")
        instance = row if group is None else f"group {group}"
        named.append(_NamedShape(row, name, instance, shape.get("shape_type"), shape))
    return named, bad_rows


def _label_fault(shape: Any) -> str:
    """Why a shape's label can't be asked for; "" where it can."""
    label = shape.get("label") if isinstance(shape, Mapping) else None
    if not label:
        return "It has no label."
    if fault := text_fault(label, "label"):
        return fault
    if (label.startswith("_") and label.endswith("_")) or is_nothing(label):
        return f"Its label {label!r} marks what is not to be used."
    return ""


def _image_of(
    path: Path, content: Mapping[str, Any], root: Path
) -> tuple[Path | NDArray[np.uint8], tuple[int, int]]:
    """The image's file and its (height, width); its pixels where they are only in the JSON."""
    embedded, photo = bool(content.get("imageData")), None
    try:
        photo = inner_file(root, content["imagePath"], path.parent)
    except ValueError as error:
        if not embedded:
            raise ValueError(f"Its imagePath {error}.") from None
    try:
        # Some tools name the JSON itself there and keep the image inside.
        has_file = photo is not None and photo.is_file() and photo.suffix.lower() != ".json"
        if photo is not None and (has_file or not embedded):
            return photo, image_size(photo)
        embedded_bytes = base64.b64decode(content["imageData"])
        pixels = np.asarray(load_embedded(embedded_bytes, "its imageData"))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} has no image that can be read: {error}") from None
    return pixels, (pixels.shape[0], pixels.shape[1])


def _fill_circle(points: NDArray[np.float64], size: tuple[int, int]) -> BoolMask:
    """The pixels whose centre lies in a circle given by its centre and a point on it."""
    (x, y), edge = points
    rows, columns = (np.arange(side) + 0.5 for side in size)
    radius = np.hypot(*(edge - points[0]))
    return np.hypot(columns[None] - x, rows[:, None] - y) <= radius


def _paste_mask(points: NDArray[np.float64], data: str, size: tuple[int, int]) -> BoolMask:
    """A painted mask: a PNG in base64 that fills the box between two pixels, both included.

    One that was moved by hand has corners between pixels, and a box that was cut where it met the
    border of the image: the PNG keeps its size then, and its corner inside.
    """
    painted = np.asarray(load_stored(base64.b64decode(data), "Its painted mask")) > 0
    if painted.ndim != 2:
        raise ValueError(f"The painted mask is {painted.shape}, not one channel.")
    corners = np.sort(points, axis=0)
    left, top = (
        _first_pixel(first, last, painted.shape[1 - axis], size[1 - axis])
        for axis, (first, last) in enumerate(corners.T.tolist())
    )
    mask = np.zeros(size, dtype=np.bool_)
    rows = slice(max(top, 0), max(top + painted.shape[0], 0))
    columns = slice(max(left, 0), max(left + painted.shape[1], 0))
    shown = mask[rows, columns].shape
    cut_top, cut_left = max(-top, 0), max(-left, 0)
    mask[rows, columns] = painted[cut_top : cut_top + shown[0], cut_left : cut_left + shown[1]]
    return mask


def _first_pixel(first: float, last: float, length: int, side: int) -> int:
    """Where ``length`` painted pixels begin along a side of the image, from their box."""
    start, end = round(first), round(last)
    excess = length - (end - start + 1)
    if abs(excess) <= 1:  # corners between pixels
        return start
    if excess > 0 and start <= 0 and end < side - 1:
        return end + 1 - length
    if excess > 0 and end >= side - 1:
        return start
    raise ValueError(f"The painted mask is {length} pixels long, its box {end - start + 1}.")
