"""Pictures to feature maps: a transformers vision encoder read at several depths.

Knows tensors only: no files, no pictures, no normalisation. Shape legend: B rows, T tokens,
C channels, H W the canvas in pixels, h w a feature grid.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from pixellm.model import yolox as yolox  # makes this encoder known to AutoModel


def resize_position_table(
    table: Tensor,
    grid: tuple[int, int],
    *,
    layout: Literal["class_first", "class_last", "grid_only"] = "class_first",
    mode: str = "bicubic",
) -> Tensor:
    """Resize a ViT's position table to another patch grid.

    Args:
        table: (1 + n * n, C), a class row and a square grid of patches; (n * n, C) for a grid
            only.
        grid: (height, width) of the new grid in patches.
        layout: where the class row is taken to be. "class_first" is CLIP's own order;
            "class_last" reads the first n * n rows as the grid, off by one, as the released
            PixelLM does and as its weights were trained. "grid_only" has none, as in SigLIP.
        mode: interpolation, as in ``torch.nn.functional.interpolate``.

    Returns:
        (1 + height * width, C), with the class row where ``layout`` says; or (height * width, C).

    Raises:
        ValueError: the table does not hold a class row and a square grid.
    """
    num_class_rows = int(layout != "grid_only")
    side = round((table.shape[0] - num_class_rows) ** 0.5)
    if side * side + num_class_rows != table.shape[0]:
        raise ValueError(
            f"A position table of {table.shape[0]} rows is no square grid with {num_class_rows} "
            "class rows."
        )
    last = layout == "class_last"
    class_row = table[-1:] if last else table[:num_class_rows]
    patches = table[:-1] if last else table[num_class_rows:]
    if (side, side) != tuple(grid):
        maps = patches.float().T.reshape(1, -1, side, side)
        maps = F.interpolate(maps, size=grid, mode=mode, align_corners=False)
        patches = maps.flatten(2)[0].T.to(table.dtype)
    return torch.cat([patches, class_row] if last else [class_row, patches])


def feature_shapes(
    vision_config: PreTrainedConfig, image_size: int, depths: list[int]
) -> list[tuple[int, int, int]]:
    """(channels, height, width) of the features at each depth, found on meta tensors."""
    with torch.device("meta"):
        tower = VisionTower(copy.deepcopy(vision_config), depths, mask_padding=False).eval()
        maps = tower(torch.zeros(1, 3, image_size, image_size))
    return [(int(m.shape[1]), int(m.shape[2]), int(m.shape[3])) for m in maps]


def _skip_unread_layers(
    encoder: nn.Module, config: PreTrainedConfig, depths: Sequence[int]
) -> None:
    """Let a ViT's layers behind the deepest depth read pass their input on, at no cost.

    Their weights stay, and are saved as ever.
    """
    count = getattr(config, "num_hidden_layers", None)
    if count is None or not hasattr(config, "num_attention_heads"):
        return
    # Hidden states are the embeddings and one entry for each layer.
    deepest = max(depth % (count + 1) for depth in depths)
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            for layer in module[deepest:]:
                layer.forward = _pass_on


def _pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


class VisionTower(nn.Module):
    """Any transformers vision encoder, read at the depths that the scales need."""

    def __init__(
        self,
        config: PreTrainedConfig,
        depths: list[int],
        *,
        mask_padding: bool,
        freeze_batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = AutoModel.from_config(config)
        self.depths = depths
        self.freeze_batch_norm = freeze_batch_norm
        _skip_unread_layers(self.encoder, config, depths)
        self.patch_size: int | None = getattr(config, "patch_size", None)
        # A convolution has no attention keys to leave out.
        self.mask_padding = mask_padding and hasattr(config, "num_attention_heads")
        if self.mask_padding and not self._takes_attention_mask():
            raise ValueError(
                f"A {config.model_type} encoder takes no attention mask; set mask_padding to false."
            )

    def _takes_attention_mask(self) -> bool:
        layers = getattr(self.encoder, "encoder", self.encoder)
        return "attention_mask" in inspect.signature(layers.forward).parameters

    def train(self, mode: bool = True) -> VisionTower:
        """Switch mode; batch norms keep their running statistics where they are frozen."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> list[Tensor]:
        """Encode canvases.

        Args:
            pixel_values: (B, 3, H, W) normalised pixels.
            pixel_mask: (B, H, W) bool, false in the padding; None where nothing is padded.

        Returns:
            One (B, C_l, h_l, w_l) map per depth, coarse scale first.
        """
        extra = {}
        if self.mask_padding and pixel_mask is not None:
            extra["attention_mask"] = self._key_mask(pixel_values, pixel_mask)
        pixel_values = pixel_values.to(self.encoder.dtype)
        output = self.encoder(pixel_values, output_hidden_states=True, return_dict=True, **extra)
        height, width = pixel_values.shape[-2:]
        states = output.hidden_states
        return [self._to_map(states[depth], height, width) for depth in self.depths]

    def load_encoder(self, state: dict[str, Tensor]) -> None:
        """Fill the encoder from another of its kind, resizing a ViT's position table.

        Raises:
            RuntimeError: weights missing, left over, or of another shape.
        """
        own = self.encoder.state_dict()
        fitted = {}
        for name, value in state.items():
            is_table = "position_embedding" in name and name in own
            if is_table and own[name].shape != value.shape:
                value = self._resize_table(value, own[name].shape)
            fitted[name] = value
        self.encoder.load_state_dict(fitted)

    def _resize_table(self, table: Tensor, shape: torch.Size) -> Tensor:
        """Fit a position table, (rows, C) or (1, rows, C), to another one's ``shape``."""
        num_class_rows = int(self._has_class_token())
        side = round((shape[-2] - num_class_rows) ** 0.5)
        layout: Literal["class_first", "grid_only"] = (
            "class_first" if num_class_rows else "grid_only"
        )
        resized = resize_position_table(table.flatten(0, -2), (side, side), layout=layout)
        return resized.reshape(shape)

    def _has_class_token(self) -> bool:
        names = ("class_embedding", "cls_token")
        return any(getattr(self.encoder.embeddings, name, None) is not None for name in names)

    def _to_map(self, states: Tensor, height: int, width: int) -> Tensor:
        """(B, T, C) tokens or (B, C, h, w) maps to (B, C, h, w), prefix tokens dropped."""
        if states.ndim == 4:
            return states
        grid = self._patch_grid(height, width)
        patches = states[:, states.shape[1] - grid[0] * grid[1] :]
        return patches.transpose(1, 2).unflatten(2, grid)

    def _patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches on a canvas."""
        if self.patch_size is None:
            raise ValueError("This encoder gives token sequences but names no patch_size.")
        return height // self.patch_size, width // self.patch_size

    def _key_mask(self, pixel_values: Tensor, pixel_mask: Tensor) -> Tensor:
        """Additive (B, 1, T, T) attention mask that hides the patches of the padding."""
        height, width = pixel_values.shape[-2:]
        grid = self._patch_grid(height, width)
        visible = F.interpolate(pixel_mask[:, None].float(), size=grid, mode="nearest")
        visible = visible.flatten(1) > 0.5
        visible = F.pad(visible, (self._num_prefix_tokens(), 0), value=True)
        dtype = self.encoder.dtype
        bias = torch.zeros(visible.shape, dtype=dtype, device=pixel_values.device)
        bias = bias.masked_fill(~visible, torch.finfo(dtype).min)
        return bias[:, None, None, :].expand(-1, 1, visible.shape[1], -1)

    def _num_prefix_tokens(self) -> int:
        """Class and register tokens in front of the patches."""
        registers = getattr(self.encoder.embeddings, "register_tokens", None)
        return int(self._has_class_token()) + (0 if registers is None else registers.shape[1])
