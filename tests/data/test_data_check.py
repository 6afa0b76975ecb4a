"""`pixellm data check`: what is there, what is missing, every bad row, and the exit code."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from drawn_photos import coco_values, draw_photo, rectangle, write_json
from PIL import Image
from typer.testing import CliRunner

from pixellm.cli.main import app
from pixellm.data.coco_sets import OwnCoco, coco_questions

SIZE = (30, 40)
SHAPE = [rectangle(2, 3, 12, 20)]
PHOTOS, LABELS = "ade20k/images/training", "ade20k/annotations/training"


def run(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def coco(path):
    """A COCO file of one photo, a dog in it."""
    return write_json(path, coco_values(SIZE, ("dog",), {"name": "dog", "segmentation": SHAPE}))


def muse(path, *questions):
    """A MUSE file as the generator writes it, of one photo that lies elsewhere."""
    instance = {"category_id": 1, "category_name": "dog", "rephrased_name": "the dog"}
    instance |= {"bbox": [2, 3, 10, 17], "segmentation": SHAPE}
    entry = {"file_name": "1.jpg", "height": SIZE[0], "width": SIZE[1], "ann_list": [instance]}
    entry["questions"] = [question for question, _ in questions]
    entry["answers"] = [[instance, instance] for _ in questions]
    entry["text_answers"] = [answer for _, answer in questions]
    return write_json(path, [entry])


@pytest.fixture
def root(tmp_path):
    """A folder with ADE20K, whole, and one's own COCO file."""
    draw_photo(tmp_path / PHOTOS / "a.jpg", SIZE)
    (tmp_path / LABELS).mkdir(parents=True)
    Image.new("L", SIZE[::-1], 3).save(tmp_path / LABELS / "a.png")
    draw_photo(tmp_path / "train" / "1.jpg", SIZE)
    coco(tmp_path / "annotations" / "instances_train.json")
    return tmp_path


def test_good_sets_are_counted_and_absent_ones_say_where_to_get_them(root):
    result = run(root)
    assert result.exit_code == 0, result.output
    for words in (
        "ade20k train: 1 images, 1 questions, 1 targets, 150 classes; no bad row",
        "coco train: 1 images",
        "Not there: refcoco ",
        "Not there: cocostuff (COCO-Stuff: 171 classes of things and stuff): download",
    ):
        assert words in result.output
    assert "coco-expressions" not in result.output
    (root / "ade20k").rename(root / "elsewhere")
    own = run(root)
    assert own.exit_code == 0 and "coco train" in own.output
    assert "Not there" not in own.output


def test_every_bad_row_is_shown_and_written_and_the_exit_code_is_1(root):
    draw_photo(root / PHOTOS / "b.jpg", (9, 9))
    for name in ("b.png", "c.png"):
        Image.new("L", SIZE[::-1], 3).save(root / LABELS / name)
    result = run(root, "--set", "ade20k", "--limit", 1, "--report", root / "bad.csv")
    assert result.exit_code == 1
    assert "2 bad rows" in result.output
    assert "and 1 more" in result.output
    assert "Not there" not in result.output
    with (root / "bad.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["c.png", "b.jpg"]
    assert "(9, 9)" in rows[1]["reason"]


def test_missing_parts_and_damaged_files_are_errors_of_their_set(root):
    shutil.rmtree(root / PHOTOS)
    result = run(root, "--set", "ade20k")
    assert result.exit_code == 1
    assert "images/training: It is missing; download ADEChallengeData2016.zip" in result.output
    (root / "annotations" / "instances_train.json").write_text('{"images": [')
    result = run(root, "--set", "coco")
    assert result.exit_code == 1
    assert "instances_train.json ends in the middle" in result.output


@pytest.mark.parametrize("name", ["muse_train.json", "muse_train-00000-of-00002.json"])
def test_what_curate_writes_is_checked_with_its_photos(root, tmp_path, name):
    out = tmp_path / "curated"
    muse(out / name, ("Which two?", "The dog {seg} and it {seg}."))
    good = run(out, "--images", root / "train")
    assert good.exit_code == 0, good.output
    assert f"{name}: 1 images, 1 questions, 2 targets" in good.output
    assert "Not there" not in good.output
    lost = run(out)
    assert lost.exit_code == 1
    assert "name their folder with --images" in lost.output
    muse(out / name, ("Which two?", "The dog {seg} and it {seg}."), ("Which?", "Only it {seg}."))
    bad = run(out, "--images", root / "train")
    assert bad.exit_code == 1
    assert "entry 0, question 1" in bad.output


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "", "a.json is empty"),
        ("a.json", "[]", "neither JSONL dialogues nor"),
        ("a.jsonl", " \n\n", "a.jsonl is empty"),
        ("a.json", '{"images": [], "annotations": [], "categories": []}', "no images and no cat"),
    ],
)
def test_a_file_without_anything_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    result = run(tmp_path / name)
    assert result.exit_code in (1, 2) and says in result.output
    assert result.exit_code == 2 or "1 bad row" in result.output


def test_single_files_are_told_by_their_content(root):
    mine = coco(root / "mine.json")
    assert run(mine, "--images", root / "train").exit_code == 0
    row = {"image": "train/1.jpg", "turns": [{"question": "Who?", "answer": "Nobody."}]}
    (root / "talk.jsonl").write_text(json.dumps(row) + "\n{\n")
    talk = run(root / "talk.jsonl")
    assert talk.exit_code == 1
    assert "talk.jsonl, line 2: It is no JSON" in talk.output
    speech = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Nobody."}]
    llava = write_json(root / "llava.json", [{"image": "1.jpg", "conversations": speech}])
    assert run(llava, "--images", root / "train").exit_code == 0
    other = run(write_json(root / "other.json", [{"a": 1}]))
    assert other.exit_code == 2
    assert "other.json is neither JSONL dialogues" in other.output


def test_own_files_in_other_places_are_found_with_options(root):
    coco(root / "labels" / "export.json")
    result = run(root, "--set", "coco", "--with", "annotations=labels/export.json")
    assert result.exit_code == 0, result.output
    refused = run(root, "--set", "coco", "--with", "colour=red")
    assert refused.exit_code == 1
    assert "colour" in refused.output


def test_coco_below_the_folder_of_all_sets_is_found_as_a_benchmark_finds_it(tmp_path):
    draw_photo(tmp_path / "coco" / "val2017" / "1.jpg", SIZE)
    coco(tmp_path / "coco" / "annotations" / "instances_val2017.json")
    checked = run(tmp_path)
    assert checked.exit_code == 0, checked.output
    assert "coco val: 1 images" in checked.output
    assert len(coco_questions(tmp_path, "val")) == len(OwnCoco(tmp_path, "val")) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no folder or file at nowhere"),
        ([".", "--set", "imagenet"], "no data set 'imagenet'"),
        ([".", "--set", "coco", "--with", "oops"], "NAME=VALUE"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.output
    empty = run(tmp_path)
    assert empty.exit_code == 2
    assert "holds no data set" in empty.output
