"""What damaged files have shown to be wrong once, each as the smallest file that shows it."""

from __future__ import annotations

import io
import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stated
from benchmark_layouts import write_benchmark
from damaged_files import SIDE, check, coco_values, command, draw
from PIL import Image

from pixellm.data.reasonseg import read_annotation
from pixellm.image_files import load_image, load_stored, probe_image


def coco_of(folder: Path, values: dict[str, Any], rest: str = "") -> str:
    """How a check of two images with these annotations ends."""
    for number in (1, 2):
        draw(folder / f"{number}.jpg")
    path = folder / "export.json"
    path.write_text(json.dumps(values) + rest, "utf-8")
    reading = partial(stated.coco, path)
    return check(path, "--images", str(folder), reading=reading)


def test_a_byte_of_a_label_image_makes_no_other_class(tmp_path: Path) -> None:
    labels = np.repeat(np.array([0, 1, 3, 3], np.uint8), SIDE[1] // 4)[None].repeat(SIDE[0], 0)
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG")
    whole = buffer.getvalue()
    path = tmp_path / "labels.png"
    start = whole.index(b"IDAT") + 4
    silent = 0
    for at in range(start, whole.index(b"IEND") - 8):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with Image.open(path) as image:
            try:
                silent += not np.array_equal(np.array(image), labels)
            except OSError:
                continue
        for read in (load_image, load_stored, probe_image):
            with pytest.raises(ValueError, match=r"labels\.png is damaged .* not those"):
                read(path)
    assert silent  # without check sums the classes would be others
    path.write_bytes(whole)
    assert np.array_equal(np.array(load_stored(path)), labels)


def test_truth_values_are_no_coordinates(tmp_path: Path) -> None:
    values = coco_values()
    assert coco_of(tmp_path, values) == "used"
    values["annotations"][0]["segmentation"][0][0] = True
    assert coco_of(tmp_path, values) == "bad rows"


def test_without_a_list_of_annotations_nothing_is_known_to_be_absent(tmp_path: Path) -> None:
    write_benchmark("photos", tmp_path)
    options = ("data", "check", str(tmp_path), "--set", "photos", "--split", "val")
    path = tmp_path / "annotations/instances_val.json"
    values = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**values, "annotations": []}), "utf-8")
    assert command(*options) == "used"
    del values["annotations"]
    path.write_text(json.dumps(values), "utf-8")
    assert command(*options) == "bad rows"


def test_a_file_ends_where_its_json_does(tmp_path: Path) -> None:
    assert coco_of(tmp_path, coco_values(), "\n ") == "used"
    assert coco_of(tmp_path, coco_values(), "]") == "bad rows"


def test_a_name_that_can_not_be_seen_is_no_name(tmp_path: Path) -> None:
    values = coco_values()
    values["categories"][0]["name"] = "\0"
    assert coco_of(tmp_path, values) == "bad rows"


@pytest.mark.parametrize("number", [-float("inf"), 1.7, True, "[1]"])
def test_an_id_of_the_refer_family_is_a_whole_number(number: object, tmp_path: Path) -> None:
    write_benchmark("refcoco", tmp_path)
    folder = tmp_path / "refer_seg/refcoco"
    path = folder / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    refs[0]["ann_id"] = number
    path.write_bytes(pickle.dumps(refs))
    reading = partial(stated.refer, folder / "instances.json", path)
    options = ("--set", "refcoco", "--split", "val")
    assert check(tmp_path, *options, reading=reading) == "bad rows"


def test_ids_as_a_text_are_no_list_of_ids(tmp_path: Path) -> None:
    write_benchmark("grefcoco", tmp_path)
    folder = tmp_path / "refer_seg/grefcoco"
    path = folder / "grefs(unc).json"
    refs = json.loads(path.read_text("utf-8"))
    refs[3]["ann_id"] = "12"
    path.write_text(json.dumps(refs), "utf-8")
    reading = partial(stated.refer, folder / "instances.json", path)
    assert check(tmp_path, "--set", "grefcoco", "--split", "val", reading=reading) == "used"


def test_a_line_is_no_region_of_reasonseg(tmp_path: Path) -> None:
    triangle = {"label": "target", "points": [[8, 8], [24, 8], [24, 24]]}
    path = tmp_path / "a.json"
    values = {"text": ["the cup"], "is_sentence": False, "shapes": [triangle]}
    for points in ([[30, 30]], [[30, 30], [40, 30]]):
        values["shapes"] = [triangle, {"label": "target", "points": points}]
        path.write_text(json.dumps(values), "utf-8")
        assert len(read_annotation(path)["shapes"]) == 1
        values["shapes"] = [{"label": "target", "points": points}]
        path.write_text(json.dumps(values), "utf-8")
        with pytest.raises(ValueError, match="no shape labelled target"):
            read_annotation(path)
