"""What a batch is scored against: its targets found in the text, its masks compared.

The losses themselves are functions in ``losses``. Masks are compared at the size of the true ones,
in portions that are computed again on the way back, so that memory is that of a portion whatever
that size. Shape legend: B rows, T tokens, M targets, A answers, P pixels of the image, h w the
decoder's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pixellm.masks import Size
from pixellm.model.codebook import find_groups
from pixellm.model.losses import count_claims, dice_loss, target_refinement_loss
from pixellm.model.pixel_masks import packed_bytes, resize_logits, unpack_masks

PIXELS_AT_ONCE = 1 << 22
"""Pixels of masks whose losses are computed together; about ten numbers of four bytes each."""


@dataclass(frozen=True)
class Targets:
    """What a batch is scored against.

    Attributes:
        labels: (B, T) ids to predict, -100 elsewhere, not shifted.
        masks: (N,) uint8 packed masks over the images without padding, see
            :func:`pixellm.model.pixel_masks.pack_masks`, in the order of the groups; None for none.
        sizes: (M, 2) height and width of each mask; None where masks are None.
        rows: (M,) row of each target; None where targets do not matter.
        answers: (M,) id of the answer that each target belongs to; its row where None.
        num_label_tokens: divisor of the text loss; the batch's own count where None.
        num_targets: divisor of the mask losses; the batch's own count where None.
    """

    labels: Tensor
    masks: Tensor | None
    sizes: Tensor | None
    rows: Tensor | None
    answers: Tensor | None
    num_label_tokens: Tensor | int | None
    num_targets: Tensor | int | None


def find_targets(
    input_ids: Tensor, targets: Targets, codebook_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Rows and starts (M,) of the codebook groups in (B, T) ids."""
    assert targets.rows is not None
    rows, starts = find_groups(input_ids, torch.tensor(codebook_ids, device=input_ids.device))
    count = len(targets.rows if targets.sizes is None else targets.sizes)
    if len(rows) != count or not torch.equal(rows, targets.rows):
        raise ValueError(
            f"The text holds {len(rows)} codebook groups, the batch {count} "
            "target masks; each group needs its mask, in order."
        )
    return rows, starts


def mask_losses(
    mask_logits: Tensor, targets: Targets, pixel_mask: Tensor | None, canvas: int, alpha: float
) -> tuple[Tensor, Tensor]:
    """Refinement and DICE losses of each target, at the size of its true mask.

    Args:
        mask_logits: (M, h, w) in the canvas frame, any size.
        targets: with masks, their sizes and rows; those of a row stand together and, being of one
            image, have one size.
        pixel_mask: (B, S, S) bool, false in the canvas's padding; None where there is none.
        canvas: its side S.
        alpha: weight of contested pixels.

    Returns:
        Both losses (M,) float32, not yet divided by a number of targets.
    """
    assert targets.masks is not None and targets.sizes is not None and targets.rows is not None
    answers = targets.rows if targets.answers is None else targets.answers
    sizes: list[Size] = [(height, width) for height, width in targets.sizes.tolist()]
    num_bytes = sum(map(packed_bytes, sizes))
    if num_bytes != len(targets.masks):
        raise ValueError(
            f"The masks of the batch take {num_bytes} bytes at their sizes, not the "
            f"{len(targets.masks)} that are given."
        )
    rows, counts = targets.rows.unique_consecutive(return_counts=True)
    resized = _sizes_on_canvas(pixel_mask, rows, canvas)
    losses, first, first_byte = [], 0, 0
    for count, shown in zip(counts.tolist(), resized, strict=True):
        part, size = slice(first, first + count), sizes[first]
        end_byte = first_byte + count * packed_bytes(size)
        packed = targets.masks[first_byte:end_byte].view(count, -1)
        tensors = (mask_logits[part], packed, answers[part])
        losses.append(_ImageTargets(*tensors, shown, size, canvas).losses(alpha))
        first, first_byte = first + count, end_byte
    refinement, dice = zip(*losses, strict=True)
    return torch.cat(refinement), torch.cat(dice)


def _sizes_on_canvas(pixel_mask: Tensor | None, rows: Tensor, canvas: int) -> list[Size]:
    """(height, width) that the images of rows (R,) take up in the canvas."""
    if pixel_mask is None:
        return [(canvas, canvas)] * len(rows)
    shown = pixel_mask[rows].bool()
    sizes = torch.stack([shown.any(2).sum(1), shown.any(1).sum(1)], 1)
    return [(height, width) for height, width in sizes.tolist()]


@dataclass(frozen=True)
class _ImageTargets:
    """The targets of one image and where they are compared.

    Attributes:
        logits: (M, h, w).
        packed: (M, N) packed true masks.
        answers: (M,) ids.
        resized: (height, width) that the image takes up in the canvas.
        size: (height, width) of the true masks.
        canvas: side of the canvas.
    """

    logits: Tensor
    packed: Tensor
    answers: Tensor
    resized: Size
    size: Size
    canvas: int

    def losses(self, alpha: float) -> tuple[Tensor, Tensor]:
        """Both losses (M,), portion by portion."""
        pixels = max(self.canvas * self.canvas, self.size[0] * self.size[1])
        portion = max(1, PIXELS_AT_ONCE // pixels)
        parts = [slice(i, i + portion) for i in range(0, len(self.logits), portion)]
        ids, index = self.answers.unique(return_inverse=True)
        contested = None
        if alpha != 1 and len(ids) < len(index):
            contested = self._contested(parts, index, len(ids))

        def portion_losses(logits: Tensor, packed: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            full = self._full_size(logits)
            targets = unpack_masks(packed, self.size).flatten(1).float()
            own = None if contested is None else contested[index]
            return target_refinement_loss(full, targets, own, alpha), dice_loss(full, targets)

        found = []
        for part in parts:
            inputs = (self.logits[part], self.packed[part], index[part])
            found.append(
                checkpoint(portion_losses, *inputs, use_reentrant=False, preserve_rng_state=False)
            )
        refinement, dice = zip(*found, strict=True)
        return torch.cat(refinement), torch.cat(dice)

    @torch.no_grad()
    def _contested(self, parts: Sequence[slice], index: Tensor, num_answers: int) -> Tensor:
        """(A, P) bool: where two targets of an answer claim the pixel; needs all its masks."""
        num_pixels = self.size[0] * self.size[1]
        claims = index.new_zeros(num_answers, num_pixels, dtype=torch.int16)
        for part in parts:
            claims += count_claims(self._full_size(self.logits[part]), index[part], num_answers)
        return claims >= 2

    def _full_size(self, logits: Tensor) -> Tensor:
        """(m, P) logits at the size of the true masks."""
        return resize_logits(logits, self.resized, self.size, self.canvas).flatten(1)
