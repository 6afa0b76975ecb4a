"""Masks at the size of pixels: logits brought there as they are shown, truth kept packed.

Training compares masks where inference shows them, so both go through :func:`resize_logits`. Truth
at that size is large; it travels as bits and is unpacked a portion at a time. Shape legend:
M masks, h w the decoder's grid, H W the size that is compared or shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixellm.masks import Size
from pixellm.types import BoolMask

_LOGITS_AT_ONCE = 1 << 25
_BITS = (128, 64, 32, 16, 8, 4, 2, 1)


def resize_logits(mask_logits: Tensor, resized: Size, size: Size, canvas: int) -> Tensor:
    """Bring predicted logits from the decoder's grid to the image, as the release does.

    Bilinear (align_corners False) to the canvas, the padding cut off, bilinear to the image.

    Args:
        mask_logits: (M, h, w) over the whole canvas, any resolution and float type.
        resized: (height, width) that the image takes up in the canvas.
        size: (height, width) of the result, such as that of the original image.
        canvas: side of the canvas in pixels.

    Returns:
        (M, *size) float32 logits over the image without padding.
    """
    logits = mask_logits[:, None].float()
    logits = F.interpolate(logits, (canvas, canvas), mode="bilinear", align_corners=False)
    logits = logits[..., : resized[0], : resized[1]]
    if logits.shape[-2:] != tuple(size):
        logits = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
    return logits[:, 0]


def restore_masks(
    mask_logits: Tensor, resized_size: Size, original_size: Size, canvas: int
) -> Tensor:
    """Resize logits to the original image, in portions that keep memory near that of the result.

    Args:
        mask_logits: (M, h, w) over the whole canvas, any resolution and float type.
        resized_size: (height, width) that the image takes up in the canvas.
        original_size: (height, width) of the image.
        canvas: side of the canvas in pixels.

    Returns:
        (M, H, W) float32 logits over the original image; a mask is where they are above 0.
    """
    restored = mask_logits.new_empty((len(mask_logits), *original_size), dtype=torch.float32)
    largest = max(canvas * canvas, original_size[0] * original_size[1])
    portion = max(1, _LOGITS_AT_ONCE // largest)
    for start in range(0, len(mask_logits), portion):
        part = slice(start, start + portion)
        restored[part] = resize_logits(mask_logits[part], resized_size, original_size, canvas)
    return restored


def pack_masks(masks: Sequence[BoolMask]) -> tuple[Tensor, Tensor]:
    """Pack masks of any sizes, eight pixels a byte, each mask from a byte of its own on.

    Args:
        masks: each (H, W) bool.

    Returns:
        (N,) uint8 bits of all masks in order, row by row, the first pixel in the highest bit; and
        (M, 2) int64 their sizes, (height, width).
    """
    empty = np.zeros(0, dtype=np.uint8)
    packed = np.concatenate([empty, *(np.packbits(mask) for mask in masks)])
    sizes = torch.tensor([mask.shape for mask in masks], dtype=torch.long).reshape(-1, 2)
    return torch.from_numpy(packed), sizes


def packed_bytes(size: Size) -> int:
    """Bytes that one packed mask of ``size`` (height, width) takes."""
    return (size[0] * size[1] + 7) // 8


def unpack_masks(packed: Tensor, size: Size) -> Tensor:
    """Masks of one size as pixels.

    Args:
        packed: (M, N) uint8, see :func:`pack_masks`.
        size: (height, width) of every one.

    Returns:
        (M, H, W) bool.
    """
    bits = packed[..., None] & packed.new_tensor(_BITS) > 0
    return bits.flatten(1)[:, : size[0] * size[1]].unflatten(1, tuple(size))
