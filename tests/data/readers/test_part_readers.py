"""PACO-LVIS and Pascal-Part as they lie on disk: parts by name, masks against filled polygons."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_photos import draw_photo, fill_polygon, rectangle, write_json

from pixellm.data.coco_sets import PacoLvis, PascalPart
from pixellm.masks import decode_mask

SIZE = (30, 40)
SHAPES = {
    1: [rectangle(0, 0, 20, 20)],
    2: [rectangle(15, 15, 20, 20)],
    3: [rectangle(2, 15, 7, 20)],
    4: [rectangle(30, 5, 35, 25)],
}


def coco_file(names, of_shape, image):
    return {
        "images": [{"id": 5, "height": SIZE[0], "width": SIZE[1], **image}],
        "annotations": [
            {"id": shape, "image_id": 5, "category_id": category, "segmentation": SHAPES[shape]}
            for shape, category in of_shape.items()
        ],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
    }


@pytest.fixture
def root(tmp_path):
    draw_photo(tmp_path / "coco" / "train2017" / "1.jpg", SIZE)
    write_json(
        tmp_path / "vlpart" / "paco" / "annotations" / "paco_lvis_v1_train.json",
        coco_file(
            {8: "car_(automobile)", 9: "car_(automobile):wheel", 3: "trash_can"},
            {1: 8, 2: 9, 3: 9, 4: 3},
            {"file_name": "train2017/1.jpg", "not_exhaustive_category_ids": []},
        ),
    )
    folder = tmp_path / "vlpart" / "pascal_part"
    draw_photo(folder / "VOCdevkit" / "VOC2010" / "JPEGImages" / "2008_1.jpg", SIZE)
    write_json(
        folder / "train.json",
        coco_file({1: "dog:head", 2: "cat:tail"}, {1: 1, 4: 2}, {"file_name": "2008_1.jpg"}),
    )
    return tmp_path


def answers(reader, epochs=30):
    return [s.turns[0] for epoch in range(epochs) for s in reader.dialogues(0, epoch)]


def test_instances_of_objects_and_parts_have_their_own_masks(root):
    reader = PacoLvis(root, targets="instances")
    assert set(reader.class_names) == {"car", "car wheel", "trash can"}
    found = [t for s in reader[0] for t in s.turns[0].targets]
    masks = {
        name: [decode_mask(t.mask) for t in found if t.name == name] for name in reader.class_names
    }
    assert np.array_equal(masks["car"][0], fill_polygon(SHAPES[1][0], SIZE))
    assert np.array_equal(masks["trash can"][0], fill_polygon(SHAPES[4][0], SIZE))
    left, right = masks["car wheel"]
    assert np.array_equal(left, fill_polygon(SHAPES[3][0], SIZE))
    assert np.array_equal(right, fill_polygon(SHAPES[2][0], SIZE))


def test_a_region_is_all_parts_of_that_name(root):
    found = {t.name: decode_mask(t.mask) for s in PacoLvis(root)[0] for t in s.turns[0].targets}
    both = fill_polygon(SHAPES[2][0], SIZE) | fill_polygon(SHAPES[3][0], SIZE)
    assert np.array_equal(found["car wheel"], both)


def test_parts_are_asked_for_both_ways_and_three_at_a_time(root):
    questions = [turn.question for turn in answers(PacoLvis(root))]
    assert any("the wheel of the car" in question for question in questions)
    assert any("the car wheel" in question for question in questions)
    assert not any("_" in question or "(" in question for question in questions)
    assert max(len(turn.targets) for turn in answers(PacoLvis(root))) == 3


def test_pascal_part_finds_its_images(root):
    reader = PascalPart(root)
    assert reader.class_names == ("dog head", "cat tail")
    assert not list(reader.check())
    first = reader.evaluation_samples()[0]
    assert first.turns[0].question == "Segment the head of the dog."
    assert np.array_equal(
        decode_mask(first.turns[0].targets[0].mask), fill_polygon(SHAPES[1][0], SIZE)
    )


def test_what_is_not_annotated_exhaustively_is_not_asked_for(root):
    content = coco_file(
        {8: "car", 9: "dog"},
        {1: 8, 4: 9},
        {"file_name": "train2017/1.jpg", "not_exhaustive_category_ids": [8]},
    )
    write_json(root / "vlpart" / "paco" / "annotations" / "paco_lvis_v1_train.json", content)
    asked = {target.name for turn in answers(PacoLvis(root), 3) for target in turn.targets}
    assert asked == {"dog"}


def test_what_is_missing_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"paco_lvis_v1_val\.json.*paco_lvis_v1\.zip"):
        PacoLvis(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="VLPart"):
        PascalPart(tmp_path)
