"""ReasonSeg against its true layout; polygons checked against scikit-image's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_photos import draw_photo, write_json
from PIL import Image
from skimage.draw import polygon, polygon_perimeter
from skimage.morphology import dilation

from pixellm.data.reasonseg import ReasonSeg, Shape, paint_shapes
from pixellm.masks import decode_mask
from pixellm.types import SEG_MARK, Turn

SIZE = (60, 80)
SENTENCE = "What keeps the rain off?"
PHRASES = ["the part that turns", "what the wind moves", "on the roof", "the vane"]
END = "Please output segmentation mask."


def _shape(label: str, *points: tuple[float, float], kind: str = "polygon") -> dict[str, Any]:
    return {"label": label, "points": [list(point) for point in points], "shape_type": kind}


BIG = _shape("target", (10, 10), (50, 10), (50, 40), (10, 40))
HOLE = _shape("ignore_1", (20, 20), (30, 20), (30, 30), (20, 30))
AWAY = _shape("Ignore", (60.9, 45.2), (70.7, 45.9), (70.1, 55.5), (60.3, 55.9))
FLAG = _shape("flag", (0, 0), (79, 0), (79, 59))


def _write(root: Path, name: str, shapes: list[Any], text: Any, *, is_sentence: Any = True) -> Path:
    """An image and its annotation, by split and stem."""
    path = root / "reason_seg/ReasonSeg" / f"{name}.json"
    draw_photo(path.with_suffix(".jpg"), SIZE)
    return write_json(path, {"text": text, "is_sentence": is_sentence, "shapes": shapes})


def _questions(root: Path, split: str = "val") -> list[Turn]:
    return [sample.turns[0] for sample in ReasonSeg(root, split).evaluation_samples()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _write(tmp_path, "train/a", [HOLE, FLAG, BIG, AWAY], [SENTENCE])
    _write(tmp_path, "train/b", [BIG], PHRASES, is_sentence=False)
    row = {"image": "a.jpg", "query": SENTENCE, "outputs": "Its cloth is\nwaterproof."}
    write_json(tmp_path / "reason_seg/ReasonSeg/explanatory/train.json", [row])
    return tmp_path


def _turns(reader: ReasonSeg, epochs: int = 1) -> list[Turn]:
    return [
        turn
        for epoch in range(epochs)
        for index in range(len(reader))
        for sample in reader.dialogues(index, epoch)
        for turn in sample.turns
    ]


def test_smaller_polygons_lie_over_larger_ones_whatever_their_order(root: Path) -> None:
    painted = np.zeros(SIZE, dtype=int)
    painted[10:41, 10:51] = 1
    painted[20:31, 20:31] = 2
    painted[45:56, 60:71] = 2  # points are cut to whole pixels
    target = _questions(root, "train")[0].targets[0]
    assert np.array_equal(decode_mask(target.mask), painted == 1)
    assert target.ignore is not None
    assert np.array_equal(decode_mask(target.ignore), painted == 2)


def test_a_larger_ignored_region_lies_below_the_target() -> None:
    shapes = [
        Shape(is_target=True, points=((20, 20), (30, 20), (30, 30), (20, 30))),
        Shape(is_target=False, points=((10, 10), (50, 10), (50, 40), (10, 40))),
    ]
    painted = paint_shapes(shapes, SIZE)
    assert (painted[20:31, 20:31] == 1).all()
    assert (painted == 255).sum() == 31 * 41 - 11 * 11
    assert np.array_equal(paint_shapes(shapes[::-1], SIZE), painted)


def test_polygons_of_any_form_agree_with_another_filler_up_to_their_border() -> None:
    draw = np.random.default_rng(0)
    for corners in (3, 4, 5, 7, 9):
        points = draw.integers(-15, 95, (corners, 2)).astype(np.int32)
        ours = paint_shapes([Shape(is_target=True, points=points.tolist())], SIZE) == 1
        theirs, border = np.zeros(SIZE, dtype=bool), np.zeros(SIZE, dtype=bool)
        theirs[polygon(points[:, 1], points[:, 0], SIZE)] = True
        border[polygon_perimeter(points[:, 1], points[:, 0], SIZE, clip=False)] = True
        assert not ((ours != theirs) & ~dilation(border)).any()
        assert not (theirs & ~ours & ~border).any()
        assert ours[border].mean() > 0.97, "the border belongs to the polygon"


def test_the_benchmark_asks_the_first_text_of_each_image(root: Path) -> None:
    first, second = _questions(root, "train")
    assert first.question == f"{SENTENCE} {END}"
    assert second.question == f"What is {PHRASES[0]} in this image? {END}"
    assert first.answer == second.answer == f"{SEG_MARK}."
    ids = [sample.id for sample in ReasonSeg(root).evaluation_samples()]
    assert ids == ["reasonseg-train-a", "reasonseg-train-b"]


@pytest.mark.parametrize(
    ("text", "is_sentence", "asked"),
    [
        ("the cup", "False", "What is the cup in this image?"),  # no list: never letter by letter
        ("杯子", "False", "What is 杯子 in this image?"),
        # The release strips these texts and keeps their case, unlike those of refCOCO.
        (["  the Ferris  Wheel "], True, "the Ferris  Wheel"),
        (["  the Ferris  Wheel "], False, "What is the Ferris  Wheel in this image?"),
    ],
)
def test_the_benchmark_asks_a_text_as_annotated(
    tmp_path: Path, text: Any, is_sentence: Any, asked: str
) -> None:
    _write(tmp_path, "val/a", [BIG], text, is_sentence=is_sentence)
    assert [turn.question for turn in _questions(tmp_path)] == [f"{asked} {END}"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8-sig"])
def test_files_in_cp1252_and_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str) -> None:
    path = _write(tmp_path, "val/a", [BIG], ["le café d’en face"])
    values = json.loads(path.read_text())
    path.write_bytes(json.dumps(values, ensure_ascii=False).encode(encoding))
    assert [turn.question for turn in _questions(tmp_path)] == [f"le café d’en face {END}"]


def test_a_rectangle_of_two_corners_is_filled_and_a_circle_refused(tmp_path: Path) -> None:
    corners = ((20, 30), (10, 15))
    _write(tmp_path, "val/a", [_shape("target", *corners, kind="rectangle")], ["x"])
    _write(tmp_path, "val/b", [_shape("target", *corners, kind="circle")], ["x"])
    mask = decode_mask(_questions(tmp_path)[0].targets[0].mask)
    assert mask[15:31, 10:21].all() and mask.sum() == 16 * 11
    assert [bad.file.name for bad in ReasonSeg(tmp_path, "val").bad_rows] == ["b.json"]


def test_an_epoch_asks_every_text_once(root: Path) -> None:
    reader = ReasonSeg(root)
    counts = {"images": 2, "questions": 5, "targets": 5, "items": 3, "explained": 1}
    assert reader.counts() == counts
    questions = [turn.question.lower() for turn in _turns(reader)]
    assert len(questions) == 5
    for text in [SENTENCE.lower(), *(phrase.removeprefix("the ") for phrase in PHRASES)]:
        assert sum(text in question for question in questions) == 1
    assert list(reader.check()) == []


def test_known_reasons_are_told_when_asked_for_and_only_then(root: Path) -> None:
    turns = _turns(ReasonSeg(root), epochs=30)
    explained = [turn for turn in turns if turn.kind == "explained"]
    plain = [turn for turn in turns if turn.kind != "explained"]
    assert 5 <= len(explained) <= 25
    assert all("Its cloth is waterproof." in turn.answer for turn in explained)
    assert all(turn.question.startswith(SENTENCE) for turn in explained)
    assert not any("waterproof" in turn.answer for turn in plain)
    assert len({turn.question for turn in plain}) > 20


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shapes": [HOLE]}, "no shape labelled target"),
        ({"shapes": [_shape("hat", (0, 0))]}, "'hat'"),
        ({"shapes": [BIG, None]}, "no JSON object"),
        ({"shapes": [_shape("target", (0, -1e30))]}, "far outside"),
        ({"shapes": [_shape("target", (0, 1e9))]}, "far outside"),
        ({"shapes": [_shape("target")]}, "no list of points"),
        ({"text": []}, "no text"),
        *(({"text": text}, "no text") for text in ({}, {"a": 1}, 5, True, None, [["x"]])),
        ({"text": [None]}, "no text but None"),
        ({"text": ["a\ud83d"]}, "half a character"),
        ({"text": [f"x {SEG_MARK}"]}, "holds {seg}"),
        ({"is_sentence": "perhaps"}, "is_sentence"),
        (["text", "shapes"], "is_sentence"),
        (["x"], "lacks shapes"),
    ],
)
def test_bad_files_are_left_out_and_named(root: Path, changes: Any, reason: str) -> None:
    """Changes are values, or the keys that are left."""
    path = _write(root, "train/bad", [BIG], ["x"])
    values = json.loads(path.read_text())
    changed = values | changes if isinstance(changes, dict) else {k: values.get(k) for k in changes}
    write_json(path, ["x"] if changes == ["x"] else changed)
    reader = ReasonSeg(root)
    (bad,) = reader.bad_rows
    assert bad.file == path and reason in bad.reason
    assert reader.counts()["images"] == 2
    assert list(reader.check()) == [bad]


def test_broken_json_missing_images_and_hidden_targets_are_named(root: Path) -> None:
    (root / "reason_seg/ReasonSeg/train/broken.json").write_text('{"text": [')
    _write(root, "train/alone", [BIG], [SENTENCE]).with_suffix(".jpg").unlink()
    _write(root, "train/hidden", [_shape("target", (99, 99), (120, 99), (99, 120))], [SENTENCE])
    found = {bad.file.name: bad.reason for bad in ReasonSeg(root).check()}
    assert "no readable JSON" in found.pop("broken.json")
    assert "alone.jpg is missing" in found.pop("alone.json")
    assert "outside the image" in found.pop("hidden.json")
    assert found == {}


def test_the_size_is_that_of_the_image_as_people_see_it(tmp_path: Path) -> None:
    path = _write(tmp_path, "val/turned", [BIG], [SENTENCE])
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    draw_photo(path.with_suffix(".jpg"), SIZE, exif=exif)
    assert ReasonSeg(tmp_path, "val")[0][0].size == SIZE[::-1]


def test_an_empty_split_is_told(tmp_path: Path) -> None:
    (tmp_path / "reason_seg/ReasonSeg/val").mkdir(parents=True)
    with pytest.raises(ValueError, match="no usable annotation file"):
        ReasonSeg(tmp_path, "val")
