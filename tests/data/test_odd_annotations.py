"""Values as people's tools write them: used rightly, or refused, never misread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_photos import draw_photo, write_json

from pixellm.data.captions import read_people_words
from pixellm.data.coco import read_captions
from pixellm.data.json_values import (
    flag,
    identity,
    inner_file,
    inner_path,
    is_nothing,
    size_fault,
    whole_number,
)
from pixellm.data.registry import open_reader
from pixellm.labelling.pseudo_labels import read_proposals
from pixellm.masks import segmentation_to_rle
from pixellm.types import Request, Turn

SIZE = (48, 64)
BOX = [4, 4, 20, 4, 20, 12, 4, 12]
HALF = "half \ud83d emoji"


def test_numbers_ids_flags_sizes_and_paths() -> None:
    for number in (3, 3.0, "3", " 3.0"):
        assert whole_number(number) == 3
    assert whole_number("-3") == -3
    for odd in (True, 3.5, "3a", None, float("nan"), float("inf"), 1e30, []):
        assert whole_number(odd) is None
    assert [identity(v) for v in ("a7", "7", 7.0)] == ["a7", 7, 7]
    assert [identity(v) for v in (None, True, " ")] == [None] * 3
    assert [flag(v) for v in (0, "0", "False", None)] == [False] * 4
    assert [flag(v) for v in (1, 1.0, "true")] == [True] * 3
    assert [flag(v) for v in ("maybe", [])] == [None] * 2
    assert size_fault("48", 64.0) == ""
    for size in ((0, 5), (-1, 5), (None, 5), (1e30, 5), (10**6, 10**6), ("tall", 5)):
        assert "height and width" in size_fault(*size)
    assert str(inner_path("images\\a.jpg")) == "images/a.jpg"
    for name in ("..\\a.jpg", "/a.jpg", "C:\\a.jpg", "", "a\0.jpg"):
        with pytest.raises(ValueError, match="leads out"):
            inner_path(name)
    assert str(inner_path("./images/../a.jpg")) == "a.jpg"
    assert all(map(is_nothing, ("None", "null", "NaN", "Background"))) and not is_nothing("nun")
    root, beside = Path("/data/set"), Path("/data/set/labels")
    for name in ("a.jpg", "images/../a.jpg", "/data/set/a.jpg", ".\\a.jpg"):
        assert inner_file(root, name) == root / "a.jpg"
    assert inner_file(root, "../a.jpg", beside) == root / "a.jpg"
    for name in ("../a.jpg", "/a.jpg", "/data/set", "/data/set2/a.jpg", "C:\\a.jpg", "", "a\0.jpg"):
        with pytest.raises(ValueError, match=r"leads out of .*set"):
            inner_file(root, name)


@pytest.mark.parametrize(
    "shape",
    [
        BOX,
        [BOX],
        [[BOX]],
        [[4, 4], [20, 4], [20, 12], [4, 12]],
        [[[4, 4], [20, 4], [20, 12], [4, 12]]],
        [[[[4, 4], [20, 4], [20, 12], [4, 12]]]],
        [BOX, [1, 1]],
    ],
)
def test_polygons_are_read_at_any_depth(shape: Any) -> None:
    assert segmentation_to_rle(shape, SIZE) == segmentation_to_rle([BOX], SIZE)


@pytest.mark.parametrize(
    "shape", [[BOX, 5], [[4, None, 6, 6, 1, 2]], [[1e30] * 6], [[10**400] * 6], [[["a"] * 6]]]
)
def test_what_is_no_polygon_is_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match="polygon"):
        segmentation_to_rle(shape, SIZE)
    with pytest.raises(ValueError, match="positive whole numbers"):
        segmentation_to_rle([BOX], (-1, 5))


def test_half_a_character_reaches_no_tokenizer() -> None:
    for question, answer in ((HALF, "x"), ("x", HALF)):
        with pytest.raises(ValueError, match="half a character"):
            Turn(question, answer)
    image = np.zeros((4, 4, 3), np.uint8)
    for request in ((HALF, ()), ("x", (("y", HALF),))):
        with pytest.raises(ValueError, match="half a character"):
            Request(image, *request)
    Turn("whole \U0001f600", "é")


def labelme(root: Path, *shapes: Any, **content: Any) -> Path:
    draw_photo(root / "train/a.jpg", SIZE)
    values = {"imagePath": "a.jpg", "imageHeight": 48, "imageWidth": 64, "shapes": list(shapes)}
    return write_json(root / "train/a.json", values | content)


@pytest.mark.parametrize("name", ["jsonl", "llava"])
def test_dialogues_name_images_of_their_folder_or_of_the_one_that_is_said(
    tmp_path: Path, name: str
) -> None:
    lists, photos = tmp_path / "lists", tmp_path / "photos"
    photo = draw_photo(photos / "deep/a.jpg", SIZE)
    turn = {"question": "What is it?", "answer": "A cup."}
    said = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cup."}]
    rows = [
        {"image": image, **({"turns": [turn]} if name == "jsonl" else {"conversations": said})}
        for image in ("deep/a.jpg", str(photo), "../photos/deep/a.jpg", "/etc/hostname")
    ]
    lists.mkdir()
    key, text = ("file", "\n".join(map(json.dumps, rows)))
    if name == "llava":
        key, text = "conversations", json.dumps(rows)
    (lists / "my.json").write_text(text)
    reader = open_reader(name, lists, "train", **{key: "my.json", "images": str(photos)})
    assert {reader[i][0].image for i in range(3)} == {photo} and len(reader) == 3
    assert "'/etc/hostname' leads out of" in str(*reader.bad_rows)
    (lists / "deep").mkdir()
    inner = draw_photo(lists / "deep/a.jpg", SIZE)
    reader = open_reader(name, lists, "train", **{key: "my.json", "images": "."})
    assert [one[0].image for one in reader] == [inner] and len(reader.bad_rows) == 3


def shape(label: str, kind: str, *points: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": [list(p) for p in points]}


CORNERS = ((4, 4), (20, 4), (20, 12), (4, 12))


def test_an_image_outside_is_not_read_where_a_labelme_file_names_it(tmp_path: Path) -> None:
    outside = draw_photo(tmp_path / "secret.jpg", SIZE)
    for number, name in enumerate((str(outside), "../../secret.jpg", "..\\..\\secret.jpg")):
        root = tmp_path / str(number)
        labelme(root, shape("cup", "polygon", *CORNERS), imagePath=name)
        reasons = [bad.reason for bad in open_reader("labelme", root, "train").check()]
        assert len(reasons) == 1 and "leads out of" in reasons[0]
    beside = tmp_path / "c"
    labelme(beside, shape("cup", "polygon", *CORNERS), imagePath="../photos/a.jpg")
    draw_photo(beside / "photos/a.jpg", SIZE)
    assert not list(open_reader("labelme", beside, "train").check())


def test_captions_that_are_no_text_are_no_captions(tmp_path: Path) -> None:
    captions = ({"image_id": 1, "caption": one} for one in (None, ["a"], " ", HALF, "A man."))
    odd = {"image_id": [], "caption": "A dog."}
    path = write_json(tmp_path / "captions.json", {"annotations": [*captions, odd, None]})
    assert read_captions(path) == {1: ["A man."]}
    assert not read_people_words(path)  # one caption alone decides nothing


def test_boxes_of_windows_find_their_photos(tmp_path: Path) -> None:
    values = {
        "images": [{"id": 1, "file_name": "photos\\a.jpg"}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
    }
    assert list(read_proposals(write_json(tmp_path / "boxes.json", values)).boxes) == [
        "photos/a.jpg"
    ]
