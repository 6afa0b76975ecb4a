"""Folders in layouts that nobody reads: every command says what they are, in one sentence."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pixellm.cli.main import app

COCO = json.dumps({"images": [{"id": 1}], "annotations": [], "categories": []})
FILES = {
    "yolo": ({"data.yaml": "names: [cup]", "train/labels/a.txt": "0 0 0 1 1 0 1"}, "YOLO's format"),
    "ultralytics": ({"labels/val/a.txt": "0 0 0 1 1 0 1"}, "YOLO's format"),
    "voc": ({"Annotations/a.xml": "<annotation/>"}, "Pascal VOC's format"),
    "voc kit": ({"VOCdevkit/VOC2012/Annotations/a.xml": "<a/>"}, "Pascal VOC's format"),
    "deeper": ({"a/annotations/one.json": COCO}, "--with annotations=a/annotations/one.json"),
    "cvat": ({"annotations.xml": "<annotations/>"}, "export it as COCO 1.0"),
    "label studio": ({"result.json": COCO}, "--with annotations=result.json"),
    "several": (
        {"a/one.json": COCO, "a/two.json": COCO, "a/x.json": "{"},
        "a/one.json, a/two.json",
    ),
}


COMMANDS = {
    "data check": ("data", "check", "set"),
    "data preview": ("data", "preview", "coco", "--data", "set", "--out", "look"),
    "eval": ("eval", "coco", "--data", "set", "--model", "no-such-model"),
    "predict": ("predict", "coco", "--data", "set", "--model", "no-such-model"),
    "data questions": ("data", "questions", "--benchmark", "photos", "--data", "set", "--out", "a"),
}


@pytest.mark.parametrize(
    ("name", "command"),
    [*((name, "data check") for name in FILES), *(("label studio", one) for one in COMMANDS)],
)
def test_each_command_says_what_a_folder_is(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files, sentence = FILES[name]
    for path, content in files.items():
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / path).write_text(content)
    (tmp_path / "set/images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "set/images/a.jpg")
    result = CliRunner().invoke(app, list(COMMANDS[command]))
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_missing_folder_of_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val.json").write_text(COCO)
    result = CliRunner().invoke(app, ["predict", "coco", "--data", str(tmp_path), "--out", "-"])
    assert result.exit_code == 2 and "with --images" in result.stderr
