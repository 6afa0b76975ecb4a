"""What a drawn scene is: an image, and every object in it with its exact visible mask.

The drawing writes it, the question writer reads it.
Frame: pixels of the image, origin top left, x to the right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixellm.types import RLE, BoolMask


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One sticker in the image.

    Attributes:
        concept: key of its row in the concept table.
        mask: the visible part.
        box: (x, y, width, height) of the visible part, in pixels.
        area: visible pixels.
        center: (x, y) centroid of the visible part, in pixels.
    """

    concept: str
    mask: RLE
    box: tuple[int, int, int, int]
    area: int
    center: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """An image, (H, W, 3) uint8 RGB, and its objects, back to front.

    Attributes:
        image: the pixels.
        objects: what is in it.
        uncertain: keys of concepts of which it may show more than its objects tell, such as a
            crowd of people; nothing for a drawn one.
        crowds: concept and visible mask of regions whose objects are not told apart.
    """

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    uncertain: frozenset[str] = frozenset()
    crowds: tuple[tuple[str, RLE], ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]


def measure_object(concept: str, mask: BoolMask, encoded: RLE) -> SceneObject:
    """An object from its (H, W) mask, of a pixel at least, and the same encoded."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    inside = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    area = int(np.count_nonzero(inside))
    height, width = inside.shape
    across = float(inside.sum(axis=0) @ np.arange(width)) / area
    down = float(inside.sum(axis=1) @ np.arange(height)) / area
    box = (left, top, width, height)
    return SceneObject(concept, encoded, box, area, (left + across, top + down))
