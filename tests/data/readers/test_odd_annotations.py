"""Annotations as people really have them: used rightly, or named with a reason, never misread."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_photos import draw_photo, write_json
from PIL import Image

from pixellm.data.check import check_found, find_sets
from pixellm.data.coco_sets import coco_questions
from pixellm.data.dataset import UnusableDataError
from pixellm.data.json_values import flag, identity, inner_path, size_fault, whole_number
from pixellm.data.registry import open_reader
from pixellm.masks import decode_mask, segmentation_to_rle
from pixellm.types import Request, Turn

SIZE = (48, 64)
BOX = [4, 4, 20, 4, 20, 12, 4, 12]
HALF = "half \ud83d emoji"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3),
        (3.0, 3),
        ("3", 3),
        (" 3.0", 3),
        ("-3", -3),
        (True, None),
        (3.5, None),
        ("3a", None),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
        (1e30, None),
        ([], None),
    ],
)
def test_whole_numbers_come_in_three_forms(value: Any, number: int | None) -> None:
    assert whole_number(value) == number


def test_ids_flags_sizes_and_paths() -> None:
    assert [identity(v) for v in ("a7", "7", 7.0, None, True, " ")] == [
        "a7",
        7,
        7,
        None,
        None,
        None,
    ]
    assert [flag(v) for v in (0, "0", "False", None, 1, 1.0, "true", "maybe", [])] == [
        *(False, False, False, False),
        *(True, True, True),
        *(None, None),
    ]
    assert size_fault("48", 64.0) == ""
    for size in ((0, 5), (-1, 5), (None, 5), (1e30, 5), (10**6, 10**6), ("tall", 5)):
        assert "height and width" in size_fault(*size)
    assert str(inner_path("images\\a.jpg")) == "images/a.jpg"
    for name in ("..\\a.jpg", "/a.jpg", "C:\\a.jpg", "", "a\0.jpg"):
        with pytest.raises(ValueError, match="leads out"):
            inner_path(name)


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


def coco(root: Path, **changes: Any) -> Path:
    image = {"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [BOX], "iscrowd": 0}
    category = {"id": 1, "name": "cup"}
    draw_photo(root / "img/a.jpg", SIZE)
    content = {
        "images": [image | changes.get("image", {})],
        "annotations": [annotation | changes.get("annotation", {})],
        "categories": [category | changes.get("category", {}), *changes.get("more", [])],
    }
    return write_json(root / "x.json", content)


def report(path: Path, **options: Any) -> Any:
    images = {} if path.suffix == ".jsonl" else {"images": str(path.parent / "img")}
    (found,) = find_sets(path, options=images | options)
    return check_found(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"image": {"id": "1"}, "annotation": {"image_id": 1.0}},
        {"annotation": {"category_id": "1"}},
        {"category": {"id": 1.0}},
        {"image": {"height": 48.0, "width": "64"}},
        {"image": {"file_name": ".\\a.jpg"}},
        {"annotation": {"iscrowd": "0"}},
        {"annotation": {"iscrowd": None}},
        {"annotation": {"segmentation": BOX}},
        {"annotation": {"segmentation": [[BOX]]}},
        {"category": {"name": 7}},
    ],
)
def test_coco_files_of_other_tools_are_read(tmp_path: Path, changes: Any) -> None:
    found = report(coco(tmp_path, **changes))
    assert found.bad_rows == ()
    assert (found.counts["questions"], found.counts["targets"]) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "row", "reason"),
    [
        ({"annotation": {"segmentation": None}}, "annotation 0", "a box alone is no mask"),
        ({"annotation": {"segmentation": [None]}}, "annotation 0", "three points"),
        ({"annotation": {"iscrowd": "perhaps"}}, "annotation 0", "neither 0 nor 1"),
        ({"annotation": {"iscrowd": 1}}, "category 'cup'", "targets=regions"),
        ({"annotation": {"category_id": None}}, "annotation 0", "category_id"),
        ({"image": {"file_name": "..\\..\\a.jpg"}}, "image 0", "leads out"),
        ({"image": {"file_name": ["a.jpg"]}}, "image 0", "no text"),
        ({"image": {"height": -48}}, "image 0", "height and width"),
        ({"image": {"height": 1e30}}, "image 0", "height and width"),
        ({"category": {"name": None}}, "category 1", "no text but None"),
        ({"category": {"name": HALF}}, "category 1", "half a character"),
    ],
)
def test_every_bad_row_of_a_coco_file_has_its_reason_where_all_are_bad(
    tmp_path: Path, changes: Any, row: str, reason: str
) -> None:
    found = {bad.row: bad.reason for bad in report(coco(tmp_path, **changes)).bad_rows}
    assert reason in found[row]
    assert "no image with a mask that can be asked for" in found[""]


def test_a_class_with_too_many_targets_everywhere_is_told(tmp_path: Path) -> None:
    assert report(coco(tmp_path), max_instances=1).bad_rows == ()
    path = coco(tmp_path)
    values = json.loads(path.read_text())
    values["annotations"] *= 3
    write_json(path, values)
    (bad, _) = report(path, max_instances=2).bad_rows
    assert bad.row == "category 'cup'" and "3 targets, max_instances is 2" in bad.reason


def test_groups_and_backgrounds_are_never_asked_for_and_never_denied(tmp_path: Path) -> None:
    more = [{"id": 2, "name": "dishes"}, {"id": 3, "name": "_background_"}]
    path = coco(tmp_path, category={"supercategory": "dishes"}, more=more)
    reader = open_reader(
        "coco", tmp_path, "train", annotations=path.name, images="img", negatives=1
    )
    asked = [turn for e in range(4) for s in reader.dialogues(0, e) for turn in s.turns]
    assert all(len(turn.targets) == 1 for turn in asked)
    more.append({"id": 4, "name": "spoon"})
    path = coco(tmp_path, category={"supercategory": "dishes"}, more=more)
    reader = open_reader(
        "coco", tmp_path, "train", annotations=path.name, images="img", negatives=1
    )
    asked = [turn for e in range(4) for s in reader.dialogues(0, e) for turn in s.turns]
    denied = [turn.question + turn.answer for turn in asked if not turn.targets]
    assert denied and all("spoon" in text for text in denied)


def jsonl(root: Path, *rows: Any) -> Path:
    draw_photo(root / "a.jpg", SIZE)
    path = root / "x.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


GOOD_ROW = {"image": "a.jpg", "turns": [{"question": "What?", "answer": "This."}]}


def test_null_in_an_optional_key_of_a_line_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    turn = {"question": "What?", "answer": "This.", "targets": None, "kind": None}
    target = {"name": "cup", "segmentation": [BOX], "ignore": None}
    rows = [
        {"image": "a.jpg", "turns": [turn], "size": None, "id": None, "objects": None},
        {"image": "a.jpg", "turns": [turn | {"answer": "{seg}", "targets": [target]}]},
        {"image": "a.jpg", "turns": [turn], "size": [48.0, "64"], "id": 7},
    ]
    found = report(jsonl(tmp_path, *rows))
    assert found.bad_rows == () and found.counts["questions"] == 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "JSON object"),
        ({"image": None, "turns": []}, "lacks 'image'"),
        ({"image": "a.jpg", "turns": []}, "no turns"),
        ({"image": "a.jpg", "turns": [None]}, "JSON object"),
        (GOOD_ROW | {"size": [-1, 5]}, "height, width"),
        (GOOD_ROW | {"size": [1e30, 5]}, "height, width"),
        (GOOD_ROW | {"id": []}, "id"),
        (GOOD_ROW | {"id": "7"}, "Line 1 has the id 7 too"),
        (GOOD_ROW | {"objects": {}}, "list"),
        ({"image": "a.jpg", "turns": [{"question": HALF, "answer": "x"}]}, "half a character"),
        ({"image": "a.jpg", "turns": [{"question": "x", "answer": HALF}]}, "half a character"),
        ({"image": "a.jpg", "turns": [{"question": 7, "answer": "x"}]}, "no text but 7"),
    ],
)
def test_a_bad_line_among_good_ones_is_named(tmp_path: Path, row: Any, reason: str) -> None:
    found = report(jsonl(tmp_path, GOOD_ROW | {"id": 7}, row))
    (bad,) = found.bad_rows
    assert bad.row == "line 2" and reason in bad.reason
    assert found.counts["questions"] == 1


def test_llava_rows_with_lists_nulls_and_half_characters(tmp_path: Path) -> None:
    draw_photo(tmp_path / "img/a.jpg", SIZE)

    def row(image: Any, question: Any = "What?") -> dict[str, Any]:
        said = [{"from": "human", "value": question}, {"from": "gpt", "value": "This."}]
        return {"id": 1, "image": image, "conversations": said}

    rows = [row(["a.jpg"]), row(["a.jpg", "b.jpg"]), row("a.jpg", None), row("a.jpg", HALF), None]
    found = report(write_json(tmp_path / "x.json", rows))
    assert found.counts["questions"] == 1
    reasons = {bad.row: bad.reason for bad in found.bad_rows}
    assert reasons.keys() == {f"entry {n}" for n in range(1, 5)}
    assert "2 images" in reasons["entry 1"]
    assert "lacks 'question'" in reasons["entry 2"]
    assert "half a character" in reasons["entry 3"]


def test_names_that_are_no_text_never_become_words_of_muse(tmp_path: Path) -> None:
    draw_photo(tmp_path / "a.jpg", SIZE)
    instance = {"segmentation": [BOX], "category_name": None, "rephrased_name": ["a", "b"]}
    entry = {"file_name": "a.jpg", "height": "48", "width": 64.0, "questions": ["What?"]}
    entries = [
        entry | {"answers": [[instance]]},
        entry | {"answers": [[instance | {"rephrased_name": HALF}]]},
        entry | {"answers": [[instance | {"rephrased_name": "the cup"}]]},
        entry | {"questions": [None], "answers": [[instance]], "text_answers": ["{seg}"]},
    ]
    found = report(write_json(tmp_path / "muse_val.json", entries), images=str(tmp_path))
    reasons = {bad.row: bad.reason for bad in found.bad_rows}
    assert reasons.keys() == {f"entry {n}, question 0" for n in (0, 1, 3)}
    assert "['a', 'b']" in reasons["entry 0, question 0"]
    assert "half a character" in reasons["entry 1, question 0"]
    assert found.counts["questions"] == 1


def labelme(root: Path, *shapes: Any, **content: Any) -> Path:
    draw_photo(root / "train/a.jpg", SIZE)
    values = {"imagePath": "a.jpg", "imageHeight": 48, "imageWidth": 64, "shapes": list(shapes)}
    return write_json(root / "train/a.json", values | content)


def shape(label: str, kind: str, *points: Any, **more: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": [list(p) for p in points], **more}


CORNERS = ((4, 4), (20, 4), (20, 12), (4, 12))


def test_labelme_files_made_for_another_size_are_bad_rows(tmp_path: Path) -> None:
    labelme(tmp_path, shape("cup", "polygon", *CORNERS), imageHeight=96)
    with pytest.raises(UnusableDataError) as caught:
        open_reader("labelme", tmp_path, "train")
    (bad,) = caught.value.bad_rows
    assert "image is (48, 64), its annotation says (96, 64)" in bad.reason
    labelme(tmp_path, shape("cup", "polygon", *CORNERS), imageHeight=None)
    assert open_reader("labelme", tmp_path, "train").bad_rows == ()


def test_an_embedded_image_is_used_where_the_path_names_the_json(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(data, "PNG")
    text = base64.b64encode(data.getvalue()).decode()
    labelme(tmp_path, shape("cup", "polygon", *CORNERS), imagePath="a.json", imageData=text)
    ((sample,),) = list(open_reader("labelme", tmp_path, "train"))
    assert isinstance(sample.image, np.ndarray) and (sample.image == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["rotation", "oriented_rectangle", "polygon"])
def test_turned_rectangles_are_polygons(tmp_path: Path, kind: str) -> None:
    labelme(tmp_path, shape("cup", kind, *CORNERS))
    ((sample,),) = list(open_reader("labelme", tmp_path, "train"))
    assert sample.turns[0].targets[0].mask == segmentation_to_rle([BOX], SIZE)


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
def test_painted_masks_moved_by_hand_keep_their_place(
    tmp_path: Path, points: Any, rows: Any, columns: Any
) -> None:
    data = io.BytesIO()
    Image.new("L", (10, 8), 255).save(data, "PNG")
    painted = base64.b64encode(data.getvalue()).decode()
    labelme(tmp_path, shape("cup", "mask", *points, mask=painted))
    ((sample,),) = list(open_reader("labelme", tmp_path, "train"))
    expected = np.zeros(SIZE, dtype=bool)
    expected[slice(*rows), slice(*columns)] = True
    assert np.array_equal(decode_mask(sample.turns[0].targets[0].mask), expected)


def test_points_and_lines_make_no_class_and_are_told(tmp_path: Path) -> None:
    labelme(
        tmp_path,
        shape("cup", "polygon", *CORNERS),
        shape("nose", "point", (3, 3)),
        shape("wire", "linestrip", (3, 3), (9, 9)),
        shape("dog", "polygon", (1e30, 1), (2, 2), (3, 1)),
    )
    reader = open_reader("labelme", tmp_path, "train")
    assert reader.class_names == ("cup", "dog")  # type: ignore[attr-defined]
    reasons = {bad.row: bad.reason for bad in reader.check()}
    assert reasons.keys() == {"shape 1", "shape 2", "shape 3"}
    assert "has no area" in reasons["shape 1"] and "far outside" in reasons["shape 3"]


def test_half_a_character_reaches_no_tokenizer() -> None:
    for question, answer in ((HALF, "x"), ("x", HALF)):
        with pytest.raises(ValueError, match="half a character"):
            Turn(question, answer)
    image = np.zeros((4, 4, 3), np.uint8)
    for request in ((HALF, ()), ("x", (("y", HALF),))):
        with pytest.raises(ValueError, match="half a character"):
            Request(image, *request)
    Turn("whole \U0001f600", "é")


@pytest.mark.parametrize(
    ("file", "images", "found"),
    [
        ("annotations/instances_train.json", "train", "coco train"),
        ("annotations/instances_val2017.json", "val2017", "coco val"),
        ("train/_annotations.coco.json", "train", "coco train"),
        ("valid/_annotations.coco.json", "valid", "coco val"),
        ("annotations/instances_default.json", "images", "coco train"),
    ],
)
def test_folders_of_coco_files_are_found_as_tools_export_them(
    tmp_path: Path, file: str, images: str, found: str
) -> None:
    path = coco(tmp_path / "made")
    (tmp_path / "set" / file).parent.mkdir(parents=True)
    path.rename(tmp_path / "set" / file)
    draw_photo(tmp_path / "set" / images / "a.jpg", SIZE)
    (one,) = find_sets(tmp_path / "set")
    assert one.label == found
    assert check_found(one).bad_rows == ()
    split = found.split()[1]
    (question,) = coco_questions(tmp_path / "set", split)
    assert question.image == tmp_path / "set" / images / "a.jpg"
