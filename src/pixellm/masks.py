"""Masks as pixels, run lengths and polygons; boxes; overlap; the geometry of the letterbox.

NumPy and pycocotools only. This module knows nothing of models, tensors, files or colours.

Frames: a mask is (H, W) bool, sizes are ``(height, width)``. Points are ``(x, y)`` in continuous
pixel coordinates: pixel ``i`` covers ``[i, i + 1)``, its centre lies at ``i + 0.5``. Boxes are
``(x, y, width, height)`` with the origin in the top left corner.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pixellm.types import RLE, BoolMask

Size = tuple[int, int]
"""(height, width) in pixels."""

# Five bits a character, "0".."O" ends a number, "P".."o" says that it goes on.
_COMPRESSED_COUNTS = re.compile(r"(?:[P-o]{0,6}[0-O])+")
_FARTHEST_COORDINATE = 1e6
_DEEPEST_POLYGON = 8
_PIXELS_AT_ONCE = 1 << 20


def encode_mask(mask: BoolMask) -> RLE:
    """Compress an (H, W) bool mask, both sides at least 1, to COCO run lengths.

    Raises:
        ValueError: the array is not a two-dimensional bool mask, or is empty.
    """
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise ValueError(
            f"A mask is a non-empty (H, W) bool array, but this one is {mask.shape} {mask.dtype}; "
            "threshold it first."
        )
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return _to_text(encoded)


def decode_mask(rle: RLE | Mapping[str, Any]) -> BoolMask:
    """Expand COCO run lengths, compressed (text or bytes) or a list of numbers, to (H, W) bool.

    Raises:
        ValueError: a key is missing, or the run lengths are malformed or don't fill the image.
    """
    (height, width), runs = _checked_runs(rle)
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height)
    return np.ascontiguousarray(columns.T)


def segmentation_to_rle(segmentation: Sequence[Any] | Mapping[str, Any], size: Size) -> RLE:
    """Bring any COCO ``segmentation`` into the one form used here.

    Args:
        segmentation: a list of polygons, as flat as [x, y, ...] or as nested as
            [[[[x, y], ...]]]; run lengths, compressed or not, or a list of run lengths, as
            refCLEF has it; of a list, the union counts.
        size: (height, width) of the image.

    Returns:
        Compressed run lengths of exactly ``size``.

    Raises:
        ValueError: malformed, or run lengths of another size.
    """
    if isinstance(segmentation, Mapping):
        return _run_lengths_to_rle([segmentation], size)
    if isinstance(segmentation, str) or not isinstance(segmentation, Sequence):
        raise ValueError(
            "A mask is a list of polygons, run lengths, or a list of run lengths, not "
            f"{type(segmentation).__name__}."
        )
    forms = {isinstance(part, Mapping) for part in segmentation}
    if forms == {True, False}:
        raise ValueError("A mask mixes polygons and run lengths; give it in one of these forms.")
    if forms == {True}:
        return _run_lengths_to_rle(segmentation, size)
    return _polygons_to_rle(list_polygons(segmentation), size)


def list_polygons(shape: Sequence[Any], depth: int = _DEEPEST_POLYGON) -> list[list[Any]]:
    """The polygons of a COCO ``segmentation``, each flat: [x0, y0, x1, y1, ...].

    They may lie at any depth, and their points may be lists of their own. ValueError for what is no
    such list, or nested too deep.
    """
    if not depth:
        raise ValueError("A mask's polygons are nested too deep.")
    parts = [part.tolist() if isinstance(part, np.ndarray) else part for part in shape]
    nested = sum(isinstance(part, list | tuple) for part in parts)
    if not nested:
        return [parts] if parts else []
    if nested < len(parts):
        raise ValueError("A polygon is a list of numbers [x0, y0, x1, y1, ...].")
    if len(parts) > 2 and all(len(part) == 2 for part in parts):
        values = [value for point in parts for value in point]
        if not any(isinstance(value, list | tuple) for value in values):
            return [values]  # points [x, y] of one polygon
    return [polygon for part in parts for polygon in list_polygons(part, depth - 1)]


def read_points(values: Any) -> NDArray[np.float64]:
    """The (P, 2) points of a list of pairs [x, y].

    Raises:
        ValueError: it is no such list, or a point lies far outside any image.
    """
    try:
        points = np.asarray(values, dtype=np.float64)
    except (OverflowError, TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError("A shape has no list of points [x, y].")
    if any(map(_has_truth_value, values)) or not (np.abs(points) < _FARTHEST_COORDINATE).all():
        raise ValueError("A shape has points far outside any image, or no numbers.")
    return points


def corners_of_box(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (4, 2) corners, in turn, of the upright rectangle around (P, 2) points."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def mask_to_box(mask: BoolMask) -> tuple[int, int, int, int]:
    """The tight box ``(x, y, width, height)`` around a mask; all zeros for an empty mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return (0, 0, 0, 0)
    x, y = int(columns[0]), int(rows[0])
    return (x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1)


def mask_iou(first: BoolMask, second: BoolMask) -> float:
    """Intersection over union of two (H, W) masks of one size; 1 of two empty ones."""
    return float(pairwise_iou(first[None], second[None])[0, 0])


def pairwise_iou(predictions: BoolMask, truths: BoolMask) -> NDArray[np.float64]:
    """(P, G) intersection over union of (P, H, W) with (G, H, W) masks; 1 of two empty ones.

    Raises:
        ValueError: the masks differ in size.
    """
    if predictions.shape[1:] != truths.shape[1:]:
        raise ValueError(
            f"Masks of {predictions.shape[1:]} and {truths.shape[1:]} can't be compared; "
            "bring both to the size of the image."
        )
    num_pixels = math.prod(truths.shape[1:])  # -1 would be ambiguous without any masks
    flat_p = predictions.reshape(len(predictions), num_pixels)
    flat_g = truths.reshape(len(truths), num_pixels)
    intersection = np.zeros((len(flat_p), len(flat_g)))
    for start in range(0, num_pixels, _PIXELS_AT_ONCE):  # float32 counts exactly to 2**24
        part = slice(start, start + _PIXELS_AT_ONCE)
        intersection += flat_p[:, part].astype(np.float32) @ flat_g[:, part].astype(np.float32).T
    union = flat_p.sum(axis=1)[:, None] + flat_g.sum(axis=1)[None] - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def label_map_to_rles(labels: NDArray[Any]) -> dict[int, RLE]:
    """One mask per number of a label map, (H, W) of an integer type, in ascending order.

    Together the masks cover every pixel once.
    """
    size = (labels.shape[0], labels.shape[1])
    flat = labels.ravel(order="F")  # run lengths go down the columns
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], flat.size)
    numbers = flat[starts]
    return {
        int(number): _runs_to_rle(starts[numbers == number], ends[numbers == number], size)
        for number in np.unique(numbers)
    }


def union_of(masks: Sequence[RLE]) -> RLE:
    """The pixels of any of the masks, which have one size; at least one mask."""
    return _to_text(coco_mask.merge([_as_bytes(mask) for mask in masks]))


def areas_of(masks: Sequence[RLE]) -> list[int]:
    """Pixels of each mask."""
    return [int(area) for area in coco_mask.area([_as_bytes(mask) for mask in masks])]


def boxes_of(masks: Sequence[RLE]) -> list[tuple[float, float, float, float]]:
    """The tight box ``(x, y, width, height)`` around each mask; all zeros for an empty one."""
    boxes = coco_mask.toBbox([_as_bytes(mask) for mask in masks]).reshape(-1, 4).tolist()
    return [(x, y, width, height) for x, y, width, height in boxes]


def resize_mask(mask: BoolMask, size: Size) -> BoolMask:
    """Resize an (H, W) bool mask to (height, width) by the nearest pixel centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns[None]]


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How an image lies in a square canvas: resized whole, in the top left corner.

    Padding fills the right and the bottom (the release's layout; Ren et al., CVPR 2024).

    Attributes:
        original: (H, W) of the image.
        resized: (h, w) that the image takes up in the canvas.
        canvas: (S, S).
    """

    original: Size
    resized: Size
    canvas: Size

    @classmethod
    def fit(cls, original: Size, canvas_side: int) -> Letterbox:
        """Scale an image's long side to the side of the canvas; ValueError for sides below 1."""
        if min(*original, canvas_side) < 1:
            raise ValueError(f"An image of {original} can't lie in a canvas of {canvas_side}.")
        scale = canvas_side / max(original)
        height, width = (max(1, int(side * scale + 0.5)) for side in original)
        return cls(original, (height, width), (canvas_side, canvas_side))


def _to_text(rle: Mapping[str, Any]) -> RLE:
    height, width = rle["size"]
    return {"size": [int(height), int(width)], "counts": rle["counts"].decode("ascii")}


def _checked_runs(rle: RLE | Mapping[str, Any]) -> tuple[Size, NDArray[np.int64]]:
    """Size and run lengths, background first, column by column; they fill the image exactly.

    pycocotools reads past the end of damaged counts and leaves unfilled pixels uninitialised,
    so nothing unchecked reaches it.
    """
    try:
        (height, width), counts = rle["size"], rle["counts"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            "Run lengths need 'size' [height, width] and 'counts', as in COCO annotations."
        ) from None
    if not all(isinstance(side, int | np.integer) and side > 0 for side in (height, width)):
        raise ValueError(f"The size of a mask is two positive whole numbers, not {rle['size']}.")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", errors="replace")
    runs = _uncompress(counts) if isinstance(counts, str) else np.asarray(counts)
    whole = runs.ndim == 1 and runs.size > 0 and np.issubdtype(runs.dtype, np.integer)
    if not whole or runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(f"The run lengths of a mask don't fill its {height} x {width} pixels.")
    return (int(height), int(width)), runs.astype(np.int64)


def _uncompress(counts: str) -> NDArray[np.int64]:
    """COCO's compressed counts as run lengths.

    Numbers are little-endian groups of five bits, the last group signed; from the fourth on,
    each is the difference to the number two places before.
    """
    if not _COMPRESSED_COUNTS.fullmatch(counts):
        raise ValueError("The compressed run lengths of a mask are damaged; export it again.")
    groups = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(groups < 32)
    starts = np.concatenate(([0], ends[:-1] + 1))
    place = 5 * (np.arange(len(groups)) - np.repeat(starts, ends - starts + 1))
    runs = np.add.reduceat((groups & 31) << place, starts)
    runs -= np.where(groups[ends] & 16, np.int64(32) << place[ends], 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _run_lengths_to_rle(parts: Sequence[Mapping[str, Any]], size: Size) -> RLE:
    """The union of masks of one image."""
    checked = []
    for part in parts:
        own_size, runs = _checked_runs(part)
        if own_size != tuple(size):
            raise ValueError(
                f"The mask is {own_size} but its image is {tuple(size)} (height, width); "
                "fix the annotation."
            )
        checked.append({"size": list(own_size), "counts": runs.tolist()})
    encoded = coco_mask.frPyObjects(checked, *size)
    return _to_text(encoded[0] if len(encoded) == 1 else coco_mask.merge(encoded))


def _polygons_to_rle(polygons: Sequence[Sequence[float]], size: Size) -> RLE:
    height, width = size
    if min(size) < 1:
        raise ValueError(f"The size of a mask is two positive whole numbers, not {list(size)}.")
    usable = []
    for polygon in polygons:
        points = _checked_points(polygon)
        if points.size >= 6:  # pycocotools takes four numbers for a box
            usable.append(points.tolist())
    if not usable:
        return encode_mask(np.zeros(size, dtype=np.bool_))
    return _to_text(coco_mask.merge(coco_mask.frPyObjects(usable, height, width)))


def _checked_points(polygon: Sequence[float]) -> NDArray[np.float64]:
    """The coordinates of a polygon, x and y in turn."""
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (OverflowError, TypeError, ValueError):
        points = np.zeros((0, 2))
    if points.ndim != 1 or points.size % 2:
        raise ValueError("A polygon is a flat list [x0, y0, x1, y1, ...] of even length.")
    # Also catches NaN; pycocotools would take memory in proportion to the coordinates.
    if _has_truth_value(polygon) or not (np.abs(points) < _FARTHEST_COORDINATE).all():
        raise ValueError("A polygon has coordinates far outside any image, or not numbers.")
    return points


def _has_truth_value(values: Iterable[Any]) -> bool:
    """Whether true or false is among coordinates, which NumPy takes for 1 and 0."""
    return bool in set(map(type, values))


def _as_bytes(mask: RLE) -> Mapping[str, Any]:
    return {"size": mask["size"], "counts": mask["counts"].encode("ascii")}


def _runs_to_rle(starts: NDArray[np.int64], ends: NDArray[np.int64], size: tuple[int, int]) -> RLE:
    """The mask whose pixels are the runs [start, end) of the flattened columns."""
    total = size[0] * size[1]
    bounds = np.stack((starts, ends), axis=1).ravel()
    counts = np.diff(bounds, prepend=0, append=total)
    if counts[-1] == 0:
        counts = counts[:-1]
    return segmentation_to_rle({"size": list(size), "counts": counts}, size)
