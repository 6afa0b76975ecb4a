"""Outlines of masks as closed polygons, one per part, with as few corners as keep the shape.

Programs disagree about where a corner lies. COCO's tools put it on the border between pixels, in
the frame of :mod:`pixellm.masks`; OpenCV and Pillow, and with them YOLO's and LabelMe's readers,
put it on a pixel and fill the outline too. Both are offered. A polygon can't have a hole: holes are
cut open by a seam, a line that is walked in and out again. Pixels that touch at a corner belong
to one part. NumPy and Pillow only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pixellm.masks import Size, decode_mask, mask_iou, mask_to_box, segmentation_to_rle
from pixellm.types import BoolMask

Polygon = NDArray[np.float64]
"""(N, 2) corners (x, y) of a closed outline; the last is joined to the first."""

LEAST_IOU = 0.98
"""How much of a mask its polygons keep, at least, where their kind can hold its shape."""

LEAST_IOU_ON_PIXELS = 0.99
"""The same for corners on pixels: programs differ in which pixels a slanted line covers."""

_TOLERANCES = (1.0, 0.5, 0.0)
"""Pixels that a corner may lie off the line that replaces it; the first that keeps the shape."""

_LONG_BORDER = 0.15
"""Borders of pixels a pixel of the mask: small and thin masks have more, and keep every corner,
since programs differ by a fraction of a pixel in what a slanted line covers."""

_INWARDS = np.array([(0, 0), (-1, 0), (-1, -1), (0, -1)])
"""From the start of a border to the pixel that it bounds, by the border's direction."""

_Draw = Callable[[Sequence[Polygon], Size], BoolMask]


class _Part(NamedTuple):
    """A part of a mask: its pixels, the borders around them, its outline and those of its holes."""

    area: float
    length: int
    outer: Polygon
    holes: tuple[Polygon, ...]


class _Loop(NamedTuple):
    """Where the borders of a closed outline start, and their directions: +x, +y, -x, -y are 0..3.

    Pixels inside lie at the right hand, so outlines of parts run clockwise, those of holes against.
    """

    starts: NDArray[np.int64]
    directions: NDArray[np.int64]


def border_polygons(mask: BoolMask, least_iou: float = LEAST_IOU) -> list[Polygon]:
    """The parts of an (H, W) mask, the largest first, with corners on the borders between pixels.

    That is how COCO's tools read them. ``least_iou`` is that with the mask, as pycocotools fills
    polygons; 1 keeps every corner.
    """

    def draw(polygons: Sequence[Polygon], size: Size) -> BoolMask:
        return decode_mask(segmentation_to_rle([p.ravel().tolist() for p in polygons], size))

    return _fewest_corners(mask, least_iou, draw, _corners_on_borders)


def pixel_polygons(
    mask: BoolMask, least_iou: float = LEAST_IOU_ON_PIXELS, *, joined: bool = False
) -> list[Polygon]:
    """The parts of a mask, with corners on pixels, for programs that fill the outline too.

    Args:
        mask: (H, W) bool.
        least_iou: with the mask, as :func:`fill_polygons` fills polygons; 1 keeps every corner.
        joined: one polygon for all parts, joined by seams. Pixels under a seam count as filled, so
            a part that is smaller than its seam is left out.

    Returns:
        A polygon for each part, the largest first; its corners are columns and rows of pixels, at
        least three, the same ones again where a part is a point or a line.
    """
    polygons = _fewest_corners(mask, least_iou, fill_polygons, _corners_on_pixels, joined)
    return [polygon[np.arange(max(3, len(polygon))) % len(polygon)] for polygon in polygons]


def fill_polygons(polygons: Sequence[Polygon], size: Size) -> BoolMask:
    """The pixels in and under polygons whose corners lie on pixels, as (H, W) bool of ``size``."""
    canvas = Image.new("1", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        points = [(int(x), int(y)) for x, y in polygon]
        draw.line([*points, points[0]], fill=1)
        if len(points) > 2:
            draw.polygon(points, fill=1, outline=1)
    return np.array(canvas)


def _fewest_corners(
    mask: BoolMask,
    least_iou: float,
    draw: _Draw,
    corners: Callable[[_Loop], Polygon],
    joined: bool = False,
) -> list[Polygon]:
    """The polygons of the largest tolerance that keeps the shape, else those of every corner."""
    x, y, width, height = mask_to_box(mask)
    if width == 0:
        return []
    inside = mask[y : y + height, x : x + width]
    parts = _trace_parts(inside, corners)
    polygons: list[Polygon] = []
    is_small = sum(part.length for part in parts) > _LONG_BORDER * inside.sum()
    for tolerance in (0.0,) if is_small else _TOLERANCES:
        simpler = [
            part._replace(
                outer=_simplify(part.outer, tolerance),
                holes=tuple(_simplify(hole, tolerance) for hole in part.holes),
            )
            for part in parts
        ]
        polygons = [_sew([part.outer, *part.holes]) for part in simpler]
        if joined:
            polygons = [_sew(polygons, [part.area for part in simpler])]
        if mask_iou(draw(polygons, (height, width)), inside) >= least_iou:
            break
    corner = np.array([x, y])
    return [polygon + corner for polygon in polygons]


# From pixels to outlines.


def _trace_parts(mask: BoolMask, corners: Callable[[_Loop], Polygon]) -> list[_Part]:
    """The parts of a mask, the largest first, each with its holes."""
    outers: list[tuple[float, Polygon, _Loop]] = []
    holes: list[tuple[float, Polygon, _Loop]] = []
    for loop in _trace_loops(mask):
        border = _corners_on_borders(loop)
        area = _signed_area(border)
        (outers if area > 0 else holes).append((abs(area), border, loop))
    outers.sort(key=lambda one: -one[0])
    owned: list[list[Polygon]] = [[] for _ in outers]
    areas = [area for area, _, _ in outers]
    lengths = [len(loop.starts) for _, _, loop in outers]
    for area, _, loop in holes:
        pixel = loop.starts[0] + _INWARDS[loop.directions[0]] + 0.5
        owner = max(n for n, (_, border, _) in enumerate(outers) if _contains(border, pixel))
        owned[owner].append(corners(loop))
        areas[owner] -= area
        lengths[owner] += len(loop.starts)
    return [
        _Part(area, length, corners(loop), tuple(inner))
        for area, length, (_, _, loop), inner in zip(areas, lengths, outers, owned, strict=True)
    ]


def _trace_loops(mask: BoolMask) -> Iterator[_Loop]:
    """Follow the borders of a mask's pixels until each closed outline is walked once."""
    width = mask.shape[1] + 1
    steps = (1, width, -1, -width)
    around = np.pad(mask, 1)
    outside = (around[:-2, 1:-1], around[1:-1, 2:], around[2:, 1:-1], around[1:-1, :-2])
    rows_columns = [np.nonzero(mask & ~beyond) for beyond in outside]
    left = {
        int(start) * 4 + direction: None
        for direction, (rows, columns) in enumerate(rows_columns)
        for start in (rows - _INWARDS[direction][1]) * width + columns - _INWARDS[direction][0]
    }
    borders = frozenset(left)
    while left:
        first = border = next(iter(left))
        walked = []
        while True:
            walked.append(border)
            del left[border]
            place, direction = border // 4 + steps[border % 4], border % 4
            turns = (place * 4 + (direction + turn) % 4 for turn in (3, 0, 1))
            border = next(one for one in turns if one in borders)
            if border == first:
                break
        places, directions = np.divmod(np.array(walked, dtype=np.int64), 4)
        yield _Loop(np.stack([places % width, places // width], axis=1), directions)


def _corners_on_borders(loop: _Loop) -> Polygon:
    return loop.starts[loop.directions != np.roll(loop.directions, 1)].astype(np.float64)


def _corners_on_pixels(loop: _Loop) -> Polygon:
    """The pixels along an outline, without those that lie straight between others."""
    pixels = loop.starts + _INWARDS[loop.directions]
    pixels = pixels[(pixels != np.roll(pixels, 1, axis=0)).any(axis=1)]
    if not len(pixels):  # a single pixel
        return (loop.starts[:1] + _INWARDS[loop.directions[:1]]).astype(np.float64)
    before, behind = pixels - np.roll(pixels, 1, axis=0), np.roll(pixels, -1, axis=0) - pixels
    return pixels[(before != behind).any(axis=1)].astype(np.float64)


def _signed_area(polygon: Polygon) -> float:
    """Positive for corners that run clockwise as seen, with y downwards."""
    (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
    return float((x * next_y - next_x * y).sum() / 2)


def _contains(polygon: Polygon, point: NDArray[np.float64]) -> bool:
    """Whether a ray from the point to the right meets the outline an odd number of times."""
    (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
    upright = x == next_x
    crossed = upright & ((y > point[1]) != (next_y > point[1])) & (x > point[0])
    return bool(crossed.sum() % 2)


# From outlines to fewer corners.


def _simplify(polygon: Polygon, tolerance: float) -> Polygon:
    """Leave out corners near the line between those kept (Douglas and Peucker, 1973)."""
    if not tolerance or len(polygon) < 5:
        return polygon
    closed = np.concatenate([polygon, polygon[:1]])
    farthest = int(np.abs(polygon - polygon[0]).sum(axis=1).argmax())
    kept = {0, farthest}
    spans = [(0, farthest), (farthest, len(polygon))]
    while spans:
        start, end = spans.pop()
        if end - start < 2:
            continue
        distances = _distances(closed[start + 1 : end], closed[start], closed[end])
        middle = start + 1 + int(distances.argmax())
        if distances[middle - start - 1] > tolerance:
            kept.add(middle)
            spans += [(start, middle), (middle, end)]
    return polygon[sorted(kept)]


def _distances(points: Polygon, start: Polygon, end: Polygon) -> NDArray[np.float64]:
    """How far points lie from the line between two corners."""
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0, 1) if length else np.zeros(len(points))
    distances: NDArray[np.float64] = np.hypot(*(start + share[:, None] * along - points).T)
    return distances


def _sew(polygons: Sequence[Polygon], worths: Sequence[float] | None = None) -> Polygon:
    """Join polygons to the first by seams between their nearest corners, the nearest first.

    Of polygons that are worth so many pixels each, one that adds less than its seam covers is left
    out.
    """
    joined = polygons[0]
    seams = {n: _nearest(joined, polygons[n]) for n in range(1, len(polygons))}
    while seams:
        free = [n for n in seams if worths is None or seams[n][0] <= worths[n]]
        if not free:
            break
        chosen = min(free, key=lambda n: seams[n][0])
        _, here, there = seams.pop(chosen)
        other = polygons[chosen]
        i = int(np.flatnonzero((joined == here).all(axis=1))[0])
        j = int(np.flatnonzero((other == there).all(axis=1))[0])
        joined = np.concatenate([joined[: i + 1], other[j:], other[: j + 1], joined[i:]])
        for n in seams:
            seams[n] = min(seams[n], _nearest(other, polygons[n]), key=lambda seam: seam[0])
    return joined


def _nearest(first: Polygon, second: Polygon) -> tuple[float, Polygon, Polygon]:
    """Pixels between the nearest corners of two polygons, and these corners."""
    apart = np.abs(first[:, None] - second[None]).max(axis=-1)
    i, j = np.unravel_index(apart.argmin(), apart.shape)
    return max(0.0, float(apart[i, j]) - 1), first[i], second[j]
