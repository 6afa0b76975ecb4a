import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
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
    }
    model = {
        "vision": {"config": vision},
        "text": {"config": text},
        "tokenizer": {"vocab_size": 320},
        "template": "compact",
        "settings": settings,
    }
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
        "model": model,
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
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    joint = [line for line in lines if line["event"] == "step" and line["stage"] == "joint"]
    assert set(joint[0]) >= {"text", "mask", "dice", "patch_class", "total", "learning_rate"}
    assert all(np.isfinite(line["total"]) for line in joint)

    train(real_config(tmp_path), resume=run / "checkpoints" / "step_00000003")
    assert (run / "model" / "model.safetensors").read_bytes() == finished


def test_joint_training_lowers_every_loss(tmp_path: Path) -> None:
    stage = real_config(tmp_path).stages[1].model_dump()
    stage |= {"steps": 60, "data_args": {"length": 4}, "batch_size": 4, "accumulation": 1}
    run = train(real_config(tmp_path, stages=[stage]))
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    for name in ("text", "mask", "dice", "patch_class"):
        assert steps[-1][name] < steps[0][name], name


def test_text_and_mask_losses_are_the_same_for_one_batch_and_its_parts(tmp_path: Path) -> None:
    def first_losses(name: str, batch_size: int, accumulation: int) -> dict[str, float]:
        stage = real_config(tmp_path).stages[1].model_dump()
        stage |= {"steps": 1, "batch_size": batch_size, "accumulation": accumulation}
        run = train(real_config(tmp_path, name=name, stages=[stage], seed=1))
        lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
        return next(line for line in lines if line["event"] == "step")

    torch.manual_seed(0)
    whole, parts = first_losses("whole", 4, 1), first_losses("parts", 1, 4)
    for name in ("text", "mask", "dice", "patch_class", "grad_norm"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4), name


def test_an_encoder_starts_over_from_pretrained_weights(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model, _ = load_model_and_processor(tiny_model_dir)
    other = type(model.model.vision_tower.encoder)(model.config.vision_config)
    other.save_pretrained(tmp_path / "encoder")
    config = real_config(tmp_path).model_copy(
        update={
            "model": {
                "checkpoint": str(tiny_model_dir),
                "vision_weights": str(tmp_path / "encoder"),
            }
        }
    )
    renewed = set_up_model(config, None, (), is_main=True).model.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(renewed[f"model.vision_tower.encoder.{name}"], value), name
    kept = {n: v for n, v in model.state_dict().items() if ".vision_tower.encoder." not in n}
    assert all(torch.equal(renewed[name], value.float()) for name, value in kept.items())


@pytest.mark.parametrize(("chosen", "limit"), [({}, 0.0), ({"min_mask_score": 0.3}, 0.3)])
def test_the_limit_of_other_weights_is_not_taken_over(
    tiny_model_dir: Path, tmp_path: Path, chosen: dict[str, float], limit: float
) -> None:
    limited = shutil.copytree(tiny_model_dir, tmp_path / "limited")
    settings = json.loads((limited / "config.json").read_text())
    (limited / "config.json").write_text(json.dumps({**settings, "min_mask_score": 0.9}))
    section = {"checkpoint": str(limited), **chosen}
    config = real_config(tmp_path).model_copy(update={"model": section})
    model = set_up_model(config, None, (), is_main=True).model
    assert model.config.min_mask_score == limit


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["whole", "adapters"])
def test_target_refinement_of_a_checkpoint_can_be_switched_on(
    tiny_model_dir: Path, tmp_path: Path, lora: dict[str, int] | None
) -> None:
    """Converted released weights come without it."""
    released = shutil.copytree(tiny_model_dir, tmp_path / "released")
    settings = json.loads((released / "config.json").read_text())
    settings["target_refinement_alpha"] = 1.0
    (released / "config.json").write_text(json.dumps(settings))
    raw = real_config(tmp_path).model_dump(mode="json") | {"lora": lora}
    for chosen, alpha in (({}, 1), ({"target_refinement_alpha": 3}, 3)):
        config = parse_config({**raw, "model": {"checkpoint": str(released), **chosen}})
        model = set_up_model(config, None, (), is_main=True).model
        assert model.config.target_refinement_alpha == alpha


def test_weights_of_another_encoder_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    model, _ = load_model_and_processor(tiny_model_dir)
    shape = deepcopy(model.config.vision_config)
    shape.hidden_size = 32
    type(model.model.vision_tower.encoder)(shape).save_pretrained(tmp_path / "wider")
    section = {"checkpoint": str(tiny_model_dir), "vision_weights": str(tmp_path / "wider")}
    config = real_config(tmp_path).model_copy(update={"model": section})
    with pytest.raises(ValueError, match="wider do not fit the model's encoder"):
        set_up_model(config, None, (), is_main=True)
