"""Weights that are not numbers are refused when a model is loaded."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pixellm.checkpoint.io import load_model_and_processor


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
