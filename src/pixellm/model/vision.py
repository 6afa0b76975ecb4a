"""Images to feature maps: a transformers vision encoder read at several depths.

Shape legend: B rows, T tokens, C channels, H W the canvas in pixels, h w a feature grid.
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
    shapes = hidden_shapes(vision_config, image_size)
    return [shapes[depth] for depth in depths]


def hidden_shapes(vision_config: PreTrainedConfig, image_size: int) -> list[tuple[int, int, int]]:
    """(channels, height, width) of all of an encoder's hidden states, found on meta tensors."""
    with torch.device("meta"):
        tower = VisionTower(copy.deepcopy(vision_config), [-1], mask_padding=False).eval()
        maps = tower.read_all(torch.zeros(1, 3, image_size, image_size))
    return [(int(m.shape[1]), int(m.shape[2]), int(m.shape[3])) for m in maps]


def choose_depths(shapes: Sequence[tuple[int, int, int]]) -> list[int]:
    """Two depths to read an encoder at, coarse first.

    Where all hidden states have one grid, the release's depths, or the same share of a shallower
    encoder; otherwise the last state, and the last one of at least twice its height.

    Args:
        shapes: of all hidden states, as :func:`hidden_shapes` gives them.
    """
    layers = len(shapes) - 1
    finer = [i for i, shape in enumerate(shapes) if shape[1] >= 2 * shapes[-1][1]]
    if finer:
        return [layers, finer[-1]]
    return [-2, -11] if layers >= 11 else [-2, -min(layers + 1, max(3, layers // 2 + 1))]


def takes_padding_mask(vision_config: PreTrainedConfig) -> bool:
    """Whether an encoder can leave patches of padding out of its attention."""
    with torch.device("meta"):
        tower = VisionTower(copy.deepcopy(vision_config), [-1], mask_padding=False)
    return hasattr(vision_config, "num_attention_heads") and tower.takes_attention_mask()


def _skip_unread_layers(
    encoder: nn.Module, config: PreTrainedConfig, depths: Sequence[int]
) -> None:
    """Let a ViT's layers behind the deepest depth read pass their input on, at no cost.

    Their weights stay, and are saved as ever.
    """
    count = getattr(config, "num_hidden_layers", None)
    # A pyramid has a number of heads for each stage, and other hidden states than its layers'.
    if count is None or not isinstance(getattr(config, "num_attention_heads", None), int):
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
        if self.encoder.main_input_name != "pixel_values":
            raise ValueError(
                f"A {config.model_type} model reads {self.encoder.main_input_name}, not images; "
                "name a vision encoder."
            )
        self.depths = depths
        self.freeze_batch_norm = freeze_batch_norm
        _skip_unread_layers(self.encoder, config, depths)
        self.patch_size: int | None = getattr(config, "patch_size", None)
        # A convolution has no attention keys to leave out.
        self.mask_padding = mask_padding and hasattr(config, "num_attention_heads")
        # NaFlex encoders read patches with the grid that these lie on, and make none themselves.
        self.reads_patches = "spatial_shapes" in inspect.signature(self.encoder.forward).parameters
        if self.mask_padding and not self.takes_attention_mask():
            raise ValueError(
                f"A {config.model_type} encoder takes no attention mask; set mask_padding to false."
            )

    def takes_attention_mask(self) -> bool:
        """Whether the encoder's layers can be told which patches to leave out."""
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
        states = self._hidden_states(pixel_values, pixel_mask)
        return [self._to_map(states[depth], pixel_values) for depth in self.depths]

    def read_all(self, pixel_values: Tensor) -> list[Tensor]:
        """Maps of all hidden states of (B, 3, H, W) canvases without padding."""
        states = self._hidden_states(pixel_values, None)
        return [self._to_map(state, pixel_values) for state in states]

    def _hidden_states(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> Sequence[Tensor]:
        """Tokens or maps of all depths; those behind the deepest one read are not computed."""
        visible = None
        if self.mask_padding and pixel_mask is not None:
            visible = self._visible_patches(pixel_values, pixel_mask)
        inputs: dict[str, Any] = {"pixel_values": pixel_values.to(self.encoder.dtype)}
        if self.reads_patches:
            inputs = self._patches(inputs["pixel_values"], visible)
        elif visible is not None:
            inputs["attention_mask"] = self._key_mask(visible)
        output = self.encoder(**inputs, output_hidden_states=True, return_dict=True)
        # Encoders of windows also give their tokens as maps, whose grids only they know.
        maps = getattr(output, "reshaped_hidden_states", None)
        states: Sequence[Tensor] = output.hidden_states if maps is None else maps
        return states

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
        return self._prefix_part("class_embedding") or self._prefix_part("cls_token")

    def _prefix_part(self, name: str) -> bool:
        """Whether the encoder puts tokens of a name in front of its patches."""
        return getattr(getattr(self.encoder, "embeddings", None), name, None) is not None

    def _to_map(self, states: Tensor, pixel_values: Tensor) -> Tensor:
        """(B, T, C) tokens or (B, C, h, w) maps to (B, C, h, w), prefix tokens dropped."""
        if states.ndim == 4:
            return states
        grid = self._patch_grid(pixel_values)
        first = states.shape[1] - grid[0] * grid[1]
        if first < 0:
            raise ValueError(
                f"This encoder gives {states.shape[1]} tokens where a canvas has {grid[0]} x "
                f"{grid[1]} patches; choose one that keeps a grid of all patches."
            )
        return states[:, first:].transpose(1, 2).unflatten(2, grid)

    def _patch_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of patches on a canvas."""
        if not isinstance(self.patch_size, int):
            raise ValueError(
                "This encoder gives tokens but names no patch_size, so that they are no map; "
                "choose another."
            )
        height, width = pixel_values.shape[-2:]
        return height // self.patch_size, width // self.patch_size

    def _patches(self, pixel_values: Tensor, visible: Tensor | None) -> dict[str, Any]:
        """What an encoder reads that takes patches, row by row, with the grid they lie on."""
        grid, size = self._patch_grid(pixel_values), self.patch_size
        assert size is not None
        cut = pixel_values[..., : grid[0] * size, : grid[1] * size]
        cells = cut.unflatten(3, (grid[1], size)).unflatten(2, (grid[0], size))
        patches = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        # Read one by one in Python, so in main memory.
        shapes = torch.tensor([grid] * len(patches), device="cpu")
        return {
            "pixel_values": patches,
            "pixel_attention_mask": None if visible is None else visible.long(),
            "spatial_shapes": shapes,
        }

    def _visible_patches(self, pixel_values: Tensor, pixel_mask: Tensor) -> Tensor:
        """(B, h * w) whether a patch lies in the image rather than in the padding."""
        grid = self._patch_grid(pixel_values)
        return (
            F.interpolate(pixel_mask[:, None].float(), size=grid, mode="nearest").flatten(1) > 0.5
        )

    def _key_mask(self, visible: Tensor) -> Tensor:
        """Additive (B, 1, T, T) attention mask that hides patches of the padding."""
        visible = F.pad(visible, (self._num_prefix_tokens(), 0), value=True)
        dtype = self.encoder.dtype
        bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        bias = bias.masked_fill(~visible, torch.finfo(dtype).min)
        return bias[:, None, None, :].expand(-1, 1, visible.shape[1], -1)

    def _num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens in front of the patches."""
        count = int(self._has_class_token()) + int(self._prefix_part("distillation_token"))
        if self._prefix_part("register_tokens"):
            count += self.encoder.embeddings.register_tokens.shape[1]
        return count
