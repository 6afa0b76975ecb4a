"""Photos asked for what an encoder finds: what it shows, what it can't show, and what it doubts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixellm import example_image
from pixellm.labelling.seen_photos import SeenPhotos

# Boxes (x, y, width, height) in the bundled photo of a cup of coffee, 600 x 400 pixels.
CUP = [156, 62, 270, 236]
NOWHERE = [5, 5, 30, 30]


@pytest.fixture
def coffee(tmp_path: Path) -> Any:
    """Opens the photo with annotated boxes by name."""

    def open_with(**boxes: list[int]) -> SeenPhotos:
        image = Image.open(example_image("coffee"))
        (tmp_path / "train").mkdir(exist_ok=True)
        image.save(tmp_path / "train" / "coffee.png")
        names = [name.replace("_", " ") for name in boxes]
        shapes = [
            {
                "id": number,
                "image_id": 1,
                "category_id": number,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                "iscrowd": 0,
            }
            for number, (x, y, w, h) in enumerate(boxes.values(), start=1)
        ]
        values = {
            "images": [
                {"id": 1, "file_name": "coffee.png", "width": image.width, "height": image.height}
            ],
            "annotations": shapes,
            "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
        }
        path = tmp_path / "annotations" / "instances_train.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
        return SeenPhotos(tmp_path)

    return open_with


def test_what_the_encoder_shows_is_asked_for_and_what_shows_no_sign_is_denied(coffee: Any) -> None:
    data = coffee(cup=CUP, airplane=NOWHERE)
    kept = {one.name: one.askable for one in data.teachable(data.row(0)).classes}
    assert kept == {"cup": True}
    asked = SeenPhotos(data.root, kinds={"every": 1.0, "negative": 1.0})
    answers = [
        (turn.question.lower(), turn.answer)
        for epoch in range(12)
        for sample in asked.dialogues(0, epoch)
        for turn in sample.turns
    ]
    planes = [answer for question, answer in answers if "airplane" in question]
    assert planes
    assert all(" no airplane" in answer for answer in planes)


def test_what_is_there_but_not_where_it_was_annotated_is_left_open(coffee: Any) -> None:
    data = coffee(cup=NOWHERE)
    assert [(one.name, one.askable) for one in data.teachable(data.row(0)).classes] == [
        ("cup", False)
    ]


def test_what_nobody_annotated_and_is_surely_there_is_never_denied(coffee: Any) -> None:
    data = coffee(cup=CUP, chair=NOWHERE)
    seen = data.row(0)
    without = data.teachable(type(seen)(seen.image, seen.size, seen.id, ()))
    assert ("cup", False) in [(one.name, one.askable) for one in without.classes]
    assert "cup" in data.uncertain(without)


def test_kinds_that_the_encoder_does_not_know_stay_as_they_are(coffee: Any) -> None:
    data = coffee(saucer=NOWHERE)
    assert data.teachable(data.row(0)).classes == data.row(0).classes


def test_an_encoder_is_looked_at_before_anything_is_asked(coffee: Any) -> None:
    root = coffee(cup=CUP).root
    with pytest.raises(ValueError, match="tells no evidence"):
        SeenPhotos(root, encoder="nano-scenes")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SeenPhotos(root, encoder="nowhere")
