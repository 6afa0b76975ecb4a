"""A model that does not fit: part of it waits on disk, and it answers the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from conftest import TINY_QUESTION, square_image, tiny_parts, tiny_texts
from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.io import save_model
from pixellm.engine import load


def test_a_model_spread_over_memory_and_disk_answers_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = build_model(tiny_parts(), tiny_texts())
    save_model(tmp_path / "model", model, processor)
    whole = load(tmp_path / "model", device="cpu", max_new_tokens=12)
    num_bytes = sum(value.nbytes for value in model.state_dict().values())
    spread = load(
        tmp_path / "model",
        device="cpu",
        max_new_tokens=12,
        offload_folder=tmp_path / "offload",
        max_memory={"cpu": num_bytes * 2 // 3},
    )
    assert "disk" in spread.model.hf_device_map.values()
    expected, answer = (
        engine.predict(square_image((2, 3)), TINY_QUESTION) for engine in (whole, spread)
    )
    assert answer.text == expected.text
    assert len(answer.segments) == len(expected.segments)
    for own, other in zip(answer.segments, expected.segments, strict=True):
        assert np.array_equal(own.mask, other.mask)
