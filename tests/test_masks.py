"""Run lengths, polygons, overlap and the letterbox."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from pixellm.masks import (
    Letterbox,
    decode_mask,
    encode_mask,
    mask_iou,
    mask_to_box,
    pairwise_iou,
    resize_mask,
    segmentation_to_rle,
)

sides = st.integers(1, 24)
masks = st.tuples(sides, sides).flatmap(lambda size: arrays(np.bool_, size))


@given(masks)
def test_run_lengths_keep_every_pixel(mask):
    rle = encode_mask(mask)
    assert rle["size"] == list(mask.shape)
    assert isinstance(rle["counts"], str)
    np.testing.assert_array_equal(decode_mask(rle), mask)


@given(masks)
def test_counts_as_text_bytes_and_numbers_are_one_mask(mask):
    rle = encode_mask(mask)
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(flat[1:-1] != flat[:-2])
    runs = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    for counts in (rle["counts"].encode("ascii"), runs):
        other = {"size": rle["size"], "counts": counts}
        np.testing.assert_array_equal(decode_mask(other), mask)
        assert segmentation_to_rle(other, mask.shape) == rle


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (700, 900)])
@pytest.mark.parametrize("fill", ["empty", "full", "noise", "block"])
def test_decoding_agrees_with_pycocotools(shape, fill):
    mask = np.zeros(shape, dtype=np.bool_)
    if fill == "noise":
        mask = np.random.default_rng(0).random(shape) < 0.5
    elif fill != "empty":
        mask[: shape[0] if fill == "full" else shape[0] // 2 + 1] = True
    rle = encode_mask(mask)
    encoded = {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
    np.testing.assert_array_equal(decode_mask(rle), coco_mask.decode(encoded).astype(bool))


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [5, 7]}, "counts"),
        ({"counts": [35]}, "size"),
        ({"size": [5], "counts": [35]}, "size"),
        ({"size": [0, 7], "counts": [0]}, "positive"),
        ({"size": [5.0, 7], "counts": [35]}, "whole numbers"),
        ({"size": [5, 7], "counts": [34]}, "fill"),
        ({"size": [5, 7], "counts": [36, -1]}, "fill"),
        ({"size": [5, 7], "counts": [17.5, 17.5]}, "fill"),
        ({"size": [5, 7], "counts": []}, "fill"),
        ({"size": [5, 7], "counts": "0"}, "fill"),
        ({"size": [5, 7], "counts": ""}, "damaged"),
        ({"size": [5, 7], "counts": "P"}, "damaged"),
        ({"size": [5, 7], "counts": "not a mask"}, "damaged"),
        ({"size": [5, 7], "counts": "ooooooooooo0"}, "damaged"),
        ({"size": [5, 7], "counts": b"\xff\xfe"}, "damaged"),
    ],
)
def test_damaged_run_lengths_are_refused(rle, message):
    with pytest.raises(ValueError, match=message):
        decode_mask(rle)


def test_a_cut_off_rle_is_refused():
    counts = encode_mask(np.random.default_rng(1).random((40, 40)) < 0.5)["counts"]
    for length in (1, len(counts) // 2, len(counts) - 1):
        with pytest.raises(ValueError, match="run lengths"):
            decode_mask({"size": [40, 40], "counts": counts[:length]})


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2)),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 2), bool),
        np.zeros((0, 3), bool),
    ],
)
def test_only_bool_masks_are_encoded(array):
    with pytest.raises(ValueError, match="bool"):
        encode_mask(array)


def test_polygons_fill_their_union_and_are_cut_at_the_border():
    polygons = [[1, 1, 4, 1, 4, 3, 1, 3], [6, 0, 99, 0, 99, 2, 6, 2]]
    mask = decode_mask(segmentation_to_rle(polygons, (5, 8)))
    expected = np.zeros((5, 8), dtype=np.bool_)
    expected[1:3, 1:4] = True
    expected[0:2, 6:8] = True
    np.testing.assert_array_equal(mask, expected)


def test_polygons_without_area_are_skipped_not_taken_for_boxes():
    for polygons in ([[0, 0, 3, 3], [1, 1], []], []):
        assert not decode_mask(segmentation_to_rle(polygons, (5, 5))).any()


@pytest.mark.parametrize(
    "polygon", [[0, 0, 3, 0, 3], [0, 0, 3, 0, float("nan"), 3], [0] * 5 + [1e9]]
)
def test_malformed_polygons_are_refused(polygon):
    with pytest.raises(ValueError, match="polygon"):
        segmentation_to_rle([polygon], (5, 5))


def test_a_segmentation_of_another_size_is_refused():
    rle = encode_mask(np.ones((4, 6), dtype=np.bool_))
    with pytest.raises(ValueError, match=r"\(4, 6\).*\(6, 4\)"):
        segmentation_to_rle(rle, (6, 4))


@pytest.mark.parametrize("num_parts", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (30, 41)])
def test_a_list_of_run_lengths_is_their_union(num_parts, shape):
    parts = np.random.default_rng(num_parts).random((num_parts, *shape)) < 0.2
    rles = [encode_mask(part) for part in parts]
    assert segmentation_to_rle(rles, shape) == encode_mask(parts.any(axis=0))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([{"size": [4, 6], "counts": [24]}, [0, 0, 3, 0, 3, 3]], "mixes polygons and run lengths"),
        ([{"size": [4, 6], "counts": [24]}, {"size": [6, 4], "counts": [24]}], "but its image"),
        ([{"size": [4, 6], "counts": [24]}, {"size": [4, 6]}], "counts"),
        ([{"size": [4, 6], "counts": "!"}], "damaged"),
        (["polygon"], "flat list"),
        ([None], "flat list"),
        ([[1, 2, "three", 4]], "flat list"),
        (17, "not int"),
        ("polygon", "not str"),
    ],
)
def test_a_mask_of_no_known_form_is_refused_in_one_sentence(segmentation, message):
    with pytest.raises(ValueError, match=message) as caught:
        segmentation_to_rle(segmentation, (4, 6))
    assert str(caught.value).count("\n") == 0


@given(masks)
def test_the_box_is_tight(mask):
    x, y, width, height = mask_to_box(mask)
    inside = mask[y : y + height, x : x + width]
    assert inside.sum() == mask.sum()
    if mask.any():
        assert inside[0].any() and inside[-1].any()
        assert inside[:, 0].any() and inside[:, -1].any()
    else:
        assert (x, y, width, height) == (0, 0, 0, 0)


def test_iou_by_hand():
    first, second = np.zeros((2, 4, 4), dtype=np.bool_)
    first[:2], second[1:3] = True, True
    empty = np.zeros((4, 4), dtype=np.bool_)
    assert mask_iou(first, second) == pytest.approx(4 / 12)
    assert mask_iou(first, empty) == 0
    assert mask_iou(empty, empty) == 1
    table = pairwise_iou(np.stack([first, second, empty]), np.stack([second, empty]))
    np.testing.assert_allclose(table, [[4 / 12, 0], [1, 0], [0, 1]])


def test_pairwise_iou_without_masks_and_of_large_images():
    none = np.zeros((0, 3, 3), dtype=np.bool_)
    assert pairwise_iou(none, np.ones((2, 3, 3), dtype=np.bool_)).shape == (0, 2)
    large = np.ones((1, 4100, 4100), dtype=np.bool_)  # more pixels than float32 counts
    other = large.copy()
    other[0, 0, 0] = False
    assert pairwise_iou(large, other)[0, 0] == (4100 * 4100 - 1) / (4100 * 4100)


def test_masks_of_two_sizes_have_no_iou():
    with pytest.raises(ValueError, match="size"):
        mask_iou(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


def test_resizing_takes_the_nearest_centre():
    mask = np.array([[True, False]])
    np.testing.assert_array_equal(resize_mask(mask, (2, 4)), [[1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(resize_mask(np.eye(4, dtype=bool), (2, 2)), np.eye(2))


@pytest.mark.parametrize(
    ("original", "resized"),
    [
        ((480, 640), (336, 448)),
        ((500, 300), (448, 269)),
        ((448, 448), (448, 448)),
        ((1, 1), (448, 448)),
        ((1, 4000), (1, 448)),
        ((4000, 1), (448, 1)),
    ],
)
def test_letterbox_fits_the_long_side(original, resized):
    assert Letterbox.fit(original, 448) == Letterbox(original, resized, (448, 448))


@pytest.mark.parametrize(("original", "side"), [((0, 5), 448), ((5, 5), 0)])
def test_letterbox_needs_pixels(original, side):
    with pytest.raises(ValueError, match="canvas"):
        Letterbox.fit(original, side)


@given(original=st.tuples(st.integers(1, 5000), st.integers(1, 5000)), side=st.integers(1, 1024))
def test_the_long_side_fills_the_canvas(original, side):
    box = Letterbox.fit(original, side)
    assert max(box.resized) == side and min(box.resized) >= 1
    assert box.original == original and box.canvas == (side, side)
