"""What damaged files have shown to be wrong once, each as the smallest file that shows it."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stated
import yaml
from benchmark_layouts import write_benchmark
from damaged_files import SIDE, check, coco_values, command, draw
from damaged_jobs import TINY_RECIPE, answer_of
from PIL import Image
from typer.testing import CliRunner

from pixellm.cli.main import app
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


def test_a_tiff_has_strips_for_all_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "photo.tif"
    Image.new("RGB", SIDE[::-1], "red").save(path)
    assert load_image(path).size == SIDE[::-1]
    data = bytearray(path.read_bytes())
    height = data.index((257).to_bytes(2, "little") + (4).to_bytes(2, "little")) + 8
    data[height + 2] = 1  # 65,536 rows more, which Pillow takes for black
    path.write_bytes(data)
    for read in (load_image, probe_image, load_stored):
        with pytest.raises(ValueError, match="strips end before its"):
            read(path)


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


def test_an_expression_of_no_pixel_is_not_asked(tmp_path: Path) -> None:
    write_benchmark("refcoco", tmp_path)
    folder = tmp_path / "refer_seg/refcoco"
    path = folder / "instances.json"
    values = json.loads(path.read_text("utf-8"))
    values["annotations"][0]["segmentation"] = [[]]
    path.write_text(json.dumps(values), "utf-8")
    reading = partial(stated.refer, path, folder / "refs(unc).p")
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


def damage_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"decoder_heads": -2}, "decoder_heads is -2; it must be at least 1"),
        ("config.json", {"decoder_heads": 0}, "decoder_heads is 0; it must be at least 1"),
        ("config.json", {"codebook_token_ids": [9, 8, 7, 6]}, "do not belong together"),
        ("config.json", {"codebook_token_ids": [6, 7000, 8, 9]}, "do not belong together"),
        ("generation_config.json", {"eos_token_id": "2"}, "is no token"),
        ("generation_config.json", {"eos_token_id": [2, 10**6]}, "is no token"),
    ],
)
def test_a_model_whose_files_disagree_does_not_answer(
    file: str, values: dict[str, object], message: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    damage_json(model / file, **values)
    with pytest.raises(ValueError, match=message):
        answer_of(model)


@pytest.mark.parametrize("template", ["{{ messages", "{{ messages[7].role.x }}", "{{ 1 // 0 }}"])
def test_a_damaged_chat_template_is_told(
    template: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (model / "chat_template.jinja").write_text(template, "utf-8")
    with pytest.raises(ValueError, match="chat template fails"):
        answer_of(model)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stages.0.steps", "true", "True is no value of it"),
        ("model.settings.decoder_sizes", "16", "model.settings has no decoder_sizes"),
        ("model.text.config.num_hidden_layerss", "2", "is it num_hidden_layers"),
        ("model.text.config.num_key_value_heads", "2000", "No model can be built from"),
    ],
)
def test_a_recipe_that_says_what_nobody_reads_is_refused(
    key: str, value: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(TINY_RECIPE), "utf-8")
    result = CliRunner().invoke(app, ["train", str(path), "--dry-run", "--set", f"{key}={value}"])
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
