"""LabelMe folders: shapes of every kind as masks, and what people's tools leave in the files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_photos import draw_photo, fill_polygon, rectangle, write_json
from PIL import Image

from pixellm.data.dataset import UnusableDataError
from pixellm.data.labelme import LabelMe
from pixellm.masks import decode_mask

SIZE = (48, 64)
CUP, SPOON = rectangle(3, 4, 13, 20), rectangle(20, 1, 25, 29)


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shape(label: str, points: Any, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    """A shape of pairs of numbers, or of numbers in a row."""
    pairs = [points[i : i + 2] for i in range(0, len(points), 2)]
    given = pairs if isinstance(points[0], int | float) else [list(p) for p in points]
    return {"label": label, "points": given, "shape_type": kind, "group_id": None, **more}


def labelme(root: Path, *shapes: Any, name: str = "a", photo: bool = True, **content: Any) -> Path:
    if photo:
        draw_photo(root / f"train/{name}.jpg", SIZE)
    values = {"imagePath": f"{name}.jpg", "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    values |= {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imageData": None}
    return write_json(root / f"train/{name}.json", values | content)


def masks_of(root: Path, **options: Any) -> dict[str, list[np.ndarray]]:
    """The masks that the first image is asked for."""
    found: dict[str, list[np.ndarray]] = {}
    for sample in LabelMe(root, **options)[0]:
        for one in sample.turns[0].targets:
            found.setdefault(one.name, []).append(decode_mask(one.mask))
    return found


def test_shapes_of_every_kind_are_masks(tmp_path: Path) -> None:
    painted = np.array([[1, 0, 1], [0, 1, 1]], dtype=bool)
    labelme(
        tmp_path,
        shape("cup", CUP),
        shape("turned", CUP, "rotation"),
        shape("oriented", CUP, "oriented_rectangle"),
        shape("big_spoon", [[25, 29], [20, 1]], "rectangle"),
        shape("ball", [[30, 10], [30, 14]], "circle"),
        shape("stain", [[1, 2], [3, 3]], "mask", mask=png(painted)),
        shape("dog", rectangle(0, 0, 5, 5), group_id=1),
        shape("dog", rectangle(8, 0, 12, 5), group_id=1),
        shape("dog", rectangle(14, 0, 18, 5)),
    )
    found = masks_of(tmp_path)
    for name, corners in {"cup": CUP, "turned": CUP, "oriented": CUP, "big spoon": SPOON}.items():
        assert np.array_equal(found[name][0], fill_polygon(corners, SIZE)), name
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    assert np.array_equal(found["ball"][0], (columns - 30) ** 2 + (rows - 10) ** 2 <= 16)
    stain = np.zeros(SIZE, dtype=bool)
    stain[2:4, 1:4] = painted
    assert np.array_equal(found["stain"][0], stain)
    assert [mask.sum() for mask in found["dog"]] == [45, 20]
    assert not list(LabelMe(tmp_path).check())


@pytest.mark.parametrize(
    ("points", "rows", "columns"),
    [
        (((10, 5), (19, 12)), (5, 13), (10, 20)),
        (((10.4, 5.3), (19.6, 12.7)), (5, 13), (10, 20)),  # moved by hand
        (((19.4, 12.7), (10.4, 5.3)), (5, 13), (10, 20)),  # corners the other way round
        (((58, 44), (63, 47)), (44, 48), (58, 64)),  # cut at the right and the bottom
        (((0, 0), (5, 3)), (0, 4), (0, 6)),  # cut at the left and the top
        (((-4, -2), (5, 5)), (0, 6), (0, 6)),  # not cut
    ],
)
def test_painted_masks_moved_by_hand_keep_their_position(
    tmp_path: Path, points: Any, rows: Any, columns: Any
) -> None:
    labelme(tmp_path, shape("cup", points, "mask", mask=png(np.full((8, 10), 255))))
    expected = np.zeros(SIZE, dtype=bool)
    expected[slice(*rows), slice(*columns)] = True
    assert np.array_equal(masks_of(tmp_path)["cup"][0], expected)


def test_images_inside_the_json_and_windows_paths(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    inside = {"photo": False, "imageData": png(pixels)}
    labelme(tmp_path, shape("cup", CUP), name="a", imagePath="gone.png", **inside)
    labelme(tmp_path, shape("cup", CUP), name="b", imagePath="b.json", **inside)
    photo = draw_photo(tmp_path / "photos/c.jpg", SIZE)
    labelme(tmp_path, shape("cup", CUP), name="c", imagePath="..\\photos\\c.jpg")
    images = [LabelMe(tmp_path).item(item)[0].image for item in range(3)]
    assert np.array_equal(images[0], pixels) and np.array_equal(images[1], pixels)
    assert isinstance(images[2], Path) and images[2].samefile(photo)


def test_what_is_wrong_is_listed_and_its_class_is_not_asked_for(tmp_path: Path) -> None:
    labelme(
        tmp_path,
        shape("cup", CUP),
        shape("dog", SPOON),
        shape("dog", [[1, 1]], "point"),
        shape("", CUP),
        shape("__ignore__", CUP),
        shape("Background", CUP),
        shape("far", rectangle(90, 90, 95, 95)),
        shape("nose", [[3, 3]], "point"),
        shape("wire", [[3, 3], [9, 9]], "linestrip"),
        shape("cat", [[1e30, 1], [2, 2], [3, 1]]),
    )
    (tmp_path / "train/2.json").write_text("{")
    reader = LabelMe(tmp_path)
    assert reader.class_names == ("cup", "dog", "far", "cat"), "points and lines make no class"
    found = {(bad.file.name, bad.row): bad.reason for bad in reader.check()}
    assert found.keys() == {("2.json", "")} | {("a.json", f"shape {n}") for n in range(2, 10)}
    assert "has no area" in found["a.json", "shape 7"]
    assert "far outside" in found["a.json", "shape 9"]
    assert masks_of(tmp_path).keys() == {"cup"}


def test_images_with_too_many_of_everything_are_left_out(tmp_path: Path) -> None:
    labelme(tmp_path, *(shape("pea", rectangle(n, 0, n + 1, 5)) for n in range(21)), name="a")
    labelme(tmp_path, shape("cup", CUP, group_id=0), name="b")
    sizes = [
        len(LabelMe(tmp_path, **o)) for o in ({}, {"max_instances": 21}, {"targets": "regions"})
    ]
    assert sizes == [1, 2, 2]


def test_a_shape_that_repeats_another_is_one_instance_and_named(tmp_path: Path) -> None:
    dog = shape("dog", SPOON, group_id=1)
    labelme(tmp_path, shape("cup", CUP), shape("cup", CUP), shape("cup", SPOON), dog, dog)
    assert [len(masks) for masks in masks_of(tmp_path).values()] == [2, 1]
    told = {bad.row: bad.reason for bad in LabelMe(tmp_path).check()}
    assert told.keys() == {"shape 1", "shape 4"} and "repeats shape 0" in told["shape 1"]


def test_files_made_for_another_size_are_bad_rows(tmp_path: Path) -> None:
    labelme(tmp_path, shape("cup", CUP), imageHeight=96)
    with pytest.raises(UnusableDataError) as caught:
        LabelMe(tmp_path)
    (bad,) = caught.value.bad_rows
    assert "image is (48, 64), its annotation says (96, 64)" in bad.reason
    labelme(tmp_path, shape("cup", CUP), imageHeight=None)
    assert LabelMe(tmp_path).bad_rows == ()
