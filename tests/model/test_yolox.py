"""The detector as a vision encoder: its maps, its boxes, and transformers' Auto classes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from pixellm.model.yolox import STAGE_NAMES, YoloxConfig, YoloxHead, YoloxModel


def small_config() -> YoloxConfig:
    return YoloxConfig(base_channels=8, head_channels=8, num_classes=3)


def test_every_stage_gives_a_map_of_its_stride() -> None:
    maps = YoloxModel(small_config()).eval()(torch.zeros(1, 3, 64, 96)).hidden_states
    sizes = [tuple(one.shape[1:]) for one in maps]
    assert len(maps) == len(STAGE_NAMES)
    assert sizes[0] == (8, 32, 48)
    assert sizes[1] == (16, 16, 24)
    assert sizes[5:8] == [(32, 8, 12), (64, 4, 6), (128, 2, 3)]
    assert sizes[8:] == [(3 + 5 + 16, 8, 12), (24, 4, 6), (24, 2, 3)]


def test_extra_sizes_add_readings_of_the_resized_canvas() -> None:
    model = YoloxModel(small_config()).eval()
    pixels = torch.rand(1, 3, 128, 160) * 255 - 114
    once = model(pixels).hidden_states
    model.config.extra_sizes = [0.5, 0.41]
    more = model(pixels).hidden_states
    assert [tuple(one.shape[2:]) for one in more[11:]] == [(8, 8), (4, 4), (2, 2)] * 2
    torch.testing.assert_close(more[:11], once)
    small = F.interpolate(pixels, size=(64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(more[11:14], model(small).hidden_states[8:11])


def test_a_cell_without_offset_places_its_box_at_its_own_corner() -> None:
    boxes = YoloxHead._place(torch.zeros(1, 4, 2, 4))
    torch.testing.assert_close(boxes[0, :, 1, 3], torch.tensor([0.75, 0.5, 0.25, 0.5]))


def test_padding_is_the_grey_that_the_detector_knows() -> None:
    model = YoloxModel(small_config()).eval()
    grey = model(torch.zeros(1, 3, 64, 64)).last_hidden_state
    model.config.pixel_offset = 0.0
    same = model(torch.full((1, 3, 64, 64), 114.0)).last_hidden_state
    torch.testing.assert_close(grey, same)


def test_auto_classes_build_and_load_it(tmp_path: Path) -> None:
    model = AutoModel.from_config(small_config()).eval()
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).num_classes == 3
    again = AutoModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).last_hidden_state, model(pixels).last_hidden_state)
