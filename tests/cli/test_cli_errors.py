"""Bad input: one clear sentence on standard error, exit code 2, nothing half-written."""

import ctypes
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import Result

from conftest import TINY_QUESTION, run_command, square_image
from pixellm.cli.chat import Chat
from pixellm.cli.main import app
from pixellm.engine import Engine
from pixellm.image_files import load_image

pytestmark = pytest.mark.usefixtures("loaded_once", "own_folder")

NO_MODEL = ("--model", "never-looked-at")


def segment(image: Path, model: Path | str, *options: object) -> Result:
    return run_command("segment", image, TINY_QUESTION, "--model", model, *options)


def assert_one_sentence(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.rstrip().endswith((".", "DIR"))
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


# Images.


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """Root reads closed files too: give up that right (Linux's capabilities 1 and 2) here."""
    if os.geteuid() != 0:
        yield
        return
    call = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    had, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert call.capget(header, had) == 0
    less[:] = had[:]
    less[0] &= ~0b110  # those in effect
    assert call.capset(header, less) == 0
    try:
        yield
    finally:
        assert call.capset(header, had) == 0


def png_bytes() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        file, "png"
    )
    return file.getvalue()


UNREADABLE = {"empty": b"", "cut": png_bytes()[:2000], "text": b"No image.", "closed": png_bytes()}


@pytest.mark.parametrize("kind", [*UNREADABLE, "missing", "a folder"])
def test_an_unreadable_image_is_named(kind: str) -> None:
    path = Path("photo.png")
    if kind in UNREADABLE:
        path.write_bytes(UNREADABLE[kind])
    if kind == "a folder":
        path.mkdir()
    if kind == "closed":
        path.chmod(0)
    for command in (("segment", path, TINY_QUESTION), ("chat", path)):
        with without_roots_rights() if kind == "closed" else nullcontext():
            result = run_command(*command, *NO_MODEL)
        assert_one_sentence(result, "photo.png")
        assert result.stdout == ""


def save_rotated(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn
    image.rotate(90, expand=True).save(path, exif=exif)


ODD_IMAGES: dict[str, tuple[Callable[[Image.Image, Path], None], tuple[int, int]]] = {
    "rotated.jpg": (save_rotated, (24, 32)),
    "one_pixel.png": (lambda image, path: image.resize((1, 1)).save(path), (1, 1)),
    "wide.png": (lambda image, path: image.resize((4000, 1)).save(path), (4000, 1)),
    "print.jpg": (lambda image, path: image.convert("CMYK").save(path), (24, 32)),
}


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_an_odd_image_is_answered_in_its_own_pixels(name: str, tiny_model_dir: Path) -> None:
    save, size = ODD_IMAGES[name]
    save(Image.fromarray(square_image((2, 3))), Path(name))
    result = segment(Path(name), tiny_model_dir, "--json", "-", "--out", "seen.png")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["width"], answer["height"]) == size
    assert all(s["segmentation"]["size"] == [size[1], size[0]] for s in answer["segments"])
    assert Image.open("seen.png").size == size


# Questions and models; what a model's folder can lack is in tests/checkpoint.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("  \n", *NO_MODEL), ["and a question"]),
        (("long " * 300,), ["context holds 256"]),
        ((TINY_QUESTION, "--model", "no-such-model"), ["no-such-model"]),
        ((TINY_QUESTION, "--model", "nobody/no-such-model"), ["nobody/no-such-model"]),
        ((TINY_QUESTION, "--model", "hollow"), ["hollow", "config.json"]),
        ((TINY_QUESTION, "--model", "cut"), ["cut", "damaged"]),
        ((TINY_QUESTION, "--device", "gpu"), ["gpu"]),
        ((TINY_QUESTION, "--device", "cuda:99"), ["cuda:99"]),
        ((TINY_QUESTION, "--dtype", "x"), ["x"]),
    ],
)
def test_what_cannot_be_asked_or_loaded_is_named(
    image: Path, tiny_model_dir: Path, changes: tuple[str, ...], words: list[str]
) -> None:
    if "hollow" in changes:
        Path("hollow").mkdir()
    if "cut" in changes:
        weights = Path(shutil.copytree(tiny_model_dir, "cut")) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
    model = () if "--model" in changes else ("--model", tiny_model_dir)
    before = set(Path().iterdir())
    assert_one_sentence(run_command("segment", image, *changes, *model), *words)
    assert set(Path().iterdir()) == before


# Outputs that can't be written: told before a model is loaded, and where only the writing tells,
# after the answer.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "folder.png"], "cannot be written"),
        (["--json", "squares.png/answer.json"], "cannot be written"),
        (["--masks", "squares.png"], "cannot be written"),
        (["--json", "a.json", "--masks", "m", "--out", "squares.png/s.png"], "cannot be written"),
        (["--out", "./squares.png"], "squares.png"),
        (["--out", "seen.docx"], "suffix"),
        (["--out", "seen"], "suffix"),
        (["--json", "squares.png"], "squares.png"),
        (["--json", "link.json"], "link.json"),
        (["--out", "both.png", "--json", "both.png"], "both.png"),
        (["--out", "both.png", "--json", "./folder.png/../both.png"], "both.png"),
        (["--out", "masks/01_red.png", "--masks", "masks"], "masks/01_red.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_place_is_told_before_a_model_is_looked_for(
    image: Path, options: list[str], words: str
) -> None:
    Path("folder.png").mkdir()
    Path("link.json").symlink_to(image)
    before = image.read_bytes()
    assert_one_sentence(segment(image, "never-looked-at", *options), words)
    assert {path.name for path in Path().iterdir()} == {"squares.png", "folder.png", "link.json"}
    assert list(Path("folder.png").iterdir()) == [] and image.read_bytes() == before


def test_an_image_among_its_masks_is_kept(image: Path) -> None:
    image.rename("01_red-square.png")
    result = segment(Path("01_red-square.png"), "never-looked-at", "--masks", ".")
    assert_one_sentence(result, "01_red-square.png")


@pytest.fixture
def full_disk(tmp_path: Path) -> Any:
    """A file system of 16 KiB with nothing left."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root mounts file systems")
    with pytest.raises(OSError, match="No space"):
        (folder / "filler").write_bytes(b"\0" * 65536)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def assert_full_disk(result: Result) -> None:
    assert_one_sentence(result, "cannot be written", "No space left")
    assert "[1]" in result.stdout


def test_a_full_disk_is_told_after_the_answer(
    image: Path, tiny_model_dir: Path, full_disk: Path
) -> None:
    outputs = ["--json", full_disk / "answer.json", "--masks", "masks"]
    assert_full_disk(segment(image, tiny_model_dir, *outputs))
    assert [path.name for path in full_disk.iterdir()] == ["filler"]
    assert not Path("masks").exists()
    printed = segment(image, tiny_model_dir, "--json", "-", "--out", full_disk / "seen.png")
    assert_one_sentence(printed, "seen.png")
    assert json.loads(printed.stdout)["segments"]


def test_a_disk_that_fills_up_half_way_leaves_nothing(
    image: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    sync = os.fsync

    def sync_once(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_once)
    outputs = ["--json", "answer.json", "--masks", "masks"]
    assert_full_disk(segment(image, tiny_model_dir, *outputs))
    assert len(written) == 2
    assert list(Path().iterdir()) == [image]


# Training, evaluation and data.


def test_a_missing_or_wrong_recipe_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_sentence(run_command("train", "nowhere.yaml"), "nowhere.yaml")
    for content, words in {"name: trial\nstage: []\n": "recipe.yaml", "a: [": "YAML"}.items():
        Path("recipe.yaml").write_text(content)
        assert_one_sentence(run_command("train", "recipe.yaml"), words)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert_one_sentence(run_command("train", "recipe.yaml"), "pip install 'pixellm[train]'")


def test_an_unknown_split_is_named(tiny_model_dir: Path) -> None:
    result = run_command("eval", "scenes", "--model", tiny_model_dir, "--split", "exam")
    assert_one_sentence(result, "exam", "test_style")
    assert_one_sentence(run_command("data", "scenes", "--split", "exam", "--out", "scenes"), "exam")
    assert not Path("scenes").exists()


def test_a_model_that_is_to_be_spread_names_the_extra(
    image: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    result = segment(image, tiny_model_dir, "--offload", "offloaded", "--out", "seen.png")
    assert_one_sentence(result, "pip install 'pixellm[train]'")
    assert list(Path().iterdir()) == [image]


# Memory that runs out, and what is no bad input.

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_memory_that_runs_out_is_told_in_a_sentence_and_ends_no_dialogue(
    image: Path,
    tiny_engine: Engine,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def exhausted(*asked: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(Engine, "predict", exhausted)
    assert_one_sentence(segment(image, tiny_model_dir, "--out", "seen.png"), "not enough memory")
    assert list(Path().iterdir()) == [image]
    quiet, complaints = Console(file=io.StringIO()), io.StringIO()
    chat = Chat(tiny_engine, str(image), load_image(image), quiet, Console(file=complaints))
    chat.handle(TINY_QUESTION)
    assert "not enough memory" in complaints.getvalue()


def test_the_unforeseen_is_no_sentence(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python itself prints the traceback of what is raised, and ends in 1."""

    def fail(path: Path) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("pixellm.cli.images.load_image", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        app(["segment", str(image), "What?"])


def test_ctrl_c_ends_in_130_and_says_how_to_go_on(
    image: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "predict", interrupt)
    result = segment(image, tiny_model_dir)
    assert (result.exit_code, result.stderr) == (130, "Stopped.\n")
    monkeypatch.setattr("pixellm.training.trainer.train", interrupt)
    recipe = Path(__file__).parents[2] / "src/pixellm/recipes" / "nano_scenes.yaml"
    result = run_command("train", recipe)
    assert result.exit_code == 130
    assert f"pixellm train {recipe} --resume" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train nano_scenes --gpus 4", "torchrun --nproc-per-node 4 -m pixellm train nano_scenes"),
        ("train nano_scenes --dry-run --resume", "leave out --resume"),
        ("convert a --to released --out b --vision-tower c", "--vision-tower and --revision"),
        ("init --llm a --vision b --out c --revision d", "--vision-tower and --revision"),
        ("init --llava a --out c --image-size 64", "--template and --image-size"),
        ("data questions --out a --benchmark coco --seed 1", "are for scenes, not coco"),
        ("data questions --out a --data b", "leave out --data"),
        ("data preview squares.png --out a --split val", "leave out --data and --split"),
        ("data check squares.png --split val", "leave out the split"),
        ("curate view a --serve --out b", "leave out --out"),
        ("data pseudo-label . --out a --class cup{seg}", "holds {seg}"),
        ("serve --api-keys squares.png", "no UTF-8 text"),
    ],
)
def test_what_would_count_for_nothing_is_refused(image: Path, arguments: str, words: str) -> None:
    before = set(Path().iterdir())
    assert_one_sentence(run_command(*arguments.split()), words)
    assert set(Path().iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        "segment --min-score",
        "predict --temperature",
        "eval scenes --temperature",
        "score --judge-threshold",
        "export --min-score",
        "data pseudo-label --doubt",
        "ablate --minutes",
        "curate run --max-cost",
        "curate run --timeout",
        *(f"serve --{name}" for name in ("timeout", "max-megabytes", "max-megapixels")),
    ],
)
def test_no_option_takes_nan_or_infinity_for_a_number(arguments: str) -> None:
    for value in ("nan", "inf"):
        result = run_command(*arguments.split(), value)
        assert result.exit_code == 2
        # Where an option has a range, some versions of typer refuse what lies in none.
        assert re.search("is no finite number|Input should be|not in the range", result.output)


@pytest.mark.parametrize("arguments", [["segment"], ["segment", "a.png"], ["eval", "sceens"]])
def test_wrong_usage_ends_in_2(arguments: list[str]) -> None:
    assert run_command(*arguments).exit_code == 2
