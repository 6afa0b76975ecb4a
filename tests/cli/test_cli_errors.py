"""Bad input: one clear sentence on standard error, exit code 2, nothing half-written."""

import ctypes
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from conftest import TINY_QUESTION, square_image
from pixellm.cli.chat import Chat
from pixellm.cli.main import app
from pixellm.engine import Engine
from pixellm.image_files import load_image

pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def image() -> Path:
    path = Path("squares.png")
    Image.fromarray(square_image((2, 3))).save(path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def segment(image: Path, model: Path | str, *options: object) -> Result:
    return run("segment", image, TINY_QUESTION, "--model", model, *options)


def assert_one_sentence(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.rstrip().endswith((".", "DIR"))
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


# Images that can't be read.


def make_missing(path: Path) -> None:
    assert not path.exists()


def make_empty(path: Path) -> None:
    path.touch()


def make_truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def make_text(path: Path) -> None:
    path.write_text("This is no image.")


def make_folder(path: Path) -> None:
    path.mkdir()


def make_closed(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path)
    path.chmod(0)


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


@pytest.mark.parametrize(
    "make", [make_missing, make_empty, make_truncated, make_text, make_folder, make_closed]
)
@pytest.mark.parametrize("command", ["segment", "chat"])
def test_an_unreadable_image_is_named(command: str, make: Callable[[Path], None]) -> None:
    make(Path("photo.png"))
    questions = [TINY_QUESTION] if command == "segment" else []
    with without_roots_rights():
        result = run(command, "photo.png", *questions, "--model", "never-looked-at")
    assert_one_sentence(result, "photo.png")
    assert result.stdout == ""


def test_an_image_past_pillows_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (50, 50)).save("bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert_one_sentence(segment(Path("bomb.png"), "never-looked-at"), "bomb.png", "2,000 pixels")


# Odd images that are read correctly.


def save_exif_rotated(pixels: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn
    pixels.rotate(90, expand=True).save(path, exif=exif)


def save_deep(pixels: Image.Image, path: Path) -> None:
    grey = np.asarray(pixels.convert("L"), dtype=np.uint16) * 257
    Image.fromarray(grey).save(path)


def save_alpha(pixels: Image.Image, path: Path) -> None:
    pixels.putalpha(128)
    pixels.save(path)


def save_animated(pixels: Image.Image, path: Path) -> None:
    pixels.save(path, save_all=True, append_images=[Image.new("RGB", pixels.size)], duration=9)


ODD_IMAGES: dict[str, Callable[[Image.Image, Path], None]] = {
    "deep.png": save_deep,
    "palette.png": lambda pixels, path: pixels.convert("P").save(path),
    "cmyk.jpg": lambda pixels, path: pixels.convert("CMYK").save(path),
    "grey.png": lambda pixels, path: pixels.convert("L").save(path),
    "one_bit.png": lambda pixels, path: pixels.convert("1").save(path),
    "alpha.png": save_alpha,
    "animated.gif": save_animated,
    "rotated.jpg": save_exif_rotated,
    "one_pixel.png": lambda pixels, path: pixels.resize((1, 1)).save(path),
    "wide.png": lambda pixels, path: pixels.resize((4000, 1)).save(path),
    "tall.png": lambda pixels, path: pixels.resize((1, 4000)).save(path),
}
UPRIGHT_SIZES = {"one_pixel.png": (1, 1), "wide.png": (4000, 1), "tall.png": (1, 4000)}


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_an_odd_image_is_answered_in_its_own_pixels(name: str, tiny_model_dir: Path) -> None:
    ODD_IMAGES[name](Image.fromarray(square_image((2, 3))), Path(name))
    result = segment(Path(name), tiny_model_dir, "--json", "-", "--out", "seen.png")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    size = UPRIGHT_SIZES.get(name, (24, 32))
    assert (answer["width"], answer["height"]) == size
    assert all(s["segmentation"]["size"] == [size[1], size[0]] for s in answer["segments"])
    assert Image.open("seen.png").size == size


# Questions.


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(image: Path, question: str) -> None:
    assert_one_sentence(
        run("segment", image, question, "--model", "never-looked-at"), "and a question"
    )


def test_a_question_longer_than_the_context_is_refused(image: Path, tiny_model_dir: Path) -> None:
    result = run("segment", image, "long " * 300, "--model", tiny_model_dir)
    assert_one_sentence(result, "context holds 256")
    assert list(Path().iterdir()) == [image]


# Models.


@pytest.fixture
def model_copy(tiny_model_dir: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, "model"))


def use_two_shards(model: Path) -> tuple[Path, Path]:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    shards = tuple(model / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    weight_map = {}
    for shard, names in zip(shards, (sorted(weights)[::2], sorted(weights)[1::2]), strict=True):
        save_file({name: weights[name] for name in names}, shard, {"format": "pt"})
        weight_map |= dict.fromkeys(names, shard.name)
    index = {"metadata": {}, "weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return shards[0], shards[1]


def test_a_model_in_shards_answers_as_the_whole(
    image: Path, model_copy: Path, tiny_model_dir: Path
) -> None:
    use_two_shards(model_copy)
    in_shards = json.loads(segment(image, model_copy, "--json", "-").stdout)
    whole = json.loads(segment(image, tiny_model_dir, "--json", "-").stdout)
    assert in_shards["segments"] == whole["segments"]


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model", "./no/such/folder"])
def test_an_unknown_model_is_named(image: Path, name: str) -> None:
    assert_one_sentence(segment(image, name), name)


def test_a_folder_without_a_model_is_named(image: Path) -> None:
    Path("hollow").mkdir()
    assert_one_sentence(segment(image, "hollow"), "hollow", "config.json")


def test_a_missing_shard_is_named(image: Path, model_copy: Path) -> None:
    _, second = use_two_shards(model_copy)
    second.unlink()
    assert_one_sentence(segment(image, model_copy), second.name)


@pytest.mark.parametrize("length", [0, 5, 5000, -10])
def test_a_truncated_shard_is_refused(image: Path, model_copy: Path, length: int) -> None:
    first, _ = use_two_shards(model_copy)
    first.write_bytes(first.read_bytes()[:length])
    assert_one_sentence(segment(image, model_copy), "model", "damaged")


def test_unknown_settings_of_a_model_are_named(image: Path, model_copy: Path) -> None:
    config = model_copy / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_scale": 3}))
    assert_one_sentence(segment(image, model_copy), "config.json", "num_scale")


def test_a_broken_configuration_is_named(image: Path, model_copy: Path) -> None:
    (model_copy / "config.json").write_text("{")
    assert_one_sentence(segment(image, model_copy), "config.json", "JSON")


def test_pickled_weights_are_not_opened(image: Path, model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (Path("sprung"),)

    torch.save({"weight": Trap()}, model_copy / "pytorch_model.bin")
    assert_one_sentence(segment(image, model_copy), "pickled")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("option", [("--device", "gpu"), ("--device", "cuda:99"), ("--dtype", "x")])
def test_an_unknown_device_or_type_is_named(
    image: Path, tiny_model_dir: Path, option: tuple[str, str]
) -> None:
    assert_one_sentence(segment(image, tiny_model_dir, *option), option[1])


# Outputs that can't be written: told before a model is loaded, and where only the writing tells,
# after the answer.


@pytest.mark.parametrize(
    "options",
    [
        ["--out", "folder.png"],
        ["--json", "squares.png/answer.json"],
        ["--masks", "squares.png"],
        ["--json", "first.json", "--masks", "masks", "--out", "squares.png/seen.png"],
    ],
    ids=" ".join,
)
def test_a_bad_place_is_told_before_a_model_is_looked_for(image: Path, options: list[str]) -> None:
    Path("folder.png").mkdir()
    before = image.read_bytes()
    result = segment(image, "never-looked-at", *options)
    assert_one_sentence(result, "cannot be written")
    assert {path.name for path in Path().iterdir()} == {"squares.png", "folder.png"}
    assert list(Path("folder.png").iterdir()) == []
    assert image.read_bytes() == before


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


def test_a_full_disk_is_told_after_the_answer(
    image: Path, tiny_model_dir: Path, full_disk: Path
) -> None:
    outputs = ["--json", full_disk / "answer.json", "--masks", "masks"]
    assert_full_disk(segment(image, tiny_model_dir, *outputs))
    assert [path.name for path in full_disk.iterdir()] == ["filler"]
    assert not Path("masks").exists()


def test_a_disk_that_fills_up_half_way_leaves_nothing(
    image: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = Path.write_bytes

    def write_once(self: Path, content: bytes) -> int:
        written.append(self)
        if len(written) == 1:
            return write(self, content)
        write(self, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", write_once)
    outputs = ["--json", "answer.json", "--masks", "masks"]
    assert_full_disk(segment(image, tiny_model_dir, *outputs))
    assert len(written) == 2
    assert list(Path().iterdir()) == [image]


def assert_full_disk(result: Result) -> None:
    assert_one_sentence(result, "cannot be written", "No space left")
    assert "[1]" in result.stdout


def test_json_is_printed_before_another_output_fails(
    image: Path, tiny_model_dir: Path, full_disk: Path
) -> None:
    result = segment(image, tiny_model_dir, "--json", "-", "--out", full_disk / "seen.png")
    assert_one_sentence(result, "seen.png")
    assert json.loads(result.stdout)["segments"]


def test_folders_of_outputs_are_made(image: Path, tiny_model_dir: Path) -> None:
    files = ["--out", "new/seen.png", "--json", "other/new/answer.json", "--masks", "new/masks"]
    result = segment(image, tiny_model_dir, *files)
    assert result.exit_code == 0, result.output
    assert Path("new/seen.png").is_file() and Path("other/new/answer.json").is_file()
    assert len(list(Path("new/masks").iterdir())) == 2


@pytest.mark.parametrize("name", ["squares.png", "./squares.png", "seen.docx", "seen"])
def test_an_overlay_needs_a_name_of_its_own(image: Path, name: str) -> None:
    result = segment(image, "never-looked-at", "--out", name)
    assert_one_sentence(result, "squares.png" if "squares" in name else "suffix")


@pytest.mark.parametrize(
    ("options", "lost"),
    [
        (["--json", "squares.png"], "squares.png"),
        (["--json", "link.json"], "link.json"),
        (["--out", "both.png", "--json", "both.png"], "both.png"),
        (["--out", "both.png", "--json", "./folder/../both.png"], "both.png"),
        (["--out", "masks/01_red.png", "--masks", "masks"], "masks/01_red.png"),
    ],
    ids=" ".join,
)
def test_no_part_of_an_answer_replaces_another_or_the_image(
    image: Path, options: list[str], lost: str
) -> None:
    Path("folder").mkdir()
    Path("link.json").symlink_to(image)
    before = image.read_bytes()
    assert_one_sentence(segment(image, "never-looked-at", *options), lost)
    assert image.read_bytes() == before
    assert {path.name for path in Path().iterdir()} == {"squares.png", "folder", "link.json"}


def test_an_image_among_its_masks_is_kept() -> None:
    Image.fromarray(square_image((2, 3))).save("01_red-square.png")
    options = ["--masks", "."]
    result = segment(Path("01_red-square.png"), "never-looked-at", *options)
    assert_one_sentence(result, "01_red-square.png")


# Training, evaluation and data.


def test_a_missing_or_wrong_recipe_is_named() -> None:
    assert_one_sentence(run("train", "nowhere.yaml"), "nowhere.yaml")
    Path("recipe.yaml").write_text("name: trial\nstage: []\n")
    assert_one_sentence(run("train", "recipe.yaml"), "recipe.yaml")
    Path("recipe.yaml").write_text("a: [")
    assert_one_sentence(run("train", "recipe.yaml"), "recipe.yaml", "YAML")


def test_an_unknown_split_is_named(tiny_model_dir: Path) -> None:
    result = run("eval", "scenes", "--model", tiny_model_dir, "--split", "exam")
    assert_one_sentence(result, "exam", "test_style")
    assert_one_sentence(run("data", "scenes", "--split", "exam", "--out", "scenes"), "exam")
    assert not Path("scenes").exists()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    Path("recipe.yaml").touch()
    assert_one_sentence(run("train", "recipe.yaml"), "pip install 'pixellm[train]'")


def test_a_model_that_is_to_be_spread_names_the_extra(
    image: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    result = segment(image, tiny_model_dir, "--offload", "offloaded", "--out", "seen.png")
    assert_one_sentence(result, "pip install 'pixellm[train]'")
    assert list(Path().iterdir()) == [image]


# Memory that runs out.

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


class Exhausted:
    """An engine without memory for anything."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def predict(self, *asked: Any, **options: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_memory_that_runs_out_is_told_in_a_sentence(
    image: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("pixellm.cli.options.LoadOptions.load", lambda *_, **__: Exhausted(error))
    result = run("segment", image, TINY_QUESTION, "--out", "seen.png")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "not enough memory" in result.stderr
    assert list(Path().iterdir()) == [image]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_a_dialogue_survives_an_image_that_does_not_fit(
    tiny_engine: Engine, image: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints = io.StringIO()
    chat = Chat(
        tiny_engine,
        str(image),
        load_image(image),
        Console(file=io.StringIO()),
        Console(file=complaints),
    )
    monkeypatch.setattr(tiny_engine, "predict", Exhausted(error).predict)
    chat.handle(TINY_QUESTION)
    assert "not enough memory" in complaints.getvalue()


# What is no bad input.


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
    assert result.exit_code == 130
    assert result.stderr == "Stopped.\n"
    monkeypatch.setattr("pixellm.training.trainer.train", interrupt)
    recipe = Path(__file__).parents[2] / "src/pixellm/recipes" / "nano_scenes.yaml"
    result = run("train", recipe)
    assert result.exit_code == 130
    assert f"pixellm train {recipe} --resume" in result.stderr


@pytest.mark.parametrize("arguments", [["segment"], ["segment", "a.png"], ["eval", "sceens"]])
def test_wrong_usage_ends_in_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
