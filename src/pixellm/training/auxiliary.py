"""The auxiliary losses that classes allow: what is where, what is meant, what is not there.

A linear head on each cell predicts the share of every class in the cell's area; another reads the
class of target embeddings and of the decoder's features with the same weights. Heads belong to
training alone and are thrown away afterwards; they know nothing of text or of the model. A third
loss asks for empty masks where a target is looked for in a picture that lacks it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100


def count_cell_classes(patch_classes: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """Counts the pixels of each class inside every cell of a coarser grid.

    Args:
        patch_classes: (B, h, w) int64 classes, 0 the background, -100 ignored.
        grid: (rows, columns) of cells; sides need not divide h and w.
        num_classes: K, background included.

    Returns:
        (B, rows, columns, K) float32 counts.
    """
    batch, height, width = patch_classes.shape
    rows, columns = grid
    device = patch_classes.device
    row_of = torch.arange(height, device=device) * rows // height
    column_of = torch.arange(width, device=device) * columns // width
    cells = row_of[:, None] * columns + column_of
    offsets = torch.arange(batch, device=device)[:, None, None] * (rows * columns)
    keys = (offsets + cells) * num_classes + patch_classes
    counts = torch.bincount(
        keys[patch_classes != IGNORED], minlength=batch * rows * columns * num_classes
    )
    return counts.view(batch, rows, columns, num_classes).float()


class PatchClassHead(nn.Module):
    """Linear classifier on every cell of a feature map.

    Args:
        channels: C, width of the deepest feature map.
        num_classes: K, background included.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor, patch_classes: Tensor) -> Tensor:
        """Sum over annotated pixels of the cross-entropy of their cell's prediction.

        Equals, cell by cell, the cross-entropy against the class distribution of the cell times
        its annotated pixels. Divide by the number of annotated pixels.

        Args:
            features: (B, C, h', w') deepest feature map.
            patch_classes: (B, h, w) int64 dense classes, 0 background, -100 ignored.

        Returns:
            Scalar float32 sum.
        """
        grid = (features.shape[2], features.shape[3])
        counts = count_cell_classes(patch_classes, grid, self.num_classes)
        logits = self.classifier(features.permute(0, 2, 3, 1)).float()
        return -(counts * F.log_softmax(logits, dim=-1)).sum()


class TargetClassHead(nn.Module):
    """One linear classifier per scale for target embeddings and decoder features alike.

    A target has to find its pixels by similarity. Left to the mask losses alone, embeddings and
    features first have to agree on a code for hundreds of classes; a shared classifier gives them
    one.

    Args:
        num_scales: L.
        size: C, width of the decoder.
        num_classes: K, background included.
    """

    def __init__(self, num_scales: int, size: int, num_classes: int) -> None:
        super().__init__()
        self.patch_heads = nn.ModuleList(
            PatchClassHead(size, num_classes) for _ in range(num_scales)
        )

    def forward(
        self,
        features: Sequence[Tensor],
        target_embeddings: Tensor,
        patch_classes: Tensor,
        target_classes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropies, means over the scales.

        Args:
            features: per scale (B, C, h_l, w_l) inputs of the decoder.
            target_embeddings: (M, L, C).
            patch_classes: (B, h, w) int64, see :class:`PatchClassHead`.
            target_classes: (M,) int64, -100 where unknown.

        Returns:
            The sum over annotated pixels and the sum over targets, scalars.
        """
        pixels = target_embeddings.new_zeros(())
        targets = target_embeddings.new_zeros(())
        for scale, head in enumerate(self.patch_heads):
            pixels = pixels + head(features[scale], patch_classes)
            assert isinstance(head, PatchClassHead)
            logits = head.classifier(target_embeddings[:, scale]).float()
            targets = targets + F.cross_entropy(
                logits, target_classes, ignore_index=IGNORED, reduction="sum"
            )
        count = len(self.patch_heads)
        return pixels / count, targets / count


def find_absent(
    target_rows: Tensor, target_classes: Tensor, patch_classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Targets of which the next picture of the batch shows nothing.

    Args:
        target_rows: (M,) the picture of each target.
        target_classes: (M,) int64, -100 where unknown.
        patch_classes: (B, h, w) int64, see :class:`PatchClassHead`.

    Returns:
        Places (K,) among the targets, and rows (K,) of the pictures that lack them.
    """
    others = (target_rows + 1) % len(patch_classes)
    shown = (patch_classes[others] == target_classes[:, None, None]).flatten(1).any(1)
    lacking = (target_classes != IGNORED) & ~shown & (others != target_rows)
    places = torch.nonzero(lacking)[:, 0]
    return places, others[places]


def empty_mask_loss_sum(mask_logits: Tensor, valid: Tensor) -> Tensor:
    """Sum over masks of the mean cross-entropy against an empty mask.

    Args:
        mask_logits: (K, h, w).
        valid: (K, h', w') 0/1 float, 0 where nothing is known; of any size.

    Returns:
        Scalar float32.
    """
    valid = F.interpolate(valid[:, None], size=mask_logits.shape[-2:], mode="nearest")[:, 0]
    area = valid.flatten(1).sum(1).clamp_min(1)
    return ((F.softplus(mask_logits.float()) * valid).flatten(1).sum(1) / area).sum()
