import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import tiny_parts
from pixellm.checkpoint.io import load_model_and_processor
from pixellm.masks import encode_mask
from pixellm.training import stream
from pixellm.training.config import RunConfig, parse_config
from pixellm.training.setup import set_up_model
from pixellm.training.trainer import train
from pixellm.types import Sample, Target, Turn

sys.path.insert(0, str(Path(__file__).parent))


class Squares:
    """A red and a blue square; two dialogues about each image."""

    class_names = ("red", "blue")

    def __init__(self, length: int = 1000, dialogues_per_image: int = 2) -> None:
        self.length, self.dialogues = length, dialogues_per_image

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        rng = np.random.default_rng(index)
        pixels = np.full((32, 32, 3), 200, np.uint8)
        objects = []
        for number, name in enumerate(self.class_names):
            y, x = rng.integers(0, 8, 2) + np.array([0, 16 * number])
            mask = np.zeros((32, 32), bool)
            mask[y : y + 8, x : x + 8] = True
            pixels[mask] = 0
            pixels[mask, 2 * number] = 255
            objects.append(Target(name, encode_mask(mask)))
        both = Turn("Show all.", "A red one {seg} and a blue one {seg}.", tuple(objects))
        none = Turn("Is there a green one?", "No.")
        turns = [both, none][: self.dialogues]
        return tuple(
            Sample(pixels, (32, 32), (turn,), f"squares-{index}-{n}", tuple(objects))
            for n, turn in enumerate(turns)
        )


@pytest.fixture(autouse=True)
def squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stream.DATASETS, "squares", "test_training_real_model:Squares")


def real_config(folder: Path, **changes: Any) -> RunConfig:
    stages = [
        {
            "name": "encoder",
            "steps": 2,
            "batch_size": 4,
            "loss": {"text": 0, "mask": 0, "dice": 0, "patch_class": 1},
            "data_args": {"dialogues_per_image": 1},
        },
        {
            "name": "joint",
            "steps": 4,
            "batch_size": 2,
            "accumulation": 2,
            "warmup_steps": 0,
            "learning_rate": 0.003,
            "loss": {"patch_class": 0.1},
        },
    ]
    raw = {
        "name": "run",
        "output_dir": str(folder),
        "model": tiny_parts(),
        "data": [{"name": "squares"}],
        "collate": {"mask_size": 16, "max_length": 128},
        "stages": stages,
        "ema_decay": 0.5,
        "log_every": 1,
        "threads": 1,
        "vocabulary_samples": 2,
    }
    return parse_config({**raw, **changes})


def test_a_recipe_trains_a_model_that_loads_and_resumes_to_the_bit(tmp_path: Path) -> None:
    run = train(real_config(tmp_path, checkpoint={"every_steps": 1, "keep_last": 10}))
    finished = (run / "model" / "model.safetensors").read_bytes()
    model, _ = load_model_and_processor(run)
    assert model.config.model_type == "pixellm"
    joint = [line for line in steps_of(run) if line["stage"] == "joint"]
    assert set(joint[0]) >= {"text", "mask", "dice", "patch_class", "total", "learning_rate"}
    assert all(np.isfinite(line["total"]) for line in joint)

    train(real_config(tmp_path), resume=run / "checkpoints" / "step_00000003")
    assert (run / "model" / "model.safetensors").read_bytes() == finished


def steps_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def joint(folder: Path, name: str, **changes: Any) -> list[dict[str, Any]]:
    """The steps of a run of the second stage alone."""
    stage = real_config(folder).stages[1].model_dump() | changes
    return steps_of(train(real_config(folder, name=name, stages=[stage])))


def test_joint_training_lowers_every_loss(tmp_path: Path) -> None:
    sizes = {"data_args": {"length": 4}, "batch_size": 4, "accumulation": 1}
    steps = joint(tmp_path, "run", steps=30, **sizes)
    for name in ("text", "mask", "dice", "patch_class"):
        assert steps[-1][name] < steps[0][name], name


def test_text_and_mask_losses_are_the_same_for_one_batch_and_its_parts(tmp_path: Path) -> None:
    (whole,) = joint(tmp_path, "whole", steps=1, batch_size=4, accumulation=1)
    (parts,) = joint(tmp_path, "parts", steps=1, batch_size=1, accumulation=4)
    for name in ("text", "mask", "dice", "patch_class", "grad_norm"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4), name


def start_of(folder: Path, section: dict[str, Any], **changes: Any) -> Any:
    """The model that a run would start from."""
    raw = real_config(folder).model_dump(mode="json") | changes
    return set_up_model(parse_config({**raw, "model": section}), None, (), is_main=True).model


def test_an_encoder_starts_over_from_pretrained_weights(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model, _ = load_model_and_processor(tiny_model_dir)
    kind, shape = type(model.model.vision_tower.encoder), model.config.vision_config
    other = kind(shape)
    other.save_pretrained(tmp_path / "encoder")
    section = {"checkpoint": str(tiny_model_dir), "vision_weights": str(tmp_path / "encoder")}
    renewed = start_of(tmp_path, section).state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(renewed[f"model.vision_tower.encoder.{name}"], value), name
    kept = {n: v for n, v in model.state_dict().items() if ".vision_tower.encoder." not in n}
    assert all(torch.equal(renewed[name], value.float()) for name, value in kept.items())
    wider = deepcopy(shape)
    wider.hidden_size = 32
    kind(wider).save_pretrained(tmp_path / "wider")
    with pytest.raises(ValueError, match="wider do not fit the model's encoder"):
        start_of(tmp_path, section | {"vision_weights": str(tmp_path / "wider")})


@pytest.mark.parametrize(
    ("name", "saved", "chosen", "found", "changes"),
    [
        # The limit of other weights is not taken over.
        ("min_mask_score", 0.9, None, 0.0, {}),
        ("min_mask_score", 0.9, 0.3, 0.3, {}),
        # Converted released weights come without target refinement.
        ("target_refinement_alpha", 1.0, None, 1, {}),
        ("target_refinement_alpha", 1.0, 3, 3, {}),
        ("target_refinement_alpha", 1.0, 3, 3, {"lora": {"rank": 2}}),
    ],
)
def test_settings_that_stand_beside_a_checkpoint(
    tiny_model_dir: Path,
    tmp_path: Path,
    name: str,
    saved: float,
    chosen: float | None,
    found: float,
    changes: dict[str, Any],
) -> None:
    path = Path(shutil.copytree(tiny_model_dir, tmp_path / "start")) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: saved}))
    section = {"checkpoint": str(path.parent)} | ({} if chosen is None else {name: chosen})
    assert getattr(start_of(tmp_path, section, **changes).config, name) == found
