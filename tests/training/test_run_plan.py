"""A dry run: sizes, what trains, memory and steps, from a recipe alone."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_real_model import real_config
from torch import nn
from typer.testing import CliRunner

from pixellm.checkpoint.build import build_model
from pixellm.cli.main import app
from pixellm.training import stream
from pixellm.training.config import load_config, parse_config
from pixellm.training.memory import kept_bytes
from pixellm.training.plan import plan_run
from pixellm.training.trainer import train


@pytest.fixture(autouse=True)
def squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stream.DATASETS, "squares", "test_training_real_model:Squares")


def dry_run(*arguments: str) -> str:
    words = ["train", *arguments, "--dry-run"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def test_the_7b_recipe_is_planned_without_weights_data_or_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = dry_run("pixellm_7b", "--gpus", "8")
    found = re.search(r"([\d,]+) parameters, 8 GPUs", text)
    assert found is not None, text
    assert 6.9e9 < int(found[1].replace(",", "")) < 7.3e9
    for words in ("(LoRA)", "pixel_decoder", "feature_projector", "FSDP2"):
        assert words in text
    assert "steps of 160 images" in text
    for missing in ("pixellm-7b-start", "Data set muse", "Data set refcoco+"):
        assert missing in text
    assert not list(tmp_path.iterdir())


def test_a_plan_counts_parameters_steps_and_epochs_as_the_run_does(tmp_path: Path) -> None:
    config = real_config(tmp_path)
    plan = plan_run(config, num_gpus=3)
    model, _ = build_model(config.model, ["Show all. A red one."] * 2)
    text = config.model["tokenizer"]["vocab_size"]
    assert plan.num_parameters is not None
    vocabulary = model.config.text_config.vocab_size
    width = model.config.text_config.hidden_size
    difference = (text - vocabulary) * width * 2
    assert plan.num_parameters - difference == sum(p.numel() for p in model.parameters())
    joint = plan.stages[1]
    assert joint.samples_per_step == 2 * 2 * 3
    assert joint.steps_per_epoch == 84  # 1000 images
    assert [row.strategy for row in joint.memory] == ["DDP", "FSDP2"]
    assert not plan.problems


def test_adapters_and_16_bits_take_less_memory(tmp_path: Path) -> None:
    raw = real_config(tmp_path).model_dump(mode="json")
    raw |= {"stages": [raw["stages"][1]], "ema_decay": 0.0, "precision": "bf16"}
    raw["model"]["text"]["config"]["num_hidden_layers"] = 4
    everything, lora, recomputed, averaged = (
        changed(tmp_path, **{**raw, **changes}).stages[0].memory[0]
        for changes in (
            {},
            {"lora": {"rank": 2}},
            {"gradient_checkpointing": True},
            {"ema_decay": 0.9},
        )
    )
    assert lora.optimizer < everything.optimizer
    assert lora.weights < everything.weights
    assert recomputed.activations < everything.activations
    assert everything.optimizer == 2 * everything.gradients
    assert averaged.optimizer == 3 * everything.gradients


def changed(folder: Path, **changes: Any) -> Any:
    """The plan of the small recipe with other settings."""
    raw = real_config(folder).model_dump(mode="json")
    return plan_run(parse_config({**raw, **changes}))


def test_what_is_not_there_is_reported_and_what_is_wrong_refused(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    plan = changed(tmp_path, model={"checkpoint": str(tmp_path / "none")})
    assert plan.num_parameters is None and not plan.stages
    assert "is not here" in plan.problems[0]
    absent = {"name": "coco", "args": {"root": str(tmp_path / "photos")}}
    plan = changed(tmp_path, data=[absent])
    assert plan.sources[0].length is None
    assert plan.stages[0].steps_per_epoch is None
    with pytest.raises(ValueError, match="Unknown data set 'cocoa'"):
        changed(tmp_path, data=[{"name": "cocoa"}])
    with pytest.raises(ValueError, match="initial_weights brings its own text"):
        changed(tmp_path, model={"initial_weights": str(tiny_model_dir), "text": {"source": "a"}})
    encoder = tmp_path / "encoder"
    section = {"checkpoint": str(tiny_model_dir), "vision_weights": str(encoder)}
    assert changed(tmp_path, model=section).problems == (f"There is no encoder at {encoder}.",)
    encoder.mkdir()
    assert changed(tmp_path, model=section).problems == ()


def test_the_data_of_evaluations_are_opened_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert changed(tmp_path).evaluation is None
    settings = {"every_steps": 1000, "num_scenes": 30}
    found = {"name": "squares", "args": {"length": 20}}
    shown = changed(tmp_path, evaluation={**settings, "data": found}).evaluation
    assert (shown.name, shown.every_steps, shown.num_images) == ("squares", 1000, 20)
    with pytest.raises(ValueError, match="There is no split 'vall' of the scenes"):
        changed(tmp_path, evaluation={**settings, "split": "vall"})

    monkeypatch.chdir(tmp_path)
    absent = {"name": "coco", "args": {"root": "photos", "split": "val"}}
    config = real_config(tmp_path, evaluation={**settings, "data": absent})
    Path("recipe.yaml").write_text(config.to_yaml(), encoding="utf-8")
    text = dry_run("recipe.yaml")
    assert "Evaluation on coco (not here), every 1,000 steps and behind each stage." in text
    assert "Missing: Evaluation data coco: " in text


def test_activations_are_counted_once_and_without_weights() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        inputs = torch.empty(3, 8)
    assert kept_bytes(lambda: module(inputs), module) == 4 * (3 * 8 + 3 * 16)


def test_what_a_run_lacks_is_found_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = real_config(tmp_path).model_dump(mode="json")
    late = {**raw["stages"][-1], "name": "late", "data_args": {"dialogues": 2}}
    config = parse_config(raw | {"stages": [*raw["stages"], late]})
    for begin in (plan_run, train):
        with pytest.raises(ValueError, match="unexpected keyword argument 'dialogues'"):
            begin(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'wandb' is not installed; run: pip install wandb"):
        train(parse_config(raw | {"trackers": ["wandb"]}))
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize("name", ["base", "scales_3", "single_token"])
def test_recipes_whose_models_differ_can_be_planned(name: str) -> None:
    plan = plan_run(load_config(f"ablation/{name}"))
    assert plan.num_parameters and plan.stages and not plan.problems
