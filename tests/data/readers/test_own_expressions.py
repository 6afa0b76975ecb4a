"""A COCO file whose annotations are described: each expression once an epoch, with its mask."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from drawn_photos import draw_photo, fill_polygon, rectangle, write_json

from pixellm.data.coco_sets import OwnExpressions
from pixellm.masks import decode_mask

SIZE = (30, 40)
SHAPES = [rectangle(5 * n, 2, 5 * n + 4, 20) for n in range(5)]


@pytest.fixture
def root(tmp_path):
    """Five cups, each described; the first in two ways, the last not at all."""
    draw_photo(tmp_path / "train" / "1.jpg", SIZE)
    texts = [
        {"expressions": ["The first cup.", "leftmost one"]},
        {"caption": "a green cup"},
        {"description": "the cup in the middle"},
        {"expression": "cup 4"},
        {},
    ]
    write_json(
        tmp_path / "annotations" / "instances_train.json",
        {
            "images": [{"id": 1, "file_name": "1.jpg", "height": SIZE[0], "width": SIZE[1]}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 2, "segmentation": [SHAPES[n]], **texts[n]}
                for n in range(5)
            ],
            "categories": [{"id": 2, "name": "cup"}],
        },
    )
    return tmp_path


def test_an_epoch_asks_for_each_expression_once(root):
    reader = OwnExpressions(root)
    assert reader.counts() == {"images": 1, "questions": 5, "targets": 5}
    for epoch in range(5):
        targets = [
            target
            for index in range(len(reader))
            for sample in reader.dialogues(index, epoch)
            for turn in sample.turns
            for target in turn.targets
        ]
        seen = Counter(decode_mask(target.mask).tobytes() for target in targets)
        wanted = [fill_polygon(shape, SIZE).tobytes() for shape in SHAPES[:4]]
        assert seen == Counter([*wanted, wanted[0]])
        assert {target.name for target in targets} == {"cup"}


def test_evaluation_asks_for_one_expression_at_a_time(root):
    samples = OwnExpressions(root).evaluation_samples()
    assert len(samples) == 5
    for sample, shape, words in zip(
        samples,
        [*SHAPES[:4], SHAPES[0]],
        ["first cup", "green cup", "cup in the middle", "cup 4", "leftmost one"],
        strict=True,
    ):
        (turn,) = sample.turns
        assert words in turn.question
        assert np.array_equal(decode_mask(turn.targets[0].mask), fill_polygon(shape, SIZE))


def test_expressions_that_cannot_stand_in_a_sentence_are_listed(root):
    path = root / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace("a green cup", "a {seg} cup").replace("cup 4", " "))
    reader = OwnExpressions(root)
    assert [bad.row for bad in reader.check()] == ["annotation 1", "annotation 3"]
    assert reader.counts()["questions"] == 3


def test_a_file_without_expressions_says_what_to_do(root):
    path = root / "annotations" / "instances_train.json"
    for key in ("expression", "caption", "description"):
        path.write_text(path.read_text().replace(key, f"x{key}"))
    with pytest.raises(ValueError, match="put one under 'expression', or read the file as the set"):
        OwnExpressions(root)
