"""A checkpoint in the released format is converted to the same tensors, settings and ids."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

import pixellm

PARITY = Path(os.environ.get("PIXELLM_PARITY_DIR", ""))
TEXTS = (
    "Which of these could cut the rope?",
    "  two  spaces,\n a line\tand a tab",
    "naïve café, 12 345.67 $, 你好 🙂",
    "The scissors [SEG0][SEG1][SEG2] lie on the left.</s>",
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, command_line: Callable[..., str]) -> Path:
    released = PARITY / "official_a"
    if not (released / "checkpoint").is_dir():
        pytest.skip("PIXELLM_PARITY_DIR names no folder with official_a/checkpoint")
    out = tmp_path_factory.mktemp("pinned") / "model"
    tower = released / "clip-vit-tiny-patch14-336"
    command_line("convert", released / "checkpoint", "--vision-tower", tower, "--out", out)
    return out


def test_tensors_are_the_same_to_the_bit(converted: Path, pinned: Callable[..., None]) -> None:
    digests: dict[str, str] = {}
    for path in sorted(converted.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                tensor = file.get_tensor(name)
                kind = f"{tensor.dtype} {'x'.join(map(str, tensor.shape))}"
                digest = hashlib.sha256(tensor.tobytes()).hexdigest()[:12]
                digests[name] = f"{kind} {digest}"
    pinned("released_tensors", dict(sorted(digests.items())))


def test_texts_become_the_same_ids(converted: Path, pinned: Callable[..., None]) -> None:
    tokenizer = pixellm.PixelLMProcessor.from_pretrained(converted).tokenizer
    pinned("released_ids", {text: tokenizer(text)["input_ids"] for text in TEXTS})


def test_settings_are_the_same(converted: Path, pinned: Callable[..., None]) -> None:
    config = pixellm.PixelLMConfig.from_pretrained(converted).to_dict()
    names = ("image_size", "llm_grid", "vision_depths", "num_scales", "tokens_per_scale")
    names += tuple(sorted(name for name in config if name.startswith("decoder_")))
    values = {name: config[name] for name in (*names, "codebook_token_ids", "image_token_id")}
    pinned("released_settings", json.loads(json.dumps(values)), rel=1e-9)
