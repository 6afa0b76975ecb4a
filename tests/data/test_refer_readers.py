"""The refer family against its true layout, mask by mask against pycocotools' own file reader."""

from __future__ import annotations

import io
import pickle
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_photos import write_json
from pycocotools.coco import COCO
from refer_layouts import (
    all_turns,
    asked,
    coco_set,
    expression,
    refs_of,
    with_lists_of_runs,
    write_refer,
)

from pixellm.data.refer import is_in_split
from pixellm.data.registry import open_reader
from pixellm.masks import decode_mask
from pixellm.types import SEG_MARK

COCO_FOLDER = "refer_seg/images/mscoco/images/train2014"
LAYOUTS = {
    "refcoco": ("refs(unc).p", COCO_FOLDER),
    "refcoco+": ("refs(unc).p", COCO_FOLDER),
    "refcocog": ("refs(umd).p", COCO_FOLDER),
    "refclef": ("refs(unc).p", "refer_seg/images/saiapr_tc-12"),
}


@pytest.fixture(params=list(LAYOUTS))
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, COCO]:
    refs_file, images = LAYOUTS[request.param]
    instances = coco_set(tmp_path / images)
    held = with_lists_of_runs(instances) if request.param == "refclef" else instances
    write_refer(tmp_path, request.param, refs_file, held, refs_of(instances))
    return request.param, tmp_path, _open_coco(write_json(tmp_path / "coco.json", instances))


@pytest.fixture
def instances(tmp_path: Path) -> dict[str, Any]:
    return coco_set(tmp_path / COCO_FOLDER)


@pytest.fixture
def refcoco(tmp_path: Path, instances: dict[str, Any]) -> Path:
    """A root that holds refCOCO."""
    write_refer(tmp_path, "refcoco", "refs(unc).p", instances, refs_of(instances))
    return tmp_path


def _open_coco(path: Path) -> COCO:
    with redirect_stdout(io.StringIO()):
        return COCO(str(path))


def _same(mask: Any, coco: COCO, annotation: int) -> bool:
    return bool(np.array_equal(decode_mask(mask), coco.annToMask(coco.anns[annotation]) > 0))


def test_every_evaluation_question_asks_one_expression_for_its_exact_mask(
    family: tuple[str, Path, COCO],
) -> None:
    name, root, coco = family
    for split, images in (("train", 2), ("val", 1)):
        reader = open_reader(name, root, split)
        samples = reader.evaluation_samples()
        assert len(samples) == reader.counts()["questions"] == 8 * images
        for sample in samples:
            (turn,) = sample.turns
            ((annotation, version),) = asked(turn)
            it = expression(annotation, version)
            wanted = f"What is {it} in this image? Please output segmentation mask."
            assert (turn.question, turn.answer) == (wanted, f"{SEG_MARK}.")
            assert _same(turn.targets[0].mask, coco, annotation)
            category = coco.anns[annotation]["category_id"]
            assert turn.targets[0].name == coco.cats[category]["name"]
            image = coco.imgs[coco.anns[annotation]["image_id"]]
            assert sample.size == (image["height"], image["width"])
            assert isinstance(sample.image, Path) and sample.image.is_file()
            assert sample.image.name == image["file_name"]


def test_an_epoch_asks_every_expression_once_with_its_own_mask(
    family: tuple[str, Path, COCO],
) -> None:
    name, root, coco = family
    reader = open_reader(name, root, "train", seed=3)
    expected = sorted(p for s in reader.evaluation_samples() for p in asked(s.turns[0]))
    for epoch in (0, 1):
        found = []
        for turns in all_turns(reader, epoch):
            for turn in turns:
                assert len(asked(turn)) == len(turn.targets) > 0
                for (annotation, _), target in zip(asked(turn), turn.targets, strict=True):
                    assert _same(target.mask, coco, annotation)
            pairs = [pair for turn in turns for pair in asked(turn)]
            assert len({annotation for annotation, _ in pairs}) == len(pairs) <= 3
            found += pairs
        assert sorted(found) == expected
    assert list(reader.check()) == []


def test_the_same_index_is_the_same_sample_wherever_it_is_read(refcoco: Path) -> None:
    reader, again = (open_reader("refcoco", refcoco, "train", seed=5) for _ in range(2))
    in_a_worker = pickle.loads(pickle.dumps(reader))
    backwards = [again.dialogues(i, 1) for i in reversed(range(len(again)))][::-1]
    assert backwards == [reader.dialogues(i, 1) for i in range(len(reader))]
    assert [in_a_worker[i] for i in range(len(reader))] == list(reader)
    assert all_turns(reader, 0) != all_turns(reader, 1)
    assert all_turns(open_reader("refcoco", refcoco, "train", seed=6)) != all_turns(reader)


@pytest.mark.parametrize(
    ("things", "versions", "per_item", "wanted"),
    [(1, 3, 3, 3), (2, 3, 3, 6), (3, 3, 3, 9), (4, 4, 3, 9), (4, 1, 3, 4), (4, 2, 2, 6)],
)
def test_an_image_is_asked_so_many_questions_about_different_things(
    tmp_path: Path, things: int, versions: int, per_item: int, wanted: int
) -> None:
    """The paper's setting: up to three questions for up to three expressions each."""
    instances = coco_set(tmp_path / COCO_FOLDER)
    refs = refs_of(instances, things, versions)
    write_refer(tmp_path, "refcoco", "refs(unc).p", instances, refs)
    reader = open_reader("refcoco", tmp_path, "train", per_item=per_item, questions_per_image=3)
    assert len(reader) == reader.counts()["images"] == 2
    seen = set()
    for epoch in range(25):
        for turns in all_turns(reader, epoch):
            asked_for = [asked(turn) for turn in turns]
            assert len(turns) <= 3
            for pairs in asked_for:
                assert len({annotation for annotation, _ in pairs}) == len(pairs) <= per_item
            assert sum(map(len, asked_for)) == len(set().union(*asked_for)) == wanted
            seen |= set().union(*asked_for)
    assert len(seen) == reader.counts()["questions"], "what is left over comes in other epochs"
    assert list(reader.check()) == []


def test_several_expressions_are_asked_together_in_turn_and_apart(refcoco: Path) -> None:
    reader = open_reader("refcoco", refcoco, "train")
    ways, named = set(), set()
    for epoch in range(12):
        for index in range(len(reader)):
            dialogues = [sample.turns for sample in reader.dialogues(index, epoch)]
            targets = [len(turn.targets) for turns in dialogues for turn in turns]
            if sum(targets) > 1:
                in_turn = max(map(len, dialogues)) > 1
                ways.add((len(dialogues) > 1, in_turn, max(targets) > 1))
            named |= {expression(*asked(t)[0]) in t.answer.lower() for ts in dialogues for t in ts}
    together, in_turn, apart = (False, False, True), (False, True, False), (True, False, False)
    assert ways == {together, in_turn, apart}
    assert named == {True, False}


def test_multi_refcoco_asks_groups_of_six_five_and_four(
    tmp_path: Path, instances: dict[str, Any]
) -> None:
    refs = refs_of(instances, things=4, versions=4)
    path = write_refer(tmp_path, "refcoco", "refs(unc).p", instances, refs)
    coco = _open_coco(path)
    reader = open_reader("multi-refcoco", tmp_path, "train")
    samples = reader.evaluation_samples()
    assert [len(sample.turns[0].targets) for sample in samples] == [6, 5, 4, 1] * 2
    in_order = [pair for sample in samples for pair in asked(sample.turns[0])]
    train = [ref for ref in refs if ref["split"] == "train"]
    assert in_order == [(ref["ann_id"], version) for ref in train for version in range(4)]
    first = samples[0].turns[0]
    assert f"{expression(*in_order[4])} and {expression(*in_order[5])} in this" in first.question
    assert first.answer == f"{', '.join([SEG_MARK] * 5)} and {SEG_MARK}."
    for turns in [[sample.turns[0] for sample in samples], *all_turns(reader)]:
        for turn in turns:
            for (annotation, _), target in zip(asked(turn), turn.targets, strict=True):
                assert _same(target.mask, coco, annotation)
    assert [len(turns) for turns in all_turns(reader)] == [1] * 8


def test_grefcoco_has_expressions_for_none_and_for_many(
    tmp_path: Path, instances: dict[str, Any]
) -> None:
    refs = refs_of(instances, versions=1)
    for ref in refs:
        ref["ann_id"], ref["category_id"] = [ref["ann_id"]], [ref["category_id"]]
        ref["no_target"] = False
    refs[0].update(ann_id=[-1], category_id=[-1], no_target=True)
    refs[1]["ann_id"] += refs[2]["ann_id"] + refs[3]["ann_id"]
    path = write_refer(tmp_path, "grefcoco", "grefs(unc).json", instances, refs)
    coco = _open_coco(path)
    reader = open_reader("grefcoco", tmp_path, "train")
    expected = {ref["sentences"][0]["sent"]: ref["ann_id"] for ref in refs}
    expected[refs[0]["sentences"][0]["sent"]] = []
    questions = [sample.turns[0] for sample in reader.evaluation_samples()]
    for turn in [*questions, *(turn for turns in all_turns(reader) for turn in turns)]:
        wanted = [a for pair in asked(turn) for a in expected[expression(*pair)]]
        assert len(turn.targets) == len(wanted)
        assert all(_same(t.mask, coco, a) for t, a in zip(turn.targets, wanted, strict=True))
    assert questions[0].targets == () and SEG_MARK not in questions[0].answer
    assert questions[1].answer == f"{SEG_MARK}, {SEG_MARK} and {SEG_MARK}."
    assert reader.counts()["targets"] == sum(map(len, (r["ann_id"] for r in refs[:8]))) - 1
    trained = sorted(p for turns in all_turns(reader) for turn in turns for p in asked(turn))
    assert trained == sorted(pair for turn in questions for pair in asked(turn))


def test_bad_rows_are_left_out_and_named(tmp_path: Path, instances: dict[str, Any]) -> None:
    refs = refs_of(instances, versions=1)
    without_mask = next(a for a in instances["annotations"] if a["id"] == refs[1]["ann_id"])
    without_mask["segmentation"] = []
    refs[0]["ann_id"] = 123456789
    refs[2]["sentences"][0]["sent"] = f"the cup {SEG_MARK}"
    refs[3]["sentences"][0]["sent"] = " "
    refs[4]["image_id"] = 987654321
    del refs[5]["sentences"]
    write_refer(tmp_path, "refcoco", "refs(unc).p", instances, refs)
    reader = open_reader("refcoco", tmp_path, "train")
    found = {bad.row: bad.reason for bad in reader.bad_rows}
    for row, reason in {
        "ref 0, sentence 0": "123456789 is missing",
        "ref 1, sentence 0": "or has no mask",
        "ref 2, sentence 0": SEG_MARK,
        "ref 3, sentence 0": "empty",
        "ref 4, sentence 0": "987654321 is missing",
        "entry 5": "'sentences'",
    }.items():
        assert reason in found.pop(row)
    assert found == {}
    assert {bad.file for bad in reader.bad_rows} == {reader.root / "refer_seg/refcoco/refs(unc).p"}
    assert len(reader.evaluation_samples()) == 2


def test_check_finds_what_shows_only_when_it_is_decoded(
    tmp_path: Path, instances: dict[str, Any]
) -> None:
    refs = refs_of(instances, versions=1)
    by_id = {one["id"]: one for one in instances["annotations"]}
    by_id[refs[0]["ann_id"]]["segmentation"] = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]
    by_id[refs[1]["ann_id"]]["segmentation"] = [[5.0, 5.0, 5.0, 5.0, 5.0, 5.0]]
    instances["images"][0]["height"] += 1
    for one in instances["annotations"]:  # run lengths would not fill the taller image
        if one["image_id"] == instances["images"][0]["id"] and isinstance(
            one["segmentation"], dict
        ):
            one["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    path = write_refer(tmp_path, "refcoco", "refs(unc).p", instances, refs)
    images = tmp_path / COCO_FOLDER
    (images / instances["images"][1]["file_name"]).unlink()
    reader = open_reader("refcoco", tmp_path, "train")
    assert reader.bad_rows == ()
    found = {(bad.file, bad.row): bad.reason for bad in reader.check()}
    assert "even length" in found.pop((path, f"annotation {refs[0]['ann_id']}"))
    assert "no pixel" in found.pop((path, f"annotation {refs[1]['ann_id']}"))
    assert "annotation says" in found.pop((images / instances["images"][0]["file_name"], ""))
    assert "missing" in found.pop((images / instances["images"][1]["file_name"], ""))
    assert found == {}
    with pytest.raises(ValueError, match=f"annotation {refs[0]['ann_id']}: .*even length"):
        list(reader)


def test_check_lists_entries_of_the_instances_file_that_no_question_can_use(
    tmp_path: Path, instances: dict[str, Any]
) -> None:
    refs = refs_of(instances, versions=1)
    asked_for = {ref["ann_id"] for ref in refs}
    row = next(i for i, one in enumerate(instances["annotations"]) if one["id"] in asked_for)
    lost = instances["annotations"][row]
    lost["segmentation"] = []
    count = len(instances["images"])
    instances["images"].append({"id": 77, "file_name": "a.jpg", "height": 0, "width": 4})
    instances["annotations"].append({"id": "seven", "image_id": 77, "segmentation": [[0, 0]]})
    path = write_refer(tmp_path, "refcoco", "refs(unc).p", instances, refs)
    found = list(open_reader("refcoco", tmp_path, "train").check())
    reasons = {bad.row: bad.reason for bad in found if bad.file == path}
    assert reasons == {
        f"annotation {row}": "It needs a segmentation, polygons or run lengths; a box alone is "
        "no mask.",
        f"image {count}": "Its height and width are 0 and 4.",
        f"annotation {len(instances['annotations']) - 1}": "It needs an image_id and a "
        "category_id.",
    }
    assert [f"{lost['id']} is missing" in bad.reason for bad in found if bad.file != path] == [True]


@pytest.mark.parametrize(
    ("marked", "belongs"),
    [
        ("train", {"train"}),
        ("val", {"val"}),
        ("testAB", {"testA", "testB", "test"}),
        ("testA", {"testA", "test"}),
        ("test", {"test"}),
    ],
)
def test_splits_of_refclef_share_entries(marked: str, belongs: set[str]) -> None:
    splits = ("train", "val", "testA", "testB", "testC", "test")
    assert {split for split in splits if is_in_split(split, marked)} == belongs


@pytest.mark.parametrize(
    ("name", "split", "options", "words"),
    [
        ("refcoco", "dev", {}, "no split 'dev'; choose train, val, testA"),
        ("refcoco", "val", {"partition": "umd"}, "no partition 'umd'; choose unc, google"),
        ("refcoco", "testA", {"partition": "google"}, "google of refcoco has no split 'testA'"),
        ("refcoco", "val", {"per_items": 2}, "per_items"),
        ("refcocco", "val", {}, "no data set 'refcocco'"),
        ("refcoco", "testB", {}, "no usable expression of testB"),
        ("refcoco", "train", {"questions_per_image": 0}, "at least 1"),
        ("multi-refcoco", "train", {"questions_per_image": 3}, "take refcoco to choose questions"),
    ],
)
def test_unknown_splits_partitions_and_options_are_refused(
    refcoco: Path, name: str, split: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        open_reader(name, refcoco, split, **options)


def test_an_image_can_not_lead_out_of_its_folder(tmp_path: Path, instances: dict[str, Any]) -> None:
    instances["images"][0]["file_name"] = "../../secret.jpg"
    write_refer(tmp_path, "refcoco", "refs(unc).p", instances, refs_of(instances))
    reader = open_reader("refcoco", tmp_path, "train")
    assert {"missing" in bad.reason for bad in reader.bad_rows} == {True}
    assert all("secret" not in str(sample.image) for sample in reader.evaluation_samples())


def test_images_may_lie_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    instances = coco_set(tmp_path / "mine")
    write_refer(tmp_path, "refcoco", "refs(google).p", instances, refs_of(instances))
    reader = open_reader("refcoco", tmp_path, "train", partition="google", images=tmp_path / "mine")
    assert list(reader.check()) == []
    assert reader[0][0].image.parent == tmp_path / "mine"
