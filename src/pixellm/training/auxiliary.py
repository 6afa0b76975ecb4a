"""The auxiliary losses that known objects allow: what is where, how far it reaches, what is meant.

Linear heads on each cell of the encoder predict the share of every class in the cell's area and the
box of what lies there; another reads the class of the decoder's features and of target embeddings
with the same weights. Heads belong to training alone and are thrown away afterwards; they know
nothing of text or of the model. A last loss asks for empty masks where a target is looked for in an
image that lacks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixellm.training.config import Stage

IGNORED = -100


def count_cell_classes(patch_classes: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """Count the pixels of each class inside every cell of a coarser grid.

    Args:
        patch_classes: (B, h, w) int64 classes, 0 the background, -100 ignored.
        grid: (rows, columns) of cells; sides need not divide h and w.
        num_classes: K, background included.

    Returns:
        (B, rows, columns, K) float32 counts.
    """
    batch = len(patch_classes)
    rows, columns = grid
    device = patch_classes.device
    row_of, column_of = _cells_of_pixels(patch_classes, grid)
    cells = row_of[:, None] * columns + column_of
    offsets = torch.arange(batch, device=device)[:, None, None] * (rows * columns)
    keys = (offsets + cells) * num_classes + patch_classes
    counts = torch.bincount(
        keys[patch_classes != IGNORED], minlength=batch * rows * columns * num_classes
    )
    return counts.view(batch, rows, columns, num_classes).float()


def _cells_of_pixels(pixels: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The row (h,) and the column (w,) of ``grid`` that those of a (B, h, w, ...) map lie in."""
    height, width = pixels.shape[1:3]
    rows = torch.arange(height, device=pixels.device) * grid[0] // height
    return rows, torch.arange(width, device=pixels.device) * grid[1] // width


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
        """
        grid = (features.shape[2], features.shape[3])
        counts = count_cell_classes(patch_classes, grid, self.num_classes)
        logits = self.classifier(features.permute(0, 2, 3, 1)).float()
        return -(counts * F.log_softmax(logits, dim=-1)).sum()


class PatchBoxHead(nn.Module):
    """Linear reading, off every cell of a feature map, of how far the instance there reaches.

    Four numbers a cell: the distance from the cell's centre to the left, top, right and bottom of
    the visible box of what it shows, in cells; below 0 where the centre lies outside. A language
    model that reads the cells finds position and size in them, and cells of one instance agree.

    Args:
        channels: C, width of the deepest feature map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reader = nn.Linear(channels, 4)

    def forward(self, features: Tensor, patch_boxes: Tensor) -> Tensor:
        """Sum over pixels that show an instance of the mean absolute error of the four, in cells.

        Args:
            features: (B, C, h', w') deepest feature map.
            patch_boxes: (B, h, w, 4) left, top, right and bottom of the box of what each pixel
                shows, as shares of the canvas; below 0 where it shows nothing.
        """
        rows, columns = features.shape[2:]
        row_of, column_of = _cells_of_pixels(patch_boxes, (rows, columns))
        reaches = self.reader(features.permute(0, 2, 3, 1)).float()[:, row_of][:, :, column_of]
        middle = torch.stack(torch.meshgrid(column_of + 0.5, row_of + 0.5, indexing="xy"), dim=-1)
        edges = patch_boxes * patch_boxes.new_tensor([columns, rows] * 2)
        wanted = torch.cat([middle - edges[..., :2], edges[..., 2:] - middle], dim=-1)
        shown = patch_boxes[..., 0] >= 0
        return (reaches - wanted)[shown].abs().mean(-1).sum()


class FeatureClassHead(nn.Module):
    """One linear classifier per scale, for the decoder's features and target embeddings alike.

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

    def forward(self, features: Sequence[Tensor], patch_classes: Tensor) -> Tensor:
        """Sum over annotated pixels of the cross-entropy of their cells, mean over the scales.

        Args:
            features: per scale (B, C, h_l, w_l) inputs of the decoder.
            patch_classes: (B, h, w) int64, see :class:`PatchClassHead`.
        """
        sums = [
            head(maps, patch_classes) for head, maps in zip(self.patch_heads, features, strict=True)
        ]
        return torch.stack(sums).mean()

    def read_targets(self, target_embeddings: Tensor, target_classes: Tensor) -> Tensor:
        """Sum over targets of the cross-entropy of their class, mean over the scales.

        Args:
            target_embeddings: (M, L, C).
            target_classes: (M,) int64, -100 where unknown.
        """
        sums = [
            F.cross_entropy(
                head.get_submodule("classifier")(embeddings).float(),
                target_classes,
                ignore_index=IGNORED,
                reduction="sum",
            )
            for head, embeddings in zip(self.patch_heads, target_embeddings.unbind(1), strict=True)
        ]
        return torch.stack(sums).mean()


def find_absent(
    target_rows: Tensor, target_classes: Tensor, patch_classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Targets of which the next image of the batch shows nothing.

    Args:
        target_rows: (M,) the image of each target.
        target_classes: (M,) int64, -100 where unknown.
        patch_classes: (B, h, w) int64, see :class:`PatchClassHead`.

    Returns:
        Indices (K,) among the targets, and rows (K,) of the images that lack them.
    """
    others = (target_rows + 1) % len(patch_classes)
    shown = (patch_classes[others] == target_classes[:, None, None]).flatten(1).any(1)
    lacking = (target_classes != IGNORED) & ~shown & (others != target_rows)
    indices = torch.nonzero(lacking)[:, 0]
    return indices, others[indices]


def empty_mask_loss_sum(mask_logits: Tensor, valid: Tensor) -> Tensor:
    """Sum over masks of the mean cross-entropy against an empty mask.

    Args:
        mask_logits: (K, h, w).
        valid: (K, h', w') 0/1 float, 0 where nothing is known; of any size.
    """
    valid = F.interpolate(valid[:, None], size=mask_logits.shape[-2:], mode="nearest")[:, 0]
    area = valid.flatten(1).sum(1).clamp_min(1)
    return ((F.softplus(mask_logits.float()) * valid).flatten(1).sum(1) / area).sum()


def build_heads(config: Any, stages: Iterable[Stage], num_names: int) -> dict[str, nn.Module]:
    """Heads of the auxiliary losses that any stage has, by name; none without class names.

    The background is not among the ``num_names`` classes of the data.
    """
    if not num_names:
        return {}
    channels = config.vision_channels[str(config.vision_depths[0])]
    weights = [(name, weight) for s in stages for name, weight in s.loss.model_dump().items()]
    weighed = {name for name, weight in weights if weight > 0}
    heads: dict[str, nn.Module] = {}
    if "patch_class" in weighed:
        heads["patch_class_head"] = PatchClassHead(channels, num_names + 1)
    if "patch_box" in weighed:
        heads["patch_box_head"] = PatchBoxHead(channels)
    if weighed & {"feature_class", "target_class"}:
        heads["feature_class_head"] = FeatureClassHead(
            config.num_scales, config.decoder_size, num_names + 1
        )
    return heads
