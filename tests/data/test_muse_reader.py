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
ADDRESS = "http://images.cocodataset.org"


def _instance(number: int) -> dict[str, Any]:
    """With polygons, run lengths or compressed ones, in turn."""
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
        "rephrased_name": f"the round thing no. {number}",
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
    """An entry; its photo has an address in place of a name where ``coco_url`` is given."""
    answers = [[_instance(q + k) for k in range(2 + q)] for q in range(num_questions)]
    entry = {
        "file_name": f"COCO_train2014_{number:012d}.jpg",
        "height": SIZE[0],
        "width": SIZE[1],
        "ann_list": answers[-1],
        "questions": [f"Photo {number}, what for {q}?" for q in range(num_questions)],
        "answers": answers,
        "text_answers": [f"Take {SEG_MARK}" + f" or {SEG_MARK}" * (len(a) - 1) for a in answers],
    }
    dropped = {
        *(() if texts else ("text_answers",)),
        *(("file_name",) if "coco_url" in more else ()),
    }
    return {key: value for key, value in entry.items() if key not in dropped} | more


@pytest.fixture
def root(tmp_path: Path) -> Path:
    away = _entry(2, 1, coco_url=f"{ADDRESS}/val2017/000000000002.jpg")
    write_json(tmp_path / "muse/muse_train.json", [_entry(0, 4), _entry(1, 2, texts=False), away])
    for number in (0, 1):
        draw_photo(tmp_path / f"coco/train2014/COCO_train2014_{number:012d}.jpg", SIZE)
    draw_photo(tmp_path / "coco/val2017/000000000002.jpg", SIZE)
    return tmp_path


def _check_masks(sample: Sample) -> None:
    question = sample.turns[0].question
    row = int(question.split()[-1].rstrip("?"))
    for number, target in enumerate(sample.turns[0].targets, start=row):
        assert np.array_equal(decode_mask(target.mask), _decode(_instance(number)))
        assert target.name == f"sports ball {number}"


def test_every_question_has_its_text_or_composed_answer_and_exact_masks(root: Path) -> None:
    samples = list(open_reader("muse", root, "train").evaluation_samples())
    ids = [f"muse-train-{e}-{q}" for e, count in enumerate((4, 2, 1)) for q in range(count)]
    assert [s.id for s in samples] == ids
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


def test_rows_that_can_not_be_used_are_listed_and_left_out(tmp_path: Path) -> None:
    entry = _entry(0, 8)
    entry["text_answers"][0] = f"Only {SEG_MARK}"
    entry["text_answers"][1] += f" and {SEG_MARK}"
    entry["questions"][2:4] = ["  ", f"Where is {SEG_MARK}?"]
    entry["answers"][4] = []
    entry["answers"][5][0]["segmentation"] = []
    entry["text_answers"][6] = 12

    def named(name: Any, **more: Any) -> dict[str, Any]:
        """One question without a text, its instances of these names."""
        one = {**_instance(0), "category_name": None, "rephrased_name": name}
        return _entry(9, 1, texts=False, answers=[[one]], **more)

    bad: list[tuple[Any, str, str]] = [
        (_entry(1, 2, questions=["One alone?"]), "", "1 questions, but 2 answers and 2 texts"),
        (_entry(2, 2, text_answers=["{seg}"]), "", "2 questions, but 2 answers and 1 texts"),
        (_entry(3, 1, height=0), "", "height and width"),
        (_entry(4, 1, file_name=""), "", "neither file_name nor coco_url"),
        (_entry(5, 1, file_name="../../secret.jpg"), "", "no path inside"),
        ("nothing", "", "no JSON object"),
        (named(""), ", question 0", "no text answer. The name of an instance is empty"),
        (named(["a", "b"]), ", question 0", "['a', 'b']"),
        (named("half \ud83d"), ", question 0", "half a character"),
        (named("it", questions=[None]), ", question 0", "no text but None"),
    ]
    good = named("the cup", height="48", width=64.0)
    path = write_json(tmp_path / "muse/muse_val.json", [entry, *(one for one, *_ in bad), good])
    reader = open_reader("muse", tmp_path, "val")
    assert [s.id for s in reader.evaluation_samples()] == ["muse-val-0-7", "muse-val-11-0"]
    expected = {
        "entry 0, question 0": "1 {seg} for 2 instances",
        "entry 0, question 1": "4 {seg} for 3 instances",
        "entry 0, question 2": "empty",
        "entry 0, question 3": "holds {seg}",
        "entry 0, question 4": "refers to nothing",
        "entry 0, question 5": "no segmentation",
        "entry 0, question 6": "no text",
    } | {f"entry {n}{row}": reason for n, (_, row, reason) in enumerate(bad, start=1)}
    assert {bad.file for bad in reader.bad_rows} == {path}
    found = {bad.row: bad.reason for bad in reader.bad_rows}
    assert found.keys() == expected.keys()
    assert all(reason in found[row] for row, reason in expected.items())


def test_check_names_the_instance_whose_mask_can_not_be_decoded(root: Path) -> None:
    entry = _entry(0, 2)
    entry["answers"][1][2]["segmentation"] = {"size": [5, 5], "counts": [25]}
    path = write_json(root / "muse/muse_val.json", [entry])
    photo = root / "coco/train2014/COCO_train2014_000000000000.jpg"
    photo.unlink()
    reader = open_reader("muse", root, "val")
    missing, damaged = reader.check()
    assert (missing.file, missing.row) == (photo, "")
    assert (damaged.file, damaged.row) == (path, "entry 0, question 1, target 2")
    assert "(5, 5)" in damaged.reason
    with pytest.raises(ValueError, match="entry 0, question 1, target 2"):
        list(reader)


@pytest.mark.parametrize("folder", ["train2017", "val2017"])
def test_photos_with_an_address_are_found_as_the_release_lays_them_out(
    root: Path, folder: str
) -> None:
    name = f"{folder}/000000000007.jpg"
    write_json(root / "muse/muse_val.json", [_entry(7, 1, coco_url=f"{ADDRESS}/{name}")])
    reader = open_reader("muse", root, "val")
    assert reader[0][0].image == root / "coco" / name, "where it should be"
    photo = draw_photo(root / "refer_seg/images/mscoco/images" / name, SIZE)
    assert reader[0][0].image == photo
    assert list(reader.check()) == []


def test_the_other_name_of_the_file_and_ones_own_file_are_read(root: Path) -> None:
    write_json(root / "multi_reason_seg/MultiReasonSeg/MUSE_test_many.json", [_entry(9, 1)])
    assert len(open_reader("muse", root, "test_many")) == 1
    entry = _entry(9, 1, file_name="images/mine.png")
    own = write_json(root / "generated/questions.json", [entry])
    for options, folder in (({}, own.parent), ({"images": root / "photos"}, root / "photos")):
        photo = draw_photo(folder / "images/mine.png", SIZE)
        reader = open_reader("muse", root, "train", file=own, **options)
        assert reader[0][0].image == photo
    assert list(reader.check()) == []


def test_empty_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = write_json(tmp_path / "muse/muse_train.json", [])
    with pytest.raises(ValueError, match="no usable question"):
        open_reader("muse", tmp_path, "train")
    path.write_text('[{"file_name": "a.jpg", "hei')
    with pytest.raises(ValueError, match=r"muse_train.json is damaged or ends"):
        open_reader("muse", tmp_path, "train")
