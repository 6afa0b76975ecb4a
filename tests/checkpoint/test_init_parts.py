"""What the parts of a new model bring along: their numbers, their template, their depths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from measuring.families import SIDE, SMALL, write_text_part, write_vision_part
from pixellm.checkpoint.init_parts import init_from_parts, read_image_settings
from pixellm.checkpoint.io import load_model_and_processor
from pixellm.model.vision import choose_depths

SIGLIP = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "resample": 2}


def write(folder: Path, values: Any, name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(values), "utf-8")
    return folder


def test_images_are_normalised_as_the_encoders_own_file_says(tmp_path: Path) -> None:
    found = read_image_settings(write(tmp_path, SIGLIP), "siglip_vision_model")
    assert found == {
        "rescale_factor": 1 / 255,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "resample": "bilinear",
    }
    inner = {"image_processor": {**SIGLIP, "do_normalize": False, "do_rescale": False}}
    (tmp_path / "preprocessor_config.json").unlink()
    found = read_image_settings(write(tmp_path, inner, "processor_config.json"), "vit")
    assert (found["mean"], found["std"], found["rescale_factor"]) == ((0.0,) * 3, (1.0,) * 3, 1.0)


def test_numbers_are_not_guessed(tmp_path: Path) -> None:
    assert read_image_settings(tmp_path, "clip_vision_model")["mean"][0] == 0.48145466
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config.json.*dinov2"):
        read_image_settings(tmp_path, "dinov2")
    with pytest.raises(ValueError, match="can't be read"):
        read_image_settings(write(tmp_path, {"image_mean": 3}), "dinov2")


def test_scales_are_the_releases_in_a_vit_and_two_grids_in_a_pyramid() -> None:
    assert choose_depths([(8, 4, 4)] * 25) == [-2, -11]
    assert choose_depths([(8, 4, 4)] * 5) == [-2, -3]
    assert choose_depths([(8, 16, 16), (8, 16, 16), (8, 8, 8), (8, 4, 4), (8, 4, 4)]) == [4, 2]


def test_a_language_model_with_a_chat_template_is_asked_by_it(tmp_path: Path) -> None:
    text, vision = tmp_path / "text", tmp_path / "vision"
    write_text_part("llama", text)
    write_vision_part("siglip_vision_model", vision)
    init_from_parts(str(text), str(vision), tmp_path / "own", image_size=SIDE, settings=SMALL)
    model, processor = load_model_and_processor(tmp_path / "own")
    assert processor.tokenizer.eos_token == "<|im_end|>"
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == model.config.eos_token_id == end
    assert "<im_start>" not in processor.tokenizer.get_vocab()
    images = processor.image_processor
    assert (images.image_mean, images.resample) == ([0.5, 0.4, 0.3], "bicubic")
    init_from_parts(
        str(text), str(vision), tmp_path / "v", template="vicuna", image_size=SIDE, settings=SMALL
    )
    assert "USER: " in load_model_and_processor(tmp_path / "v")[1].chat_template
