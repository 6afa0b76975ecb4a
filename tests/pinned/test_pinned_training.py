"""Three steps of training: the same losses, and the same weights whether or not it was cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("resvg_py", reason="drawing scenes needs the extra `scenes`")
pytest.importorskip("accelerate", reason="training needs the extra `train`")

RECIPE = """
name: three
seed: 3
output_dir: {folder}
model: {{checkpoint: nano-scenes}}
data:
  - {{name: scenes, args: {{split: train, seed: 0, length: 1000, dialogues_per_image: 2}}}}
collate: {{mask_size: 48, max_length: 600}}
stages:
  - name: joint
    steps: 3
    batch_size: 2
    learning_rate: 1.0e-3
    warmup_steps: 1
    decay_fraction: 0
    loss: {{text: 1, mask: 2, dice: 0.5}}
checkpoint: {{every_steps: 2}}
log_every: 1
threads: 1
"""
LOSSES = ("step", "text", "mask", "dice", "total", "grad_norm", "learning_rate")


def steps_of(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "train_log.jsonl").read_text("utf-8").splitlines())
    return [{name: line[name] for name in LOSSES} for line in lines if line["event"] == "step"]


def test_losses_are_the_same_and_a_cut_run_ends_alike(
    tmp_path: Path, command_line: Callable[..., str], pinned: Callable[..., None]
) -> None:
    recipe, run = tmp_path / "three.yaml", tmp_path / "three"
    recipe.write_text(RECIPE.format(folder=tmp_path), "utf-8")
    command_line("train", recipe)
    steps = steps_of(run)
    pinned("training_losses", steps, rel=2e-3)
    weights = (run / "model" / "model.safetensors").read_bytes()

    # As if it had been killed in its third step.
    shutil.rmtree(run / "model")
    shutil.rmtree(max((run / "checkpoints").glob("step_*")))
    command_line("train", recipe, "--resume")
    assert steps_of(run)[-1] == steps[-1]
    assert (run / "model" / "model.safetensors").read_bytes() == weights
