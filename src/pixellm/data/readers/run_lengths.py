"""Masks as run lengths: label maps taken apart, unions, areas and boxes, without mask pixels.

All classes of a label map are encoded in one pass over its runs, never one bool mask each. This
module knows nothing of files, class names or questions, and trusts the masks that it is given:
:func:`pixellm.masks.segmentation_to_rle` has checked them.

Frames: a label map is (H, W), row 0 at the top; boxes are ``(x, y, width, height)`` in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pixellm.masks import segmentation_to_rle
from pixellm.types import RLE


def label_map_to_rles(labels: NDArray[Any]) -> dict[int, RLE]:
    """One mask per number that a label map holds.

    Args:
        labels: (H, W) of an integer type, not empty.

    Returns:
        Number -> mask of its pixels, in ascending order of the numbers. Together the masks cover
        every pixel once.
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
    merged = coco_mask.merge([_as_bytes(mask) for mask in masks])
    return {"size": list(masks[0]["size"]), "counts": merged["counts"].decode("ascii")}


def areas_of(masks: Sequence[RLE]) -> list[int]:
    """Pixels of each mask."""
    return [int(area) for area in coco_mask.area([_as_bytes(mask) for mask in masks])]


def boxes_of(masks: Sequence[RLE]) -> list[tuple[float, float, float, float]]:
    """The tight box ``(x, y, width, height)`` around each mask; all zeros for an empty one."""
    boxes = coco_mask.toBbox([_as_bytes(mask) for mask in masks]).reshape(-1, 4).tolist()
    return [(x, y, width, height) for x, y, width, height in boxes]


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
