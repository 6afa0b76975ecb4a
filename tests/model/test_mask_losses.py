"""Predicted and true masks compared at the size of pixels, in bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixellm.model import supervision
from pixellm.model.pixel_masks import pack_masks
from pixellm.model.supervision import Targets, mask_losses

CANVAS = 32
SIZES = ((24, 32), (50, 20))
# Of the masks of two images, and what the images take up in the canvas.
RESIZED = ((24, 32), (32, 13))
ROWS = torch.tensor([0, 0, 0, 1, 1])
ANSWERS = torch.tensor([0, 0, 1, 2, 2])


def batch_of_two() -> tuple[Tensor, list[Tensor], Targets, Tensor]:
    """Logits (5, 8, 8), true masks of both sizes, the same packed, and the pixel mask."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 8, 8, generator=generator)
    masks = [torch.rand(SIZES[row], generator=generator) < 0.4 for row in ROWS.tolist()]
    packed, sizes = pack_masks([mask.numpy() for mask in masks])
    pixel_mask = torch.zeros(2, CANVAS, CANVAS, dtype=torch.bool)
    for row, (height, width) in enumerate(RESIZED):
        pixel_mask[row, :height, :width] = True
    nothing = torch.zeros(2, 1, dtype=torch.long)
    return logits, masks, Targets(nothing, packed, sizes, ROWS, ANSWERS, None, None), pixel_mask


def plain_losses(logits: Tensor, masks: list[Tensor], alpha: float) -> tuple[Tensor, Tensor]:
    """The definition, mask by mask."""
    full = []
    for row, one in zip(ROWS.tolist(), logits, strict=True):
        canvas = F.interpolate(one[None, None], (CANVAS, CANVAS), mode="bilinear")
        height, width = RESIZED[row]
        shown = canvas[..., :height, :width]
        full.append(F.interpolate(shown, SIZES[row], mode="bilinear")[0, 0])
    mask_loss, dice_loss = [], []
    for number, (one, mask) in enumerate(zip(full, masks, strict=True)):
        rivals = [full[n] > 0 for n in range(len(full)) if ANSWERS[n] == ANSWERS[number]]
        weight = torch.where(torch.stack(rivals).sum(0) >= 2, alpha, 1.0)
        truth = mask.float()
        bce = F.binary_cross_entropy_with_logits(one, truth, reduction="none")
        mask_loss.append((weight * bce).mean())
        p = one.sigmoid()
        overlap = 2 * (p * truth).sum() / 1000 + 1e-6
        dice_loss.append(1 - overlap / ((p.sum() + truth.sum()) / 1000 + 1e-6))
    return torch.stack(mask_loss), torch.stack(dice_loss)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("pixels_at_once", [1, 2100, 1 << 22])
def test_losses_are_those_of_each_mask_at_its_own_size(
    alpha: float, pixels_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, whatever is computed at once; padding counts nowhere."""
    monkeypatch.setattr(supervision, "PIXELS_AT_ONCE", pixels_at_once)
    logits, masks, truth, pixel_mask = batch_of_two()
    results = []
    for compute in (
        lambda leaf: mask_losses(leaf, truth, pixel_mask, CANVAS, alpha),
        lambda leaf: plain_losses(leaf, masks, alpha),
    ):
        leaf = logits.clone().requires_grad_()
        mask_loss, dice_loss = compute(leaf)
        (mask_loss.sum() + dice_loss.sum()).backward()
        results.append((mask_loss, dice_loss, leaf.grad))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_what_is_kept_for_the_way_back_does_not_grow_with_the_size_of_masks() -> None:
    kept = {}
    for side in (64, 256):
        masks = [torch.rand(side, side).numpy() < 0.5 for _ in range(12)]
        packed, sizes = pack_masks(masks)
        rows = torch.zeros(12, dtype=torch.long)
        truth = Targets(torch.zeros(1, 1, dtype=torch.long), packed, sizes, rows, None, None, None)
        logits = torch.randn(12, 16, 16, requires_grad=True)
        found: dict[int, int] = {}

        def note(tensor: Tensor, found: dict[int, int] = found) -> Tensor:
            if tensor.is_floating_point():
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = mask_losses(logits, truth, None, 64, alpha=2.0)
        kept[side] = sum(found.values())
        (losses[0].sum() + losses[1].sum()).backward()
        assert logits.grad is not None and bool(logits.grad.isfinite().all())
    assert kept[256] == kept[64] <= 2 * 12 * 16 * 16 * 4
