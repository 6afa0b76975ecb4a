"""COCO files of one's own, of parts and of expressions: every mask against another decoding."""

from __future__ import annotations

import json
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_photos import (
    PHOTOS,
    coco_values,
    draw_photo,
    expand_runs,
    fill_polygon,
    rectangle,
    write_json,
)
from PIL import Image

from pixellm.data.check import check_found, find_sets
from pixellm.data.coco_sets import OwnCoco, OwnExpressions, PacoLvis, PascalPart, coco_questions
from pixellm.data.dataset import Dataset
from pixellm.masks import decode_mask
from pixellm.types import SEG_MARK, Target, Turn

SIZE = (40, 60)
DOGS = [rectangle(30, 5, 40, 15), rectangle(2, 20, 12, 30)]
BIRD = {"size": list(SIZE), "counts": [100, 50, 2250]}
RINGS = [rectangle(0, 0, 5, 5), rectangle(10, 10, 20, 20)]
INSTANCES = "annotations/instances_train.json"


def shape(name: str, segmentation: Any, image: int = 1, **more: Any) -> dict[str, Any]:
    return {"name": name, "segmentation": segmentation, "image_id": image, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images: two dogs, a bird and a crowd of people; an image of a cat; one of nothing."""
    for number in (1, 2, 3):
        draw_photo(tmp_path / "train" / f"{number}.jpg", SIZE, number)
    shapes = [shape("dog", [dog]) for dog in DOGS]
    shapes += [shape("small_bird", BIRD), shape("cat", RINGS, 2)]
    shapes += [shape("person", [rectangle(40, 20, 60, 40)], iscrowd=1)]
    names = ("cat", "person", "dog", "small_bird")
    write_json(tmp_path / INSTANCES, coco_values(SIZE, names, *shapes, images=(1, 2, 3)))
    return tmp_path


def edit(root: Path, change: Callable[[Any], Any], file: str = INSTANCES) -> None:
    data = json.loads((root / file).read_text())
    change(data)
    write_json(root / file, data)


def turns_of(reader: Dataset, epoch: int = 0) -> list[Turn]:
    items = [reader.dialogues(index, epoch) for index in range(len(reader))]
    return [turn for item in items for sample in item for turn in sample.turns]


def masks_of(reader: Dataset) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for turn in turns_of(reader):
        for target in turn.targets:
            found[target.name].append(decode_mask(target.mask))
    return found


def same(masks: list[np.ndarray], *expected: Any) -> bool:
    filled = [fill_polygon(e, SIZE) if isinstance(e, list) else e for e in expected]
    return len(masks) == len(filled) and all(map(np.array_equal, masks, filled))


def test_every_instance_has_its_own_mask_from_left_to_right(root: Path) -> None:
    reader = OwnCoco(root)
    assert len(reader) == 2  # the third image shows nothing annotated
    found = masks_of(reader)
    assert found.keys() == {"dog", "small bird", "cat"}, "a crowd is never asked for one by one"
    assert same(found["dog"], DOGS[1], DOGS[0])
    assert same(found["small bird"], expand_runs(BIRD))
    assert found["cat"][0].sum() == 25 + 100
    objects = {target.name for item in reader for target in item[0].objects}
    assert objects == {*found, "person"}


def test_a_region_is_the_union_of_its_instances_and_crowds(root: Path) -> None:
    found = masks_of(OwnCoco(root, targets="regions"))
    assert len(found) == 4
    assert same(found["dog"], fill_polygon(DOGS[0], SIZE) | fill_polygon(DOGS[1], SIZE))
    assert found["person"][0].sum() == 400


def test_an_annotation_that_repeats_another_is_one_target_and_named(root: Path) -> None:
    def repeat(data: Any) -> None:
        dog, bird, crowd = (data["annotations"][number] for number in (0, 2, 4))
        data["annotations"] += [{**dog, "id": 90}, bird, crowd, {**dog, "category_id": 1}]

    edit(root, repeat)
    places = {"annotation 5": 0, "annotation 6": 2, "annotation 7": 4}
    for found in (OwnCoco(root, targets="regions"), coco_questions(root, "train")):
        told = {bad.row: bad.reason for bad in found.bad_rows}
        assert told.keys() == places.keys()
        assert all(f"repeats annotation {first}," in told[row] for row, first in places.items())
    assert {name: len(masks) for name, masks in masks_of(OwnCoco(root)).items()} == {
        "dog": 2,
        "small bird": 1,
        "cat": 2,
    }
    asked = {question.id: question.turns[0].targets for question in coco_questions(root, "train")}
    assert (len(asked["1-dog"]), len(asked["1-small_bird"]), len(asked["1-cat"])) == (2, 1, 1)
    assert OwnCoco(root).coco.find_annotation(90) == 5, "expressions may name it by its id"


def test_expressions_of_one_mask_count_each_and_the_same_twice_counts_once(root: Path) -> None:
    def describe(data: Any) -> None:
        dog = {**data["annotations"][0], "expression": "the left dog"}
        data["annotations"] += [dog, {**dog, "expression": "a small dog"}, dog]

    edit(root, describe)
    reader = OwnExpressions(root)
    assert reader.counts()["questions"] == 2
    (bad,) = reader.bad_rows
    assert bad.row == "annotation 7" and "repeats annotation 5, with its image" in bad.reason


def test_seed_and_epoch_decide_the_dialogues(root: Path) -> None:
    def words(seed: int, epoch: int) -> str:
        return str(turns_of(OwnCoco(root, seed=seed), epoch))

    assert words(1, 0) == words(1, 0)
    assert len({words(seed, epoch) for seed in range(3) for epoch in range(3)}) > 6
    reader = OwnCoco(root)
    assert pickle.loads(pickle.dumps(reader))[0] == reader[0]


def test_absent_categories_are_denied_where_asked_to(root: Path) -> None:
    reader = OwnCoco(root, negatives=1.0)
    assert len(reader) == 3
    for item in reader:
        (denial,) = [s.turns[0] for s in item if s.turns[0].kind == "absent"]
        assert SEG_MARK not in denial.answer
        assert not any(target.name in denial.question for target in item[0].objects)


def test_small_classes_wait_unless_nothing_is_larger(root: Path) -> None:
    reader = OwnCoco(root, min_area=0.07)
    items = [reader.item(number) for number in range(2)]
    names = [{t.name for sample in item for t in sample.turns[0].targets} for item in items]
    assert names == [{"dog"}, {"cat"}]


def test_evaluation_asks_for_each_category_of_each_image_alone(root: Path) -> None:
    samples = OwnCoco(root, seed=4).evaluation_samples()
    asked = [(s.turns[0].question, len(s.turns[0].targets)) for s in samples]
    assert asked == [
        ("Segment the dog.", 2),
        ("Segment the small bird.", 1),
        ("Segment the cat.", 1),
    ]
    assert samples[0].turns == OwnCoco(root, seed=9).evaluation_samples()[0].turns
    assert OwnCoco(root).counts() == {"images": 2, "questions": 3, "targets": 4, "classes": 4}


def test_bad_rows_are_listed_with_their_place_and_never_used(root: Path) -> None:
    def damage(data: Any) -> None:
        rows = data["annotations"]
        rows[0]["segmentation"] = [[1, 2, 3, 4]]
        rows += [rows[1] | {"image_id": 77}, rows[1] | {"category_id": 44}, {"id": 8}, None]
        rows.append(rows[2] | {"image_id": 2, "segmentation": {"size": [7, 7], "counts": [49]}})
        rows.append(rows[1] | {"image_id": 10})
        good = data["images"][0]
        wrong = ({"file_name": "../9.jpg"}, {"height": "tall"}, {"width": True}, {"id": None})
        data["images"] += [good | {"id": 9 + n} | one for n, one in enumerate(wrong)]
        data["categories"] += [{"id": 11, "name": f"sly {SEG_MARK}"}, {"id": 12}]

    edit(root, damage)
    reader = OwnCoco(root)
    found = {bad.row: bad.reason for bad in reader.check()}
    for row, reason in {
        "annotation 0": "three points",
        "annotation 5": "no image 77",
        "annotation 6": "no category 44",
        "annotation 7": "image_id and a category_id",
        "annotation 8": "image_id and a category_id",
        "annotation 9": "(7, 7)",
        "annotation 10": "Its image is left out",
        "image 3": "leads out",
        "image 4": "height and width",
        "image 5": "height and width",
        "image 6": "needs an id",
        "category 11": "holds {seg}",
        "category 12": "no text but None",
        "category 'person'": "crowds",
    }.items():
        assert reason in found.pop(row)
    assert found == {}
    # One dog of two can't be used, so "the dogs" would lie.
    assert masks_of(reader).keys() == {"small bird", "cat"}


def test_check_finds_images_that_are_missing_wrong_or_turned(root: Path) -> None:
    (root / "train/1.jpg").unlink()
    draw_photo(root / "train/2.jpg", SIZE[::-1])
    first, second = sorted(bad.reason for bad in OwnCoco(root, targets="regions").check())
    assert first.startswith("The image is (60, 40), its annotation says (40, 60)")
    assert second == "The image is missing."
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_photo(root / "train/2.jpg", SIZE[::-1], exif=exif)
    assert [bad.reason for bad in OwnCoco(root, targets="regions").check()] == [second]


def test_a_class_of_crowds_alone_is_told_with_a_way_out(root: Path) -> None:
    """CVAT marks every brush mask as a crowd."""
    (bad,) = OwnCoco(root).bad_rows
    assert bad.row == "category 'person'"
    assert "iscrowd" in bad.reason and "targets=regions" in bad.reason
    assert not OwnCoco(root, targets="regions").bad_rows


def test_an_image_with_nothing_usable_names_itself(root: Path) -> None:
    edit(root, lambda data: data["annotations"][3].update(segmentation=[rectangle(70, 0, 80, 9)]))
    reader = OwnCoco(root)
    with pytest.raises(ValueError, match=r"instances_train\.json, image 1: No class"):
        reader.item(1)
    assert {bad.row for bad in reader.check()} == {"annotation 3", "image 1", "category 'person'"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": "boxes"}, "instances or regions"),
        ({"classes_per_question": 0}, "classes_per_question of coco is at least 1, not 0"),
        ({"questions_per_image": 0}, "at least 1"),
        ({"negatives": 2}, "between 0 and 1"),
        ({"split": "dev"}, "choose train, val, test"),
        ({"annotations": "foreign.json", "images": "train"}, "has no images and no categories"),
    ],
)
def test_impossible_options_and_foreign_files_are_refused(
    root: Path, options: dict[str, Any], words: str
) -> None:
    write_json(root / "foreign.json", {"rows": []})
    with pytest.raises(ValueError, match=words):
        OwnCoco(root, **options)
    with pytest.raises(
        FileNotFoundError, match=r"nowhere\.json, .* holds annotations/instances_train"
    ):
        OwnCoco(root, annotations="nowhere.json")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the set of photos")
def test_real_photos_mask_by_mask() -> None:
    from pycocotools.coco import COCO

    reader = OwnCoco(PHOTOS, "val", images="{split}/images", targets="instances")
    truth = COCO(str(PHOTOS / "annotations" / "instances_val.json"))
    names = {one["id"]: one["name"] for one in truth.dataset["categories"]}
    expected = defaultdict(list)
    for row in truth.dataset["annotations"]:
        expected[row["image_id"]].append((names[row["category_id"]], truth.annToMask(row)))
    for item in range(0, len(reader), 7):
        (first, *rest) = reader.item(item)
        wanted = expected[int(first.id.split("-")[2])]
        assert len(first.objects) == len(wanted)
        for target in [*first.objects, *(t for s in (first, *rest) for t in s.turns[0].targets)]:
            mask = decode_mask(target.mask)
            assert any(name == target.name and np.array_equal(mask, m) for name, m in wanted)


# Files as other tools write them.


def one_cup(root: Path, **changes: Any) -> Path:
    """A file of one cup, with changes of its image, annotation and category, and more."""
    draw_photo(root / "img/a.jpg", SIZE)
    values = coco_values(SIZE, ("cup",), shape("cup", [rectangle(4, 4, 20, 12)], iscrowd=0))
    values["images"][0] |= {"file_name": "a.jpg", **changes.get("image", {})}
    values["annotations"][0] |= changes.get("annotation", {})
    values["categories"][0] |= changes.get("category", {})
    values["categories"] += changes.get("more", [])
    return write_json(root / "x.json", values)


def report(path: Path, **options: Any) -> Any:
    (found,) = find_sets(path, options={"images": str(path.parent / "img"), **options})
    return check_found(found)


BOX = rectangle(4, 4, 20, 12)


@pytest.mark.parametrize(
    "changes",
    [
        {"image": {"id": "1"}, "annotation": {"image_id": 1.0}},
        {"annotation": {"category_id": "1"}},
        {"category": {"id": 1.0}},
        {"image": {"height": 40.0, "width": "60"}},
        {"image": {"file_name": ".\\a.jpg"}},
        {"annotation": {"iscrowd": "0"}},
        {"annotation": {"iscrowd": None}},
        {"annotation": {"segmentation": BOX}},
        {"annotation": {"segmentation": [[BOX]]}},
        {"category": {"name": 7}},
    ],
)
def test_files_of_other_tools_are_read(tmp_path: Path, changes: Any) -> None:
    found = report(one_cup(tmp_path, **changes))
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
        ({"category": {"name": "half \ud83d emoji"}}, "category 1", "half a character"),
    ],
)
def test_every_bad_row_has_its_reason_where_all_are_bad(
    tmp_path: Path, changes: Any, row: str, reason: str
) -> None:
    found = {bad.row: bad.reason for bad in report(one_cup(tmp_path, **changes)).bad_rows}
    assert reason in found[row]
    assert "no image with a mask that can be asked for" in found[""]


def test_a_class_with_too_many_targets_everywhere_is_told(tmp_path: Path) -> None:
    path = one_cup(tmp_path)
    assert report(path, max_instances=1).bad_rows == ()

    def add_cups(values: Any) -> None:
        (cup,) = values["annotations"]
        shapes = [[rectangle(x, 0, x + 4, 4)] for x in (0, 8)]
        values["annotations"] += [{**cup, "segmentation": one} for one in shapes]

    edit(tmp_path, add_cups, path.name)
    (bad, _) = report(path, max_instances=2).bad_rows
    assert bad.row == "category 'cup'" and "3 targets, max_instances is 2" in bad.reason


@pytest.mark.parametrize("other", [(), ("spoon",)])
def test_groups_and_backgrounds_are_never_asked_for_and_never_denied(
    tmp_path: Path, other: tuple[str, ...]
) -> None:
    more = [{"id": n, "name": name} for n, name in enumerate(("dishes", "_background_", *other), 2)]
    one_cup(tmp_path, category={"supercategory": "dishes"}, more=more)
    reader = OwnCoco(tmp_path, annotations="x.json", images="img", negatives=1)
    asked = [turn for epoch in range(4) for turn in turns_of(reader, epoch)]
    denied = [turn.question + turn.answer for turn in asked if not turn.targets]
    assert bool(denied) == bool(other) and all("spoon" in text for text in denied)
    assert {len(turn.targets) for turn in asked} == {1, *(0 for _ in other)}


@pytest.mark.parametrize(
    ("file", "images", "found"),
    [
        (INSTANCES, "train", "coco train"),
        ("annotations/instances_val2017.json", "val2017", "coco val"),
        ("annotations/instances_val2017.json", "images/val2017", "coco val"),
        ("annotations/instances_default.json", "images/default", "coco train"),
        ("train/_annotations.coco.json", "train", "coco train"),
        ("valid/_annotations.coco.json", "valid", "coco val"),
        ("annotations/instances_default.json", "images", "coco train"),
    ],
)
def test_folders_are_found_as_tools_export_them(
    tmp_path: Path, file: str, images: str, found: str
) -> None:
    path, folder = one_cup(tmp_path / "made"), tmp_path / "set"
    (folder / file).parent.mkdir(parents=True)
    path.rename(folder / file)
    image = draw_photo(folder / images / "a.jpg", SIZE)
    (one,) = find_sets(folder)
    assert one.label == found
    assert check_found(one).bad_rows == ()
    (question,) = coco_questions(folder, found.split()[1])
    assert question.image == image


# Parts.

PARTS = [rectangle(0, 0, 20, 20), rectangle(15, 15, 20, 20), rectangle(2, 15, 7, 20)]
CAN = rectangle(30, 5, 35, 25)
PACO = "vlpart/paco/annotations/paco_lvis_v1_train.json"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    draw_photo(tmp_path / "coco/train2017/1.jpg", SIZE)
    car, wheel = "car_(automobile)", "car_(automobile):wheel"
    shapes = [shape(name, [box]) for name, box in zip((car, wheel, wheel), PARTS, strict=True)]
    values = coco_values(SIZE, (car, wheel, "trash_can"), *shapes, shape("trash_can", [CAN]))
    values["images"][0]["file_name"] = "train2017/1.jpg"
    write_json(tmp_path / PACO, values)
    folder = tmp_path / "vlpart/pascal_part"
    draw_photo(folder / "VOCdevkit/VOC2010/JPEGImages/1.jpg", SIZE)
    heads = [shape("dog:head", [PARTS[0]]), shape("cat:tail", [CAN])]
    write_json(folder / "train.json", coco_values(SIZE, ("dog:head", "cat:tail"), *heads))
    return tmp_path


def test_objects_and_parts_have_their_own_masks_and_regions(parts: Path) -> None:
    reader = PacoLvis(parts, targets="instances")
    assert set(reader.class_names) == {"car", "car wheel", "trash can"}
    found = masks_of(reader)
    assert same(found["car"], PARTS[0]) and same(found["trash can"], CAN)
    assert same(found["car wheel"], PARTS[2], PARTS[1])
    both = fill_polygon(PARTS[1], SIZE) | fill_polygon(PARTS[2], SIZE)
    assert same(masks_of(PacoLvis(parts))["car wheel"], both)


def test_parts_are_asked_for_both_ways_and_three_at_a_time(parts: Path) -> None:
    reader = PacoLvis(parts)
    turns = [turn for epoch in range(30) for turn in turns_of(reader, epoch)]
    questions = [turn.question for turn in turns]
    assert any("the wheel of the car" in question for question in questions)
    assert any("the car wheel" in question for question in questions)
    assert not any("_" in question or "(" in question for question in questions)
    assert max(len(turn.targets) for turn in turns) == 3


def test_pascal_part_finds_its_images(parts: Path) -> None:
    reader = PascalPart(parts)
    assert reader.class_names == ("dog head", "cat tail")
    assert not list(reader.check())
    turn = reader.evaluation_samples()[0].turns[0]
    assert turn.question == "Segment the head of the dog."
    assert same([decode_mask(turn.targets[0].mask)], PARTS[0])


def test_what_is_not_annotated_exhaustively_is_not_asked_for(parts: Path) -> None:
    edit(parts, lambda data: data["images"][0].update(not_exhaustive_category_ids=[1, 2]), PACO)
    assert masks_of(PacoLvis(parts)).keys() == {"trash can"}


# Expressions.

CUPS = [rectangle(5 * n, 2, 5 * n + 4, 20) for n in range(5)]


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """Five cups, each described; the first in two ways, the last not at all."""
    draw_photo(tmp_path / "train/1.jpg", SIZE)
    texts: list[dict[str, Any]] = [
        {"expressions": ["The first cup.", "leftmost one"]},
        {"caption": "a green cup"},
        {"description": "the cup in the middle"},
        {"expression": "cup 4"},
        {},
    ]
    shapes = [shape("cup", [cup], **more) for cup, more in zip(CUPS, texts, strict=True)]
    write_json(tmp_path / INSTANCES, coco_values(SIZE, ("cup",), *shapes))
    return tmp_path


def test_an_epoch_asks_for_each_expression_once(described: Path) -> None:
    reader = OwnExpressions(described)
    assert reader.counts() == {"images": 1, "questions": 5, "targets": 5}
    wanted = Counter(fill_polygon(CUPS[n], SIZE).tobytes() for n in (0, 0, 1, 2, 3))
    for epoch in range(5):
        targets = [target for turn in turns_of(reader, epoch) for target in turn.targets]
        assert Counter(decode_mask(target.mask).tobytes() for target in targets) == wanted
        assert {target.name for target in targets} == {"cup"}


def test_evaluation_asks_for_one_expression_at_a_time(described: Path) -> None:
    asked = [sample.turns for sample in OwnExpressions(described).evaluation_samples()]
    words = ["first cup", "green cup", "cup in the middle", "cup 4", "leftmost one"]
    for (turn,), cup, said in zip(asked, [*CUPS[:4], CUPS[0]], words, strict=True):
        (target,) = turn.targets
        assert isinstance(target, Target) and said in turn.question
        assert same([decode_mask(target.mask)], cup)


def test_expressions_that_cannot_stand_in_a_sentence_are_listed(described: Path) -> None:
    edit(described, lambda data: data["annotations"][1].update(caption="a {seg} cup"))
    edit(described, lambda data: data["annotations"][3].update(expression=" "))
    reader = OwnExpressions(described)
    assert [bad.row for bad in reader.check()] == ["annotation 1", "annotation 3"]
    assert reader.counts()["questions"] == 3


def test_a_file_without_expressions_says_what_to_do(root: Path) -> None:
    with pytest.raises(ValueError, match="put one under 'expression', or read the file as the set"):
        OwnExpressions(root)
