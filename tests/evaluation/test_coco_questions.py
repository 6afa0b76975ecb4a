"""The coco benchmark's questions, from a tiny annotation file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixellm.evaluation.benchmarks import open_questions
from pixellm.masks import decode_mask


def box(x: int, y: int, side: int) -> list[list[int]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(number: int, image: int, category: int, **fields: object) -> dict[str, object]:
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, **fields}


CROWD = {"size": [20, 30], "counts": [0, 40, 560]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val" / "images").mkdir(parents=True)
    values = {
        "images": [
            {"id": 9, "file_name": "nine.png", "height": 20, "width": 30},
            {"id": 4, "file_name": "four.png", "height": 20, "width": 30},
        ],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}],
        "annotations": [
            annotation(1, 4, 2, segmentation=box(2, 2, 5)),
            annotation(2, 9, 2, segmentation=box(1, 1, 4)),
            annotation(3, 9, 1, segmentation=box(10, 10, 6)),
            annotation(4, 9, 1, segmentation=box(20, 10, 6)),
            annotation(5, 9, 1, segmentation=CROWD, iscrowd=1),
            annotation(6, 4, 1, segmentation=CROWD, iscrowd=1),
        ],
    }
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(values))
    for name in ("nine.png", "four.png"):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "val" / "images" / name)
    return tmp_path


def test_every_category_of_every_image_is_asked_once(root):
    questions = open_questions("coco", "val", root)
    asked = [(sample.image.name, sample.turns[0].question) for sample in questions]
    assert asked == [
        ("nine.png", "segment the cup"),
        ("nine.png", "segment the dog"),
        ("four.png", "segment the dog"),
    ]
    assert all(sample.image.is_file() for sample in questions)


def test_instances_are_targets_and_crowds_are_ignored(root):
    sample = open_questions("coco", "val", root)[0]
    (turn,) = sample.turns
    assert turn.answer == "The cup {seg} and the cup {seg}."
    assert turn.kind == "cup"
    assert [int(decode_mask(target.mask).sum()) for target in turn.targets] == [36, 36]
    assert int(decode_mask(turn.targets[0].ignore).sum()) == 40


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '{"images": [{}]}'])
def test_a_damaged_file_and_a_missing_split_are_named(root, content):
    (root / "annotations" / "instances_val.json").write_text(content)
    with pytest.raises(ValueError, match=r"instances_val\.json (has no|is no JSON)"):
        open_questions("coco", "val", root)
    with pytest.raises(FileNotFoundError, match="COCO split 'test'"):
        open_questions("coco", "test", root)
