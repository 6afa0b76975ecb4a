"""What an answer turns into: drawings, files, COCO, detections, a notebook's HTML."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import supervision
from PIL import Image
from pycocotools import mask as coco_mask

from conftest import TINY_QUESTION, square_image
from pixellm.answer import Answer
from pixellm.engine import Engine
from pixellm.files import OccupiedError
from pixellm.types import Prediction, Segment


def answer_by_hand(image: object = None) -> Answer:
    left = np.zeros((40, 60), dtype=np.bool_)
    left[5:15, 10:30] = True
    ring = np.zeros((40, 60), dtype=np.bool_)
    ring[20:39, 30:59] = True
    ring[25:30, 40:50] = False
    text = "A <cup> & a ring."
    segments = (Segment("<cup>", left, 0.9, (2, 7)), Segment("a ring", ring, 0.75, (10, 16)))
    return Answer.of(Prediction(text, segments, "What <b>is</b> there?", (40, 60)), image)  # type: ignore[arg-type]


def test_an_engine_s_answer_shows_itself(tiny_engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "squares.png"
    Image.fromarray(square_image((2, 3))).save(path)
    answer = tiny_engine.predict(path, TINY_QUESTION)
    assert isinstance(answer, Answer) and len(answer.segments) == 2
    assert answer.overlay().size == answer.size[::-1]
    assert answer.to_dict()["image"] == "squares.png"
    pixels = tiny_engine.predict(square_image((2, 3)), TINY_QUESTION)
    assert np.array_equal(np.asarray(pixels.overlay()), np.asarray(answer.overlay()))


def test_segments_know_their_geometry() -> None:
    cup, ring = answer_by_hand().segments
    assert cup.bbox == (10, 5, 20, 10)
    assert cup.area == 200
    (corners,) = cup.polygons
    assert {tuple(corner) for corner in corners.tolist()} == {(10, 5), (30, 5), (30, 15), (10, 15)}
    assert ring.area == 19 * 29 - 50


def test_coco_and_supervision_hold_the_same_masks() -> None:
    answer = answer_by_hand()
    coco, found = answer.to_coco(), answer.to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found.data["class_name"].tolist() == ["<cup>", "a ring"]
    for number, (one, segment) in enumerate(zip(coco["annotations"], answer.segments, strict=True)):
        assert np.array_equal(coco_mask.decode(one["segmentation"]).astype(bool), segment.mask)
        assert found.mask is not None and np.array_equal(found.mask[number], segment.mask)
        x, y, width, height = segment.bbox
        assert found.xyxy[number].tolist() == [x, y, x + width, y + height]
    nothing = Answer.of(Prediction("No.", (), "Is there?", (4, 5)), None)
    assert len(nothing.to_supervision()) == 0
    assert nothing.to_coco()["annotations"] == []


def test_saving_writes_an_image_or_json_and_no_foreign_file(tmp_path: Path) -> None:
    source = tmp_path / "photo.png"
    Image.new("RGB", (60, 40), "gray").save(source)
    answer = answer_by_hand(source)
    answer.save(tmp_path / "seen.png")
    answer.save(tmp_path / "seen.json")
    answer.save(tmp_path / "seen.json")
    with Image.open(tmp_path / "seen.png") as image:
        assert image.size == (60, 40)
    assert json.loads((tmp_path / "seen.json").read_text()) == answer.to_dict()
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(OccupiedError):
        answer.save(tmp_path / "mine.json")
    with pytest.raises(ValueError, match="image itself"):
        answer.save(source)


def test_a_changed_or_unknown_image_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not know its image"):
        answer_by_hand().overlay()
    Image.new("RGB", (61, 40)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match="when it was asked about"):
        answer_by_hand(tmp_path / "other.png").overlay()


def test_a_notebook_s_html_is_well_formed_and_escapes_what_a_model_says() -> None:
    answer = answer_by_hand(np.full((40, 60, 3), 90, dtype=np.uint8))
    shown = answer._repr_html_()
    root = ElementTree.fromstring(shown.replace("<br>", "<br/>"))
    assert len(root.findall(".//path")) == 2
    assert [one.text for one in root.findall(".//span")] == ["<cup>", "a ring"]
    assert [one.text for one in root.findall(".//title")] == ["<cup>, 0.90", "a ring, 0.75"]
    image = root.find(".//image")
    assert image is not None and image.get("href", "").startswith("data:image/jpeg;base64,")
    other = answer._repr_html_()
    assert re.findall(r'id="([^"]+)"', shown) != re.findall(r'id="([^"]+)"', other)
