"""Weights that are not numbers are refused when a model is loaded."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from conftest import tiny_parts, tiny_texts
from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.io import load_model_and_processor, save_model


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(
    tmp_path: Path, tiny_model_dir: Path, value: float
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model_dir, copy)
    weights = load_file(copy / "model.safetensors")
    name = next(key for key in weights if "pixel_decoder" in key)
    weights[name].view(-1)[0] = value
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"pixel_decoder.* holds NaN or infinity"):
        load_model_and_processor(copy)


def test_running_statistics_that_are_no_numbers_are_refused_too(tmp_path: Path) -> None:
    parts = tiny_parts(settings={"vision_depths": [4, 2], "mask_padding": False})
    parts["vision"] = {"config": {"model_type": "mobilenet_v2", "depth_multiplier": 0.25}}
    model, processor = build_model(parts, tiny_texts())
    name = next(name for name, _ in model.named_buffers() if name.endswith("running_var"))
    model.get_buffer(name).view(-1)[0] = float("nan")
    save_model(tmp_path / "model", model.eval(), processor)
    with pytest.raises(ValueError, match=r"running_var holds NaN or infinity"):
        load_model_and_processor(tmp_path / "model")
