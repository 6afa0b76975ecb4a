"""What loading a checkpoint leaves out: trial runs, conversions and bars that nobody asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging

from pixellm.checkpoint import released
from pixellm.checkpoint.io import load_model_and_processor, save_model
from pixellm.model import modeling


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("this work is not needed")


def test_a_saved_model_loads_without_a_trial_run_of_its_encoder(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = load_model_and_processor(tiny_model_dir)
    older = Path(shutil.copytree(tiny_model_dir, tmp_path / "older"))
    values = json.loads((older / "config.json").read_text())
    assert values.pop("vision_channels") == {"-1": 16, "-2": 16}
    (older / "config.json").write_text(json.dumps(values))
    found, _ = load_model_and_processor(older)
    assert found.config.vision_channels == model.config.vision_channels
    save_model(tmp_path / "newer", found, processor)
    monkeypatch.setattr(modeling, "feature_shapes", refuse)
    load_model_and_processor(tmp_path / "newer")
    with pytest.raises(ValueError, match="not needed"):
        load_model_and_processor(older)


def test_another_depth_is_not_served_from_the_old_ones_width(tiny_model_dir: Path) -> None:
    config = modeling.PixelLMConfig.from_pretrained(tiny_model_dir)
    config.vision_depths = [-1, 0]
    config.vision_channels = {"-1": 16, "-2": 5}
    modeling.PixelLMForConditionalGeneration(config)
    assert config.vision_channels == {"-1": 16, "0": 16}


def test_a_checkpoint_of_ones_own_asks_for_no_conversion_and_draws_no_bar(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(released, "usable_checkpoint", refuse)
    shown = logging.is_progress_bar_enabled()
    load_model_and_processor(tiny_model_dir)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled() == shown
