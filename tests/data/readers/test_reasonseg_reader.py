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
from pixellm.data.registry import open_reader
from pixellm.masks import decode_mask
from pixellm.types import SEG_MARK, Turn

SIZE = (60, 80)
SENTENCE = "What keeps the rain off?"
PHRASES = ["the part that turns", "what the wind moves", "on the roof", "the vane"]


def _shape(label: str, *points: tuple[float, float]) -> dict[str, Any]:
    return {"label": label, "points": [list(point) for point in points], "shape_type": "polygon"}


BIG = _shape("target", (10, 10), (50, 10), (50, 40), (10, 40))
HOLE = _shape("ignore_1", (20, 20), (30, 20), (30, 30), (20, 30))
AWAY = _shape("Ignore", (60.9, 45.2), (70.7, 45.9), (70.1, 55.5), (60.3, 55.9))
FLAG = _shape("flag", (0, 0), (79, 0), (79, 59))


def _write(
    root: Path,
    split: str,
    stem: str,
    shapes: list[dict[str, Any]],
    texts: list[str],
    is_sentence: bool = True,
) -> Path:
    folder = root / "reason_seg" / "ReasonSeg" / split
    draw_photo(folder / f"{stem}.jpg", SIZE)
    values = {"text": texts, "is_sentence": is_sentence, "shapes": shapes}
    return write_json(folder / f"{stem}.json", values)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _write(tmp_path, "train", "a", [HOLE, FLAG, BIG, AWAY], [SENTENCE])
    _write(tmp_path, "train", "b", [BIG], PHRASES, is_sentence=False)
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
    target = open_reader("reasonseg", root, "train").evaluation_samples()[0].turns[0].targets[0]
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
    reader = open_reader("reasonseg", root, "train")
    first, second = (sample.turns[0] for sample in reader.evaluation_samples())
    assert first.question == f"{SENTENCE} Please output segmentation mask."
    assert second.question == (
        f"What is {PHRASES[0]} in this image? Please output segmentation mask."
    )
    assert first.answer == second.answer == f"{SEG_MARK}."
    assert [s.id for s in reader.evaluation_samples()] == [
        "reasonseg-train-a",
        "reasonseg-train-b",
    ]


@pytest.mark.parametrize("text", ["the cup", "杯子"])
def test_a_text_that_is_no_list_is_one_text(tmp_path: Path, text: str) -> None:
    """Taken as a list it would be asked letter by letter."""
    path = _write(tmp_path, "val", "a", [BIG], [])
    values = {"text": text, "is_sentence": "False", "shapes": [BIG]}
    path.write_text(json.dumps(values))
    (sample,) = open_reader("reasonseg", tmp_path, "val").evaluation_samples()
    assert sample.turns[0].question.startswith(f"What is {text} in this image?")


def test_a_rectangle_of_two_corners_is_filled_and_a_circle_refused(tmp_path: Path) -> None:
    box = _shape("target", (20, 30), (10, 15)) | {"shape_type": "rectangle"}
    _write(tmp_path, "val", "a", [box], ["x"])
    round_one = _shape("target", (20, 30), (10, 15)) | {"shape_type": "circle"}
    _write(tmp_path, "val", "b", [round_one], ["x"])
    reader = open_reader("reasonseg", tmp_path, "val")
    mask = decode_mask(reader.evaluation_samples()[0].turns[0].targets[0].mask)
    assert mask[15:31, 10:21].all() and mask.sum() == 16 * 11
    assert [bad.file.name for bad in reader.bad_rows] == ["b.json"]


@pytest.mark.parametrize("is_sentence", [True, False])
def test_the_benchmark_asks_a_text_as_annotated(tmp_path: Path, is_sentence: bool) -> None:
    """The release strips these texts and keeps their case, unlike those of refCOCO."""
    _write(tmp_path, "val", "a", [BIG], ["  the Ferris  Wheel "], is_sentence)
    question = open_reader("reasonseg", tmp_path, "val").evaluation_samples()[0].turns[0].question
    asked = "the Ferris  Wheel" if is_sentence else "What is the Ferris  Wheel in this image?"
    assert question == f"{asked} Please output segmentation mask."


def test_an_epoch_asks_every_text_once(root: Path) -> None:
    reader = open_reader("reasonseg", root, "train")
    assert reader.counts() == {
        "images": 2,
        "questions": 5,
        "targets": 5,
        "items": 3,
        "explained": 1,
    }
    questions = [turn.question.lower() for turn in _turns(reader)]
    assert len(questions) == 5
    for text in [SENTENCE.lower(), *(phrase.removeprefix("the ") for phrase in PHRASES)]:
        assert sum(text in question for question in questions) == 1
    assert list(reader.check()) == []


def test_known_reasons_are_told_when_asked_for_and_only_then(root: Path) -> None:
    turns = _turns(open_reader("reasonseg", root, "train"), epochs=30)
    explained = [turn for turn in turns if turn.kind == "explained"]
    plain = [turn for turn in turns if turn.kind != "explained"]
    assert 5 <= len(explained) <= 25
    assert all("Its cloth is waterproof." in turn.answer for turn in explained)
    assert all(turn.question.startswith(SENTENCE) for turn in explained)
    assert not any("waterproof" in turn.answer for turn in plain)
    assert len({turn.question for turn in plain}) > 20


def test_files_in_cp1252_and_with_a_byte_order_mark_are_read(root: Path) -> None:
    folder = root / "reason_seg/ReasonSeg/train"
    values = {"text": ["le café d’en face"], "is_sentence": False, "shapes": [BIG]}
    for stem, encoding in (("c", "cp1252"), ("d", "utf-8-sig")):
        draw_photo(folder / f"{stem}.jpg", SIZE)
        content = json.dumps(values, ensure_ascii=False).encode(encoding)
        (folder / f"{stem}.json").write_bytes(content)
    questions = [
        sample.turns[0].question
        for sample in open_reader("reasonseg", root, "train").evaluation_samples()
    ]
    assert sum("le café d’en face" in question for question in questions) == 2


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"text": ["x"], "is_sentence": True, "shapes": [HOLE]}, "no shape labelled target"),
        ({"text": ["x"], "is_sentence": True, "shapes": [_shape("hat", (0, 0))]}, "'hat'"),
        ({"text": [], "is_sentence": True, "shapes": [BIG]}, "no text"),
        ({"text": [None], "is_sentence": True, "shapes": [BIG]}, "no text but None"),
        ({"text": {}, "is_sentence": True, "shapes": [BIG]}, "no text"),
        ({"text": ["a\ud83d"], "is_sentence": True, "shapes": [BIG]}, "half a character"),
        ({"text": [f"x {SEG_MARK}"], "is_sentence": True, "shapes": [BIG]}, "holds {seg}"),
        ({"text": ["x"], "is_sentence": "perhaps", "shapes": [BIG]}, "is_sentence"),
        ({"text": ["x"], "is_sentence": True, "shapes": [BIG, None]}, "no JSON object"),
        (
            {"text": ["x"], "is_sentence": True, "shapes": [_shape("target", (0, -1e30))]},
            "far outside",
        ),
        ({"text": ["x"], "is_sentence": True, "shapes": [_shape("target")]}, "no list of points"),
        (
            {"text": ["x"], "is_sentence": True, "shapes": [_shape("target", (0, 1e9))]},
            "far outside",
        ),
        ({"text": ["x"], "shapes": [BIG]}, "is_sentence"),
        (["x"], "lacks shapes"),
    ],
)
def test_bad_files_are_left_out_and_named(root: Path, values: Any, reason: str) -> None:
    folder = root / "reason_seg/ReasonSeg/train"
    draw_photo(folder / "bad.jpg", SIZE)
    path = write_json(folder / "bad.json", values)
    reader = open_reader("reasonseg", root, "train")
    (bad,) = reader.bad_rows
    assert bad.file == path and reason in bad.reason
    assert reader.counts()["images"] == 2
    assert list(reader.check()) == [bad]


def test_broken_json_missing_images_and_hidden_targets_are_named(root: Path) -> None:
    folder = root / "reason_seg/ReasonSeg/train"
    (folder / "broken.json").write_text('{"text": [')
    alone = _write(root, "train", "alone", [BIG], [SENTENCE])
    alone.with_suffix(".jpg").unlink()
    outside = _shape("target", (200, 200), (220, 200), (220, 230))
    hidden = _write(root, "train", "hidden", [outside], [SENTENCE])
    reader = open_reader("reasonseg", root, "train")
    found = {bad.file.name: bad.reason for bad in reader.check()}
    assert found.keys() == {"broken.json", "alone.json", hidden.name}
    assert "no readable JSON" in found["broken.json"]
    assert "alone.jpg is missing" in found["alone.json"]
    assert "outside the image" in found[hidden.name]


def test_the_size_is_that_of_the_image_as_people_see_it(tmp_path: Path) -> None:
    path = _write(tmp_path, "val", "turned", [BIG], [SENTENCE])
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    draw_photo(path.with_suffix(".jpg"), SIZE, exif=exif)
    sample = open_reader("reasonseg", tmp_path, "val")[0][0]
    assert sample.size == SIZE[::-1]


def test_a_missing_split_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ReasonSeg/val, which is missing; .*LISA"):
        open_reader("reasonseg", tmp_path, "val")
    (tmp_path / "reason_seg/ReasonSeg/val").mkdir(parents=True)
    with pytest.raises(ValueError, match="no usable annotation file"):
        open_reader("reasonseg", tmp_path, "val")
