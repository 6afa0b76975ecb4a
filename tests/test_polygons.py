"""Outlines of masks: exact where asked, few corners elsewhere, holes and parts kept."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pixellm.masks import decode_mask, mask_iou, segmentation_to_rle
from pixellm.polygons import Polygon, border_polygons, fill_polygons, pixel_polygons
from pixellm.types import BoolMask

MASKS = arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def by_coco(polygons: list[Polygon], size: tuple[int, int]) -> BoolMask:
    return decode_mask(segmentation_to_rle([p.ravel().tolist() for p in polygons], size))


def by_opencv(polygons: list[Polygon], size: tuple[int, int]) -> BoolMask:
    canvas = np.zeros(size, dtype=np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [polygon.astype(np.int32)], 1)
    return canvas.astype(np.bool_)


def disk(size: int, radius: float, hole: float = 0.0) -> BoolMask:
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    distance = np.hypot(rows, columns)
    return (distance <= radius) & (distance >= hole)


@given(MASKS)
def test_every_corner_of_the_border_gives_the_mask_back(mask: BoolMask) -> None:
    assert np.array_equal(by_coco(border_polygons(mask, 1), mask.shape), mask)


@given(MASKS)
def test_a_polygon_is_a_part(mask: BoolMask) -> None:
    num_parts, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    assert len(border_polygons(mask)) == len(pixel_polygons(mask)) == num_parts - 1


@given(MASKS)
def test_polygons_on_pixels_lose_nothing(mask: BoolMask) -> None:
    polygons = pixel_polygons(mask)
    assert all(len(polygon) >= 3 for polygon in polygons)
    assert not (mask & ~fill_polygons(polygons, mask.shape)).any()
    assert not (mask & ~by_opencv(polygons, mask.shape)).any()


@pytest.mark.parametrize("hole", [0.0, 12.0, 25.0])
def test_holes_are_cut_open_with_few_corners(hole: float) -> None:
    mask = disk(120, 50, hole)
    for outline, fill in [
        (border_polygons, by_coco),
        (pixel_polygons, by_opencv),
        (pixel_polygons, fill_polygons),
    ]:
        polygons, (exact,) = outline(mask), outline(mask, 1)
        assert len(polygons) == 1
        assert len(polygons[0]) < 0.65 * len(exact)
        assert mask_iou(fill(polygons, mask.shape), mask) >= 0.98


def test_the_largest_part_comes_first_and_near_parts_are_joined() -> None:
    mask = np.zeros((60, 90), dtype=np.bool_)
    mask[5:15, 5:15] = mask[20:50, 10:60] = True
    assert [int(polygon[:, 1].min()) for polygon in border_polygons(mask)] == [20, 5]
    (joined,) = pixel_polygons(mask, joined=True)
    assert mask_iou(by_opencv([joined], mask.shape), mask) >= 0.99


def test_a_part_smaller_than_its_seam_is_left_out() -> None:
    mask = np.zeros((60, 90), dtype=np.bool_)
    mask[10:50, 5:40] = mask[30, 88] = True
    (joined,) = pixel_polygons(mask, joined=True)
    filled = by_opencv([joined], mask.shape)
    assert not filled[30, 41:].any()
    assert np.array_equal(filled[:, :41], mask[:, :41])


def test_an_empty_mask_has_no_polygons() -> None:
    assert border_polygons(np.zeros((3, 4), dtype=np.bool_)) == []
    assert pixel_polygons(np.zeros((3, 4), dtype=np.bool_), joined=True) == []
