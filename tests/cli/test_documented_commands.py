"""Commands that the pages show: each can be typed, and runs or says what it needs behind a #."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from pixellm.cli.main import app
from pixellm.image_files import example_image, image_size
from pixellm.masks import encode_mask

pytestmark = pytest.mark.usefixtures("loaded_once")

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OF_THE_PROGRAM = ("--help", "--version", "--install-completion", "--show-completion")
"""Options that belong to no command."""
PROGRAM: Any = typer.main.get_command(app)
MARKED = re.compile(r"#.*\b(needs|takes|fetches) ")
"""A command that a test can't run: it needs weights, a GPU or a data set, or takes hours."""
RUN_BY = {
    "pixellm serve": "tests/serving/test_stop.py",  # it does not end by itself
    "pixellm train pixellm_7b --dry-run --gpus 8": "tests/training/test_run_plan.py",
}
"""Commands that another test runs."""
SHORTER = {"--num 100": "--num 2", "--num 500": "--num 2", "num=100": "num=2"}
"""Numbers of drawn scenes, as far as the test goes."""
BOX = (150, 100, 300, 200)
IN_A_TABLE = re.compile(r"`(pixellm [^`]* --[^`]*)`")
INDENTED_OR_FENCED = re.compile(r"^(?: {4}|\$ )?(?:[A-Z_]+=\S+ )*(pixellm .*)$")


def shown_commands(page: Path, in_tables: bool = True) -> list[str]:
    """Lines of code blocks that begin with ``pixellm``, and such cells of tables."""
    commands, fenced = [], False
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        found = INDENTED_OR_FENCED.match(line)
        if found and (fenced or line.startswith("    ")):
            commands.append(found.group(1))
        if line.startswith("|") and in_tables:
            commands += IN_A_TABLE.findall(line)
    return commands


def parse(words: list[str]) -> None:
    """Let the command's own parser take the words, without running it."""
    command = PROGRAM
    while hasattr(command, "list_commands"):
        assert words[:1] and words[0] in command.list_commands(None), "no such command"
        command = command.get_command(None, words.pop(0))
    command.make_context(command.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_on_a_page_can_be_typed(page: Path) -> None:
    for line in shown_commands(page):
        words = shlex.split(line, comments=True)
        cut = next((n for n, word in enumerate(words) if word in ("|", ">", "&&", ";")), None)
        if "..." in words or words[-1] in OF_THE_PROGRAM:
            continue
        try:
            parse(words[1:cut])
        except Exception as error:  # typer carries the parser's errors under changing names
            pytest.fail(f"{page.name}: {line}: {error}")


def test_pages_show_commands() -> None:
    assert sum(len(shown_commands(page)) for page in PAGES) > 50


def to_run(page: Path) -> list[str]:
    """Commands in a page's code that need nothing but the files that the pages speak of."""
    commands: list[str] = []
    for line in shown_commands(page, in_tables=False):
        words = shlex.split(line, comments=True)
        is_example = "..." in words or words[-1].endswith("-completion")
        if not MARKED.search(line) and not is_example and shlex.join(words) not in RUN_BY:
            commands.append(shlex.join(words))
    return commands


@cache
def first_on() -> dict[str, list[str]]:
    """Page -> the commands to run that no page before it has."""
    seen: set[str] = set()
    pages = {}
    for page in PAGES:
        pages[page.relative_to(ROOT).as_posix()] = new = []
        for command in to_run(page):
            if command not in seen:
                seen.add(command)
                new.append(command)
    return pages


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: a photo, folders of photos, annotations, questions."""
    folder = tmp_path_factory.mktemp("described")
    shutil.copy(example_image("coffee"), folder / "photo.jpg")
    size = image_size(folder / "photo.jpg")
    mask = np.zeros(size, dtype=np.bool_)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    write_coco(folder / "photos", size)
    shutil.copytree(folder / "photos", folder / "my_data")
    write_labelme(folder / "my_labels")
    write_png_masks(folder / "my_masks", mask)
    question = {"image": "photo.jpg", "question": "the cup"}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    target = {"name": "cup", "segmentation": dict(encode_mask(mask))}
    turn = {"question": "Where is the cup?", "answer": "Here {seg}.", "targets": [target]}
    dialogue = {"image": "photo.jpg", "turns": [turn]}
    (folder / "my_dialogues.jsonl").write_text(json.dumps(dialogue) + "\n")
    return folder


def write_coco(root: Path, size: tuple[int, int]) -> None:
    left, top, right, bottom = BOX
    corners = [left, top, right, top, right, bottom, left, bottom]
    box = {"bbox": [left, top, right - left, bottom - top], "area": 15000, "iscrowd": 0}
    thing = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [corners], **box}
    image = {"id": 1, "file_name": "a.jpg", "width": size[1], "height": size[0]}
    cup = {"id": 1, "name": "cup"}
    content = json.dumps({"images": [image], "annotations": [thing], "categories": [cup]})
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).mkdir()
        shutil.copy(example_image("coffee"), root / split / "a.jpg")
        (root / f"annotations/instances_{split}.json").write_text(content)


def write_labelme(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(example_image("coffee"), folder / "a.jpg")
    shape = {"label": "cup", "shape_type": "rectangle", "points": [BOX[:2], BOX[2:]]}
    (folder / "a.json").write_text(json.dumps({"shapes": [shape], "imagePath": "a.jpg"}))


def write_png_masks(folder: Path, mask: Any) -> None:
    for part in ("images", "masks/a"):
        (folder / part).mkdir(parents=True)
    shutil.copy(example_image("coffee"), folder / "images/a.jpg")
    Image.fromarray(mask).save(folder / "masks/a/cup.png")
    (folder / "sentences.csv").write_text("image,object,sentence\na.jpg,cup,the cup\n")


@pytest.mark.parametrize("page", [page for page, commands in first_on().items() if commands])
def test_commands_of_a_page_run_one_after_the_other(
    page: str, described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(described, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for line in first_on()[page]:
        shorter = line
        for long, short in SHORTER.items():
            shorter = shorter.replace(long, short)
        result = CliRunner().invoke(
            app, shlex.split(shorter)[1:], input="Where is the cup?\n/quit\n"
        )
        assert result.exit_code == 0, f"{line}\n{result.output}"


def test_commands_that_are_left_out_are_run_by_another_test() -> None:
    for command, test in RUN_BY.items():
        text = (ROOT / test).read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in command.split()[1:])
