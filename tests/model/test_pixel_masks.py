"""Masks at the size of pixels: the way back to the image, and truth as bits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from pixellm.masks import Letterbox
from pixellm.model import pixel_masks
from pixellm.model.pixel_masks import pack_masks, packed_bytes, restore_masks, unpack_masks

PARITY = Path(os.environ.get("PIXELLM_PARITY_DIR", "")) / "official_a"
needs_parity = pytest.mark.skipif(
    not PARITY.is_dir(), reason="The released code's tensors (PIXELLM_PARITY_DIR) are not here."
)


@needs_parity
@pytest.mark.parametrize("case", range(5))
def test_restored_masks_equal_the_released_code(case):
    golden = load_file(PARITY / "golden.safetensors")
    facts = json.loads((PARITY / "golden.json").read_text())["cases"][case]
    logits = restore_masks(
        golden[f"case{case}.generated.low_res_masks"],
        tuple(facts["resized_hw"]),
        tuple(facts["original_hw"]),
        448,
    )
    expected = golden[f"case{case}.generated.mask_logits_sub4"]
    torch.testing.assert_close(logits[:, ::4, ::4], expected, atol=1e-4, rtol=1e-5)
    assert [int((mask > 0).sum()) for mask in logits] == facts["mask_areas"]


def test_restored_logits_follow_the_definition():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 16, 16, generator=generator)
    canvas = F.interpolate(logits[None], (64, 64), mode="bilinear", align_corners=False)
    expected = F.interpolate(canvas[..., :48, :64], (30, 40), mode="bilinear", align_corners=False)[
        0
    ]
    torch.testing.assert_close(restore_masks(logits, (48, 64), (30, 40), 64), expected)


def test_restoring_in_portions_changes_nothing(monkeypatch):
    logits = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(1))
    whole = restore_masks(logits, (24, 32), (60, 80), 32)
    monkeypatch.setattr(pixel_masks, "_LOGITS_AT_ONCE", 2 * 60 * 80)
    assert torch.equal(restore_masks(logits, (24, 32), (60, 80), 32), whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_odd_sizes_are_restored(size):
    box = Letterbox.fit(size, 64)
    restored = restore_masks(torch.ones(2, 16, 16, dtype=torch.bfloat16), box.resized, size, 64)
    assert restored.shape == (2, *size)
    assert restored.dtype == torch.float32
    assert (restored == 1).all()


def test_masks_of_any_sizes_come_out_of_their_bits_as_they_went_in():
    rng = np.random.default_rng(0)
    sizes = [(3, 5), (1, 1), (8, 8), (7, 1)]
    masks = [rng.random(size) < 0.5 for size in sizes]
    packed, found = pack_masks(masks)
    assert packed.dtype == torch.uint8 and found.tolist() == [list(size) for size in sizes]
    assert len(packed) == sum(map(packed_bytes, sizes)) == 2 + 1 + 8 + 1
    start = 0
    for mask, size in zip(masks, sizes, strict=True):
        end = start + packed_bytes(size)
        again = unpack_masks(packed[None, start:end], size)
        assert np.array_equal(again[0].numpy(), mask)
        start = end
