"""MUSE against its true layout; masks checked against pycocotools' own decoding."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_photos import draw_photo, rectangle, write_json
from pycocotools import mask as coco_mask

from pixellm.data.registry import open_reader
from pixellm.masks import decode_mask
from pixellm.types import SEG_MARK, Sample

SIZE = (48, 64)


def _instance(number: int, name: str = "") -> dict[str, Any]:
    shape: Any = [rectangle(number, 3, number + 9, 30), [20, 4, 50, 9, 30, 40 - number]]
    if number % 3 == 1:
        shape = {"size": list(SIZE), "counts": [number, 40, SIZE[0] * SIZE[1] - 40 - number]}
    if number % 3 == 2:
        pixels = np.zeros(SIZE, dtype=np.uint8, order="F")
        pixels[number : number + 6, 5:17] = 1
        packed = coco_mask.encode(pixels)
        shape = {"size": list(SIZE), "counts": packed["counts"].decode()}
    return {
        "category_id": number,
        "category_name": f"sports_ball_{number}",
        "rephrased_name": name or f"the round thing no. {number}",
        "bbox": [0, 0, 1, 1],
        "segmentation": shape,
    }


def _decode(instance: dict[str, Any]) -> np.ndarray:
    shape = instance["segmentation"]
    if isinstance(shape, list):
        return np.any(coco_mask.decode(coco_mask.frPyObjects(shape, *SIZE)), axis=2)
    if isinstance(shape["counts"], list):
        shape = coco_mask.frPyObjects(shape, *SIZE)
    return coco_mask.decode(shape) > 0


def _entry(number: int, num_questions: int, *, texts: bool = True, **more: Any) -> dict[str, Any]:
    answers = [[_instance(q + k) for k in range(2 + q)] for q in range(num_questions)]
    entry = {
        "file_name": f"COCO_train2014_{number:012d}.jpg",
        "height": SIZE[0],
        "width": SIZE[1],
        "ann_list": answers[-1],
        "questions": [f"Photo {number}, what for {q}?" for q in range(num_questions)],
        "answers": answers,
    }
    if texts:
        entry["text_answers"] = [
            f"Take {SEG_MARK}" + f" or {SEG_MARK}" * (len(a) - 1) for a in answers
        ]
    return {**entry, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    away = _entry(2, 1, coco_url="http://images.cocodataset.org/val2017/000000000002.jpg")
    del away["file_name"]
    entries = [_entry(0, 4), _entry(1, 2, texts=False), away]
    write_json(tmp_path / "muse/muse_train.json", entries)
    for number in (0, 1):
        photo = tmp_path / f"coco/train2014/COCO_train2014_{number:012d}.jpg"
        draw_photo(photo, SIZE)
    draw_photo(tmp_path / "coco/val2017/000000000002.jpg", SIZE)
    return tmp_path


def _check_masks(sample: Sample) -> None:
    question = sample.turns[0].question
    row = int(question.split()[-1].rstrip("?"))
    for place, target in enumerate(sample.turns[0].targets):
        assert np.array_equal(decode_mask(target.mask), _decode(_instance(row + place)))
        assert target.name == f"sports ball {row + place}"


def test_every_question_has_its_text_or_composed_answer_and_exact_masks(root: Path) -> None:
    samples = list(open_reader("muse", root, "train").evaluation_samples())
    assert [s.id for s in samples] == [
        f"muse-train-{entry}-{question}"
        for entry, count in ((0, 4), (1, 2), (2, 1))
        for question in range(count)
    ]
    for sample in samples:
        _check_masks(sample)
        assert isinstance(sample.image, Path) and sample.image.is_file()
    assert samples[0].turns[0].answer == f"Take {SEG_MARK} or {SEG_MARK}"
    assert samples[4].turns[0].answer == (
        f"The round thing no. 0 {SEG_MARK} and the round thing no. 1 {SEG_MARK}."
    )
    assert samples[6].image == root / "coco/val2017/000000000002.jpg"


def test_an_epoch_asks_every_question_once_in_items_of_one_photo(root: Path) -> None:
    reader = open_reader("muse", root, "train", seed=2)
    wanted = sorted(sample.turns[0].question for sample in reader.evaluation_samples())
    assert reader.counts() == {"images": 3, "questions": 7, "targets": 21, "items": 4}
    composed = set()
    for epoch in range(8):
        items = [reader.dialogues(index, epoch) for index in range(len(reader))]
        assert sorted(s.turns[0].question for item in items for s in item) == wanted
        for item in items:
            assert len(item) <= 3 and len({sample.image for sample in item}) == 1
            for sample in item:
                _check_masks(sample)
                if "Photo 1" in sample.turns[0].question:
                    composed.add(sample.turns[0].answer.partition("round")[0])
    assert len(composed) > 1, "composed answers vary in wording"
    worker = pickle.loads(pickle.dumps(reader))
    assert [worker[i] for i in range(len(reader))] == list(reader)
    assert list(reader.check()) == []


def test_rows_with_wrong_counts_are_listed_and_left_out(tmp_path: Path) -> None:
    entry = _entry(0, 8)
    entry["text_answers"][0] = f"Only {SEG_MARK}"
    entry["text_answers"][1] += f" and {SEG_MARK}"
    entry["questions"][2] = "  "
    entry["questions"][3] = f"Where is {SEG_MARK}?"
    entry["answers"][4] = []
    entry["answers"][5][0]["segmentation"] = []
    entry["text_answers"][6] = 12
    entries = [
        entry,
        _entry(1, 2, questions=["One alone?"]),
        _entry(2, 2, text_answers=[f"{SEG_MARK} and {SEG_MARK}"]),
        _entry(3, 1, height=0),
        _entry(4, 1, file_name=""),
        _entry(5, 1, file_name="../../secret.jpg"),
        "nothing",
        _entry(7, 1, texts=False),
    ]
    for instance in entries[7]["answers"][0]:
        instance["rephrased_name"] = instance["category_name"] = ""
    path = write_json(tmp_path / "muse/muse_val.json", entries)
    reader = open_reader("muse", tmp_path, "val")
    assert [sample.id for sample in reader.evaluation_samples()] == ["muse-val-0-7"]
    assert {bad.file for bad in reader.bad_rows} == {path}
    found = {bad.row: bad.reason for bad in reader.bad_rows}
    expected = {
        "entry 0, question 0": "1 {seg} for 2 instances",
        "entry 0, question 1": "4 {seg} for 3 instances",
        "entry 0, question 2": "empty",
        "entry 0, question 3": "holds {seg}",
        "entry 0, question 4": "refers to nothing",
        "entry 0, question 5": "no segmentation",
        "entry 0, question 6": "no text",
        "entry 1": "1 questions, but 2 answers and 2 texts",
        "entry 2": "2 questions, but 2 answers and 1 texts",
        "entry 3": "height and width",
        "entry 4": "neither file_name nor coco_url",
        "entry 5": "no path inside",
        "entry 6": "no JSON object",
        "entry 7, question 0": "no text answer. The name of an instance is empty",
    }
    assert found.keys() == expected.keys()
    assert all(reason in found[row] for row, reason in expected.items())


def test_check_names_the_instance_whose_mask_can_not_be_decoded(root: Path) -> None:
    entry = _entry(0, 2)
    entry["answers"][1][2]["segmentation"] = {"size": [5, 5], "counts": [25]}
    path = write_json(root / "muse/muse_val.json", [entry])
    (root / "coco/train2014/COCO_train2014_000000000000.jpg").unlink()
    reader = open_reader("muse", root, "val")
    problems = list(reader.check())
    assert [(bad.file, bad.row) for bad in problems] == [
        (root / "coco/train2014/COCO_train2014_000000000000.jpg", ""),
        (path, "entry 0, question 1, target 2"),
    ]
    assert "(5, 5)" in problems[1].reason
    with pytest.raises(ValueError, match="entry 0, question 1, target 2"):
        list(reader)


@pytest.mark.parametrize("folder", ["train2017", "val2017"])
def test_photos_with_an_address_are_found_as_the_release_lays_them_out(
    root: Path, folder: str
) -> None:
    name = f"{folder}/000000000007.jpg"
    away = _entry(7, 1, coco_url=f"http://images.cocodataset.org/{name}")
    del away["file_name"]
    write_json(root / "muse/muse_val.json", [away])
    reader = open_reader("muse", root, "val")
    assert reader[0][0].image == root / "coco" / name, "where it should be"
    photo = draw_photo(root / "refer_seg/images/mscoco/images" / name, SIZE)
    assert reader[0][0].image == photo
    assert list(reader.check()) == []


def test_the_other_name_of_the_file_and_ones_own_file_are_read(root: Path) -> None:
    entries = [_entry(9, 1)]
    write_json(root / "multi_reason_seg/MultiReasonSeg/MUSE_test_many.json", entries)
    assert len(open_reader("muse", root, "test_many")) == 1
    entries[0]["file_name"] = "images/mine.png"
    own = write_json(root / "generated/questions.json", entries)
    photo = draw_photo(own.parent / "images/mine.png", SIZE)
    reader = open_reader("muse", root, "train", file=own)
    assert reader[0][0].image == photo
    elsewhere = draw_photo(root / "photos/images/mine.png", SIZE)
    reader = open_reader("muse", root, "train", file=own, images=root / "photos")
    assert reader[0][0].image == elsewhere
    assert list(reader.check()) == []


def test_missing_empty_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"muse_train.json, which is missing; .*PixelLM"):
        open_reader("muse", tmp_path, "train")
    path = write_json(tmp_path / "muse/muse_train.json", [])
    with pytest.raises(ValueError, match="no usable question"):
        open_reader("muse", tmp_path, "train")
    path.write_text('[{"file_name": "a.jpg", "hei')
    with pytest.raises(ValueError, match=r"muse_train.json is damaged or ends"):
        open_reader("muse", tmp_path, "train")
