"""Your own COCO file: every mask against an independent decoding, and nothing bad used silently."""

from __future__ import annotations

import json
import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest
from drawn_photos import PHOTOS, draw_photo, expand_runs, fill_polygon, rectangle, write_json

from pixellm.data.coco_sets import OwnCoco
from pixellm.masks import decode_mask
from pixellm.types import SEG_MARK

SIZE = (40, 60)
DOGS = [rectangle(30, 5, 40, 15), rectangle(2, 20, 12, 30)]
BIRD = {"size": list(SIZE), "counts": [100, 50, 2250]}


def annotation(number, image, category, segmentation, crowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": crowd,
        "segmentation": segmentation,
    }


@pytest.fixture
def root(tmp_path):
    """Two images: two dogs, a bird and a crowd of people; an image of a cat with two rings."""
    for number in (1, 2, 3):
        draw_photo(tmp_path / "train" / f"{number}.jpg", SIZE, number)
    write_json(
        tmp_path / "annotations" / "instances_train.json",
        {
            "annotations": [
                annotation(1, 1, 7, [DOGS[0]]),
                annotation(2, 1, 7, [DOGS[1]]),
                annotation(3, 1, 9, BIRD),
                annotation(4, 1, 5, [rectangle(40, 20, 60, 40)], crowd=1),
                annotation(5, 2, 3, [rectangle(0, 0, 5, 5), rectangle(10, 10, 20, 20)]),
            ],
            "images": [
                {"id": n, "file_name": f"{n}.jpg", "height": SIZE[0], "width": SIZE[1]}
                for n in (1, 2, 3)
            ],
            "categories": [
                {"id": 3, "name": "cat"},
                {"id": 5, "name": "person"},
                {"id": 7, "name": "dog"},
                {"id": 9, "name": "small_bird"},
            ],
        },
    )
    return tmp_path


def edit(root, change):
    path = root / "annotations" / "instances_train.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def turns_of(reader):
    return [turn for item in reader for sample in item for turn in sample.turns]


def test_every_instance_has_its_own_mask_from_left_to_right(root):
    reader = OwnCoco(root)
    assert len(reader) == 2  # the third image shows nothing annotated
    targets = [target for turn in turns_of(reader) for target in turn.targets]
    assert Counter(target.name for target in targets) == {"dog": 2, "small bird": 1, "cat": 1}
    dogs = [decode_mask(target.mask) for target in targets if target.name == "dog"]
    assert np.array_equal(dogs[0], fill_polygon(DOGS[1], SIZE))
    assert np.array_equal(dogs[1], fill_polygon(DOGS[0], SIZE))
    (bird,) = (target for target in targets if target.name == "small bird")
    assert np.array_equal(decode_mask(bird.mask), expand_runs(BIRD))
    (cat,) = (target for target in targets if target.name == "cat")
    assert decode_mask(cat.mask).sum() == 25 + 100


def test_a_region_is_the_union_of_its_instances_and_crowds(root):
    targets = [t for turn in turns_of(OwnCoco(root, targets="regions")) for t in turn.targets]
    masks = {target.name: decode_mask(target.mask) for target in targets}
    assert len(targets) == len(masks) == 4
    both = fill_polygon(DOGS[0], SIZE) | fill_polygon(DOGS[1], SIZE)
    assert np.array_equal(masks["dog"], both)
    assert masks["person"].sum() == 400


def test_a_crowd_is_never_asked_for_one_by_one(root):
    reader = OwnCoco(root)
    assert all("person" not in turn.question for turn in turns_of(reader))
    objects = reader[0][0].objects + reader[1][0].objects
    assert "person" in {target.name for target in objects}


def test_the_same_seed_and_epoch_give_the_same_dialogues_and_others_do_not(root):
    def words(seed, epoch):
        reader = OwnCoco(root, seed=seed)
        return [s.turns for index in range(2) for s in reader.dialogues(index, epoch)]

    assert words(1, 0) == words(1, 0)
    assert len({str(words(seed, epoch)) for seed in range(3) for epoch in range(3)}) > 6


def test_absent_categories_are_denied_where_asked_to(root):
    reader = OwnCoco(root, negatives=1.0)
    assert len(reader) == 3
    for item in reader:
        denials = [s.turns[0] for s in item if s.turns[0].kind == "absent"]
        shown = {target.name for target in item[0].objects}
        assert len(denials) == 1
        assert SEG_MARK not in denials[0].answer
        assert not any(name in denials[0].question for name in shown)


def test_small_classes_wait_unless_nothing_is_larger(root):
    reader = OwnCoco(root, min_area=0.07)
    names = [
        {target.name for sample in item for target in sample.turns[0].targets}
        for item in (reader.item(number) for number in range(2))
    ]
    assert names == [{"dog"}, {"cat"}]


def test_evaluation_asks_for_each_category_of_each_image_alone(root):
    samples = OwnCoco(root, seed=4).evaluation_samples()
    assert [s.turns[0].question for s in samples] == [
        "Segment the dog.",
        "Segment the small bird.",
        "Segment the cat.",
    ]
    assert [len(s.turns[0].targets) for s in samples] == [2, 1, 1]
    assert samples[0].turns == OwnCoco(root, seed=9).evaluation_samples()[0].turns
    assert OwnCoco(root).counts() == {"images": 2, "questions": 3, "targets": 4, "classes": 4}


def test_bad_rows_are_listed_with_their_place_and_never_used(root):
    def spoil(data):
        rows = data["annotations"]
        rows[0]["segmentation"] = [[1, 2, 3, 4]]
        rows.append(annotation(6, 77, 7, [DOGS[0]]))
        rows.append(annotation(7, 1, 4, [DOGS[0]]))
        rows.append({"id": 8})
        rows.append(annotation(9, 2, 9, {"size": [7, 7], "counts": [49]}))
        data["images"].append({"id": 9, "file_name": "../9.jpg", "height": 4, "width": 4})
        data["categories"].append({"id": 11, "name": f"sly {SEG_MARK}"})

    edit(root, spoil)
    reader = OwnCoco(root)
    found = {bad.row: bad.reason for bad in reader.check()}
    assert set(found) == {
        "annotation 0",
        "annotation 5",
        "annotation 6",
        "annotation 7",
        "annotation 8",
        "image 3",
        "category 11",
        "category 'person'",  # a crowd alone
    }
    assert "three points" in found["annotation 0"]
    assert "no image 77" in found["annotation 5"]
    assert "no category 4" in found["annotation 6"]
    assert "(7, 7)" in found["annotation 8"]
    asked = {target.name for turn in turns_of(reader) for target in turn.targets}
    assert asked == {"small bird", "cat"}  # one dog of two can't be used, so "the dogs" would lie


def test_check_finds_missing_and_wrong_images(root):
    (root / "train" / "1.jpg").unlink()
    draw_photo(root / "train" / "2.jpg", (SIZE[1], SIZE[0]))
    reasons = sorted(bad.reason for bad in OwnCoco(root, targets="regions").check())
    assert len(reasons) == 2
    assert reasons[0].startswith("The image is (60, 40), its annotation says (40, 60)")
    assert reasons[1] == "The image is missing."


def test_an_image_turned_by_exif_is_seen_upright(root):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    draw_photo(root / "train" / "2.jpg", (SIZE[1], SIZE[0]), exif=exif)
    assert not list(OwnCoco(root, targets="regions").check())


def test_a_class_of_crowds_alone_is_told_with_a_way_out(root):
    """CVAT marks every brush mask as a crowd."""
    (bad,) = OwnCoco(root).bad_rows
    assert bad.row == "category 'person'"
    assert "iscrowd" in bad.reason and "targets=regions" in bad.reason
    assert not OwnCoco(root, targets="regions").bad_rows


def test_an_image_with_nothing_usable_names_itself(root):
    edit(root, lambda data: data["annotations"][4].update(segmentation=[rectangle(70, 0, 80, 9)]))
    reader = OwnCoco(root)
    with pytest.raises(ValueError, match=r"instances_train\.json, image 1: No class"):
        reader.item(1)
    assert {bad.row for bad in reader.check()} == {"annotation 4", "image 1", "category 'person'"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": "boxes"}, "instances or regions"),
        ({"classes_per_question": 0}, "at least 1"),
        ({"questions_per_image": 0}, "at least 1"),
        ({"negatives": 2}, "between 0 and 1"),
        ({"split": "dev"}, "choose train, val, test"),
    ],
)
def test_impossible_options_are_refused(root, options, words):
    with pytest.raises(ValueError, match=words):
        OwnCoco(root, **options)


def test_missing_and_foreign_files_say_so(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json, which is missing; export"):
        OwnCoco(root, annotations="nowhere.json")
    write_json(tmp_path / "foreign.json", {"rows": []})
    with pytest.raises(ValueError, match=r"foreign\.json has no images and no categories"):
        OwnCoco(root, annotations="foreign.json", images="train")


def test_a_worker_gets_it_without_the_annotations(root):
    reader = OwnCoco(root)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy[0] == reader[0]


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the set of photos")
def test_real_photos_mask_by_mask():
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
