"""What a person gets from each command; bad input is in test_cli_errors.py."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from conftest import (
    TINY_QUESTION,
    TINY_QUESTION_WITHOUT_MASKS,
    run_command,
    square_image,
    square_sample,
    tiny_parts,
)
from pixellm.answer_files import mask_files
from pixellm.cli.display import answer_text, print_answer
from pixellm.files import write_files
from pixellm.masks import decode_mask, mask_to_box
from pixellm.training import stream
from pixellm.types import Prediction, Sample, Segment
from pixellm.visualize import segment_color

pytestmark = pytest.mark.usefixtures("loaded_once")

run = run_command
KEYS = ["image", "width", "height", "question", "answer", "model", "segments", "withheld"]
SEGMENT_KEYS = ["label", "score", "bbox", "area", "span", "segmentation"]


def squares_answer() -> Prediction:
    masks = [decode_mask(target.mask) for target in square_sample().turns[0].targets]
    text = "A red square and a [bold]blue one\x1b[2J."
    segments = (
        Segment("A red square", masks[0], 0.9, (0, 12)),
        Segment("a [bold]blue one", masks[1], 0.5, (17, 33)),
    )
    return Prediction(text, segments, TINY_QUESTION, (32, 24))


def test_segment_prints_the_answer_with_a_legend_and_writes_an_overlay(
    image: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    result = run("segment", image, TINY_QUESTION, "--model", tiny_model_dir)
    assert result.exit_code == 0, result.output
    first = result.stdout.splitlines()[0]
    assert "[1]" in first and "[2]" in first and result.stderr == ""
    assert all(words in result.stdout for words in ("label", "px", "Wrote squares_pixellm.png"))
    overlay = Image.open("squares_pixellm.png")
    assert overlay.size == (24, 32)
    assert not np.array_equal(np.asarray(overlay), np.asarray(Image.open(image)))
    run("segment", image, TINY_QUESTION, "--model", tiny_model_dir, "--json", "answer.json")
    names = {"squares.png", "squares_pixellm.png", "answer.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_segment_says_what_it_withholds(image: Path, tiny_model_dir: Path) -> None:
    result = run("segment", image, TINY_QUESTION, "--model", tiny_model_dir, "--min-score", 1)
    assert result.exit_code == 0, result.output
    assert "2 masks are filtered: their score is too low." in result.stdout
    assert "What the answer names may not be there." in result.stdout
    assert "[1]" not in result.stdout
    refused = run("segment", image, TINY_QUESTION, "--min-score", 1.5)
    assert refused.exit_code == 2 and "--min-score" in refused.stderr


def test_json_masks_and_overlay_hold_the_same_answer(image: Path, tiny_model_dir: Path) -> None:
    files = ["--json", "new/answer.json", "--masks", "new/masks", "--out", "seen.jpg"]
    result = run("segment", image, TINY_QUESTION, "--model", tiny_model_dir, *files)
    assert result.exit_code == 0, result.output
    answer = json.loads(Path("new/answer.json").read_text())
    assert list(answer) == KEYS
    assert answer["image"] == "squares.png"
    assert (answer["width"], answer["height"]) == (24, 32)
    assert answer["question"] == TINY_QUESTION
    assert answer["model"] == str(tiny_model_dir)
    assert len(answer["segments"]) == 2
    masks = sorted(Path("new/masks").iterdir())
    assert len(masks) == 2
    for number, (segment, path) in enumerate(zip(answer["segments"], masks, strict=True), 1):
        assert list(segment) == SEGMENT_KEYS
        mask = decode_mask(segment["segmentation"])
        assert mask.shape == (32, 24)
        assert segment["area"] == mask.sum()
        assert segment["bbox"] == list(mask_to_box(mask))
        assert segment["label"] == answer["answer"][slice(*segment["span"])]
        assert 0 <= segment["score"] <= 1
        assert path.name.startswith(f"{number:02d}_")
        assert np.array_equal(np.asarray(Image.open(path)) == 255, mask)
    with Image.open("seen.jpg") as seen:
        assert (seen.format, seen.size) == ("JPEG", (24, 32))
    assert not Path("squares_pixellm.png").exists()


def test_the_question_stays_as_typed(image: Path, tiny_model_dir: Path) -> None:
    question = "  What's [SEG0] <image>\n— “ÿ”? "
    result = run("segment", image, question, "--model", tiny_model_dir, "--json", "-")
    assert json.loads(result.stdout)["question"] == question


def test_an_answer_without_masks_has_no_legend(image: Path, tiny_model_dir: Path) -> None:
    question = TINY_QUESTION_WITHOUT_MASKS
    files = ["--json", "answer.json", "--masks", "masks"]
    result = run("segment", image, question, "--model", tiny_model_dir, *files)
    assert result.exit_code == 0, result.output
    assert "label" not in result.stdout
    assert json.loads(Path("answer.json").read_text())["segments"] == []
    assert list(Path("masks").iterdir()) == []


def test_phrases_carry_their_masks_colours_and_the_terminal_obeys_no_answer() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=100)
    print_answer(console, squares_answer())
    shown = file.getvalue()
    for index in range(2):
        red, green, blue = segment_color(index)
        assert f"38;2;{red};{green};{blue}m" in shown
    assert "\x1b[2J" not in shown
    plain = answer_text(squares_answer()).plain
    assert plain == "A red square [1] and a [bold]blue one [2]\N{REPLACEMENT CHARACTER}[2J."


def test_a_phrase_with_several_masks_is_said_once() -> None:
    mask = np.ones((2, 2), dtype=np.bool_)
    spans = [(9, 17), (9, 17), (22, 29)]
    text = "Here are the dogs and the cat."
    segments = tuple(Segment(text[a:b], mask, 0.5, (a, b)) for a, b in spans)
    plain = answer_text(Prediction(text, segments, "q", (2, 2))).plain
    assert plain == "Here are the dogs [1] [2] and the cat [3]."


def test_names_of_mask_files_are_safe() -> None:
    mask = np.ones((2, 2), dtype=np.bool_)
    labels = ["../a\\b: the LEFT one?", "", "x" * 300, "красный шар"]
    segments = tuple(Segment(label, mask, 1.0, (0, 0)) for label in labels)
    names = [path.name for path in mask_files(Prediction("", segments, "q", (2, 2)), Path("m"))]
    assert names[:2] == ["01_a-b-the-left-one.png", "02_mask.png"]
    assert names[2] == f"03_{'x' * 40}.png"
    assert names[3] == "04_красный-шар.png"


def test_files_are_replaced_as_a_whole_and_links_are_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_files({link: b"new"})
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    write_files({Path("/dev/null"): b"gone"})
    assert not Path("/dev/null").is_file()


def test_chat_saves_changes_the_image_and_helps(
    image: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "the other.png"
    Image.fromarray(square_image((4, 6))).resize((48, 64)).save(other)
    lines = [
        "/help",
        TINY_QUESTION,
        TINY_QUESTION_WITHOUT_MASKS,
        "",
        TINY_QUESTION,
        "/save",
        "/save my image.png",
        f"/image {other}",
        TINY_QUESTION,
        "/save",
        "/quit",
        "never asked",
    ]
    result = run("chat", image, "--model", tiny_model_dir, text="\n".join(lines))
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    for command in ("/save", "/image", "/quit"):
        assert command in result.stdout
    assert Image.open("squares_pixellm.png").size == (24, 32)
    assert Image.open("my image.png").size == (24, 32)
    assert Image.open("the other_pixellm.png").size == (48, 64)


def test_chat_survives_bad_input(image: Path, tiny_model_dir: Path) -> None:
    lines = [
        "/save",
        "/image missing.png",
        "/image",
        "/sing",
        "long " * 300,
        TINY_QUESTION,
        "\udcff is no text",
        "long " * 300,
        "/save squares.png",
        "/save squares.png/at-all.png",
    ]
    typed = "\n".join(lines).encode("utf-8", "surrogateescape")
    result = run("chat", image, "--model", tiny_model_dir, text=typed)
    assert result.exit_code == 0, result.output
    complaints = result.stderr.splitlines()
    expected = ["ask something first", "missing.png", "/image PATH", "/sing", "context holds 256"]
    expected += ["half a character", "something shorter. /image PATH begins anew."]
    expected += ["the image itself", "cannot be written"]
    assert len(complaints) == len(expected)
    for complaint, words in zip(complaints, expected, strict=True):
        assert words in complaint
    assert not complaints[4].endswith("begins anew.")
    assert "[1]" in result.stdout


class Squares:
    """Endless copies of the one image that the tiny model knows."""

    class_names = ("red square", "blue square")

    def __init__(self, length: int = 8) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        return (square_sample(),)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three steps on squares, as YAML."""
    monkeypatch.setitem(stream.DATASETS, "squares", "test_cli:Squares")
    stage = {"name": "joint", "steps": 3, "batch_size": 2, "learning_rate": 0.001}
    settings = {
        "name": "trial",
        "output_dir": str(tmp_path / "runs"),
        "model": tiny_parts(),
        "data": [{"name": "squares"}],
        "collate": {"mask_size": 16, "max_length": 128},
        "stages": [stage],
        "checkpoint": {"every_steps": 2},
        "log_every": 1,
        "threads": 1,
        "vocabulary_samples": 2,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(settings))
    return path


def test_train_shows_what_trains_and_how_it_goes_and_resumes(recipe: Path, tmp_path: Path) -> None:
    result = run("train", recipe, "--set", "name=other", "--set", "stages.0.steps=4")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "other"
    assert str(folder / "model") in result.stdout
    assert (folder / "model" / "config.json").is_file()
    shown = result.stderr
    for words in ("Stage joint: 4 steps", "parameters", "step 4/4 joint: ", "images/s", "left"):
        assert words in shown
    for loss in ("text", "mask", "dice", "total"):
        assert f"{loss} " in shown
    again = run("train", recipe, "--set", "name=other", "--set", "stages.0.steps=4")
    assert again.exit_code == 2
    assert "already holds a run" in again.stderr
    resumed = run("train", recipe, "--set", "name=other", "--set", "stages.0.steps=5", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "step 5/5" in resumed.stderr
    assert "step 4/5 joint:" not in resumed.stderr


def test_eval_scenes_prints_tables_and_writes_what_the_library_reports(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "scenes.json"
    options = ["--num", 2, "--dialogues", 1, "--seed", 3, "--batch-size", 2, "--json", target]
    result = run("eval", "scenes", "--model", tiny_model_dir, *options)
    assert result.exit_code == 0, result.output
    values = json.loads(target.read_text())
    settings = values["settings"]
    assert settings["model"] == str(tiny_model_dir)
    assert (settings["split"], settings["seed"], settings["num_scenes"]) == ("test", 3, 2)
    assert settings["dialogues_per_image"] == 1
    folder = Path(f"scenes_test_{tiny_model_dir.name}_free_strict_2x1_seed3")
    report = json.loads((folder / "report.json").read_text())
    assert values == report
    for words in ("giou_targets", "named_set_accuracy", "By kind", "targets", "2 images"):
        assert words in result.stdout
    again = run("eval", "scenes", "--model", tiny_model_dir, *options)
    assert json.loads(target.read_text()) == values, again.output


def test_data_scenes_writes_images_annotations_and_a_sheet(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    result = run("data", "scenes", "--split", "test", "--num", 2, "--seed", 7, "--out", out)
    assert result.exit_code == 0, result.output
    assert len(list((out / "images").iterdir())) == 2
    assert len(json.loads((out / "muse_test.json").read_text())) == 2
    assert (out / "contact_sheet.png").is_file()
    assert run("data", "scenes", "--num", 2, "--out", out).exit_code == 2
    assert run("data", "scenes", "--num", 2, "--out", out, "--overwrite").exit_code == 0
