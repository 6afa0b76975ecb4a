"""Many images from the command line: the tiny model answers them, a stopped job goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from conftest import TINY_QUESTION, square_image
from conftest import run_command as run

pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture
def images(own_folder: Path) -> Path:
    """A folder of two images and one that is none, in the current folder."""
    folder = Path("images")
    folder.mkdir()
    for number in range(2):
        Image.fromarray(square_image((2, 3 + number))).save(folder / f"{number}.png")
    (folder / "broken.png").write_text("no image")
    return folder


def test_predict_writes_a_line_for_each_image_and_goes_on(
    images: Path, tiny_model_dir: Path
) -> None:
    command = ("predict", images, TINY_QUESTION, "--model", tiny_model_dir, "--batch-size", 1)
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "Wrote images_pixellm.jsonl: 2 answers." in result.stdout
    assert "Without an answer: 1;" in result.stderr
    assert "The first: broken.png is not an image" in result.stderr
    answers = Path("images_pixellm.jsonl")
    lines = [json.loads(line) for line in answers.read_text(encoding="ascii").splitlines()]
    assert [line["image"] for line in lines] == ["0.png", "1.png", "broken.png"]
    assert len(lines[0]["segments"]) == 2
    assert "broken.png is not an image" in lines[2]["error"]
    content = answers.read_bytes()
    answers.write_bytes(content[: len(content) // 2])
    assert run(*command).exit_code == 0
    assert answers.read_bytes() == content


def test_segment_takes_a_batch_instead_of_an_image(images: Path, tiny_model_dir: Path) -> None:
    rows = [{"image": "images/0.png", "question": TINY_QUESTION}]
    Path("rows.jsonl").write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    result = run("segment", "--batch", "rows.jsonl", "--json", "a.jsonl", "--model", tiny_model_dir)
    assert result.exit_code == 0, result.output
    (line,) = Path("a.jsonl").read_text(encoding="ascii").splitlines()
    answer = json.loads(line)
    assert answer["question"] == TINY_QUESTION
    assert len(answer["segments"]) == 2


def test_a_folder_is_labelled_by_one_command(images: Path, tiny_model_dir: Path) -> None:
    command = ("predict", images, "--model", tiny_model_dir, "--classes", "square,cup,Square")
    result = run(*command, "--export", "coco", "--export", "png")
    assert result.exit_code == 0, result.output
    text = Path("images_pixellm.jsonl").read_text(encoding="ascii")
    lines = [json.loads(line) for line in text.splitlines()]
    asked = [(line["image"], line["question"]) for line in lines]
    assert asked[:3] == [
        ("0.png", "Segment every square."),
        ("0.png", "Segment every cup."),
        ("1.png", "Segment every square."),
    ]
    values = json.loads(Path("images_pixellm_coco/instances.json").read_text())
    assert [one["name"] for one in values["categories"]] == ["square", "cup"]
    assert [one["file_name"] for one in values["images"]] == ["0.png", "1.png"]
    found = sum(len(line.get("segments", ())) for line in lines)
    assert len(values["annotations"]) == found
    assert f"Wrote images_pixellm_png: {found} objects of 2 classes in 2 images" in result.stdout
    assert "Without an answer, and not in it: 2." in result.stderr


def test_segment_exports_its_answer(images: Path, tiny_model_dir: Path) -> None:
    command = ("segment", images / "0.png", TINY_QUESTION, "--model", tiny_model_dir)
    result = run(*command, "--json", "-", "--export", "labelme")
    assert result.exit_code == 0, result.output
    segments = json.loads(result.stdout)["segments"]
    assert len(segments) == 2
    values = json.loads(Path("0_pixellm_labelme/0.json").read_text())
    assert len({shape["label"] for shape in values["shapes"]}) == 2


@pytest.mark.parametrize("command", [("predict",), ("segment", "--batch")])
def test_unsure_masks_of_many_images_are_withheld(
    command: tuple[str, ...], images: Path, tiny_model_dir: Path
) -> None:
    files = ("--model", tiny_model_dir, "--min-score", 1)
    result = run(*command, images, TINY_QUESTION, *files)
    assert result.exit_code == 0, result.output
    lines = Path("images_pixellm.jsonl").read_text(encoding="ascii").splitlines()
    assert [json.loads(line).get("segments") for line in lines] == [[], [], None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "images"], "say what to ask"),
        (["predict", "nowhere", "What?"], "no file or folder nowhere"),
        (["segment", "--batch", "images", "What?", "--out", "o.png"], "--json FILE"),
        (["segment"], "--batch"),
        (["predict", "images", "What?", "--classes", "cup"], "leave out 'What?'"),
        (["predict", "images", "--classes", "cup,,plate"], "commas between"),
        (["predict", "images", "What?", "--export", "cocoa"], "no format 'cocoa'"),
        (["predict", "images", "What?", "--export", "coco", "--out", "-"], "go to a file"),
        (["predict", "scenes", "--export", "coco"], "pixellm export ANSWERS"),
        (["segment", "images/0.png", "--classes", "cup"], "--batch"),
        (
            ["predict", "images", "What?", "--quantize", "int3", "--model", "nano"],
            "int8, int4 or nf4",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    images: Path, arguments: list[str], message: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
