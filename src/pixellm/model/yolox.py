"""A YOLOX detector as a transformers vision encoder, its class evidence among its feature maps.

YOLOX (Ge et al., 2021, arXiv:2107.08430) in its depthwise "nano" kin, batch norms folded
into the convolutions. Shape legend: B rows, C channels, H W the canvas in pixels, h w a grid.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithNoAttention

from pixellm.model.yolox_config import YoloxConfig

STAGE_NAMES = (
    *("stem", "stage1", "stage2", "stage3", "stage4"),
    *("pyramid8", "pyramid16", "pyramid32"),
    *("evidence8", "evidence16", "evidence32"),
)
"""What a hidden state is: features at strides 2 to 32, the pyramid, the detector's readings."""

_DEEPEST_STRIDE = 32


def _convolution(size_in: int, size: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
    padding = (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(size_in, size, kernel, stride, padding, groups=groups), nn.SiLU()
    )


def _block(size_in: int, size: int, stride: int = 1) -> nn.Module:
    """A 3 x 3 convolution in two steps, depthwise and pointwise."""
    return nn.Sequential(
        *_convolution(size_in, size_in, 3, stride, groups=size_in), *_convolution(size_in, size, 1)
    )


class Bottleneck(nn.Module):
    """Mixes within and between channels, and adds its input where asked to."""

    def __init__(self, size: int, *, residual: bool) -> None:
        super().__init__()
        self.narrow = _convolution(size, size, 1)
        self.mix = _block(size, size)
        self.residual = residual

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        mixed: Tensor = self.mix(self.narrow(maps))
        return maps + mixed if self.residual else mixed


class SplitBlock(nn.Module):
    """Half of the channels through bottlenecks, half around them (cross stage partial)."""

    def __init__(self, size_in: int, size: int, depth: int, *, residual: bool = True) -> None:
        super().__init__()
        half = size // 2
        self.through = _convolution(size_in, half, 1)
        self.around = _convolution(size_in, half, 1)
        self.bottlenecks = nn.Sequential(
            *(Bottleneck(half, residual=residual) for _ in range(depth))
        )
        self.join = _convolution(2 * half, size, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C_in, h, w) to (B, C, h, w)."""
        through, around = self.through(maps), self.around(maps)
        joined: Tensor = self.join(torch.cat([self.bottlenecks(through), around], 1))
        return joined


class PooledContext(nn.Module):
    """The strongest responses around each cell, in windows of 5, 9 and 13."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.narrow = _convolution(size, size // 2, 1)
        self.join = _convolution(2 * size, size, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        narrow = self.narrow(maps)
        pooled = [F.max_pool2d(narrow, k, stride=1, padding=k // 2) for k in (5, 9, 13)]
        joined: Tensor = self.join(torch.cat([narrow, *pooled], 1))
        return joined


class Pyramid(nn.Module):
    """Carries what the deep stages know to the fine ones and back."""

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__()
        fine, middle, deep = (config.base_channels * f for f in (4, 8, 16))
        depth = config.base_depth
        self.lateral_deep = _convolution(deep, middle, 1)
        self.down_middle = SplitBlock(2 * middle, middle, depth, residual=False)
        self.lateral_middle = _convolution(middle, fine, 1)
        self.down_fine = SplitBlock(2 * fine, fine, depth, residual=False)
        self.stride_fine = _block(fine, fine, 2)
        self.up_middle = SplitBlock(2 * fine, middle, depth, residual=False)
        self.stride_middle = _block(middle, middle, 2)
        self.up_deep = SplitBlock(2 * middle, deep, depth, residual=False)

    def forward(self, fine: Tensor, middle: Tensor, deep: Tensor) -> list[Tensor]:
        """Maps of three stages to maps of the same strides, fine first."""
        from_deep = self.lateral_deep(deep)
        joined = self.down_middle(torch.cat([_double(from_deep), middle], 1))
        from_middle = self.lateral_middle(joined)
        fine = self.down_fine(torch.cat([_double(from_middle), fine], 1))
        middle = self.up_middle(torch.cat([self.stride_fine(fine), from_middle], 1))
        deep = self.up_deep(torch.cat([self.stride_middle(middle), from_deep], 1))
        return [fine, middle, deep]


def _double(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2, mode="nearest")


class YoloxHead(nn.Module):
    """What one level of the pyramid shows: classes, whether an instance is there, and its box."""

    def __init__(self, config: YoloxConfig, size_in: int) -> None:
        super().__init__()
        size = config.head_channels
        self.stem = _convolution(size_in, size, 1)
        self.class_layers = nn.Sequential(_block(size, size), _block(size, size))
        self.class_reader = nn.Conv2d(size, config.num_classes, 1)
        self.box_layers = nn.Sequential(_block(size, size), _block(size, size))
        self.box_reader = nn.Conv2d(size, 4, 1)
        self.object_reader = nn.Conv2d(size, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Read every cell.

        Args:
            maps: (B, C, h, w).

        Returns:
            (B, num_classes + 5 + 2 * head_channels, h, w): class logits, the logit of an object,
            its box as middle, width and height in shares of the canvas, and the features that
            classes and boxes were read from.
        """
        stem = self.stem(maps)
        of_class, of_box = self.class_layers(stem), self.box_layers(stem)
        boxes = self._place(self.box_reader(of_box))
        logits = [self.class_reader(of_class), self.object_reader(of_box)]
        return torch.cat([*logits, boxes, of_class, of_box], 1)

    @staticmethod
    def _place(offsets: Tensor) -> Tensor:
        """(B, 4, h, w) offsets and log sizes in cells to boxes in shares of the canvas."""
        rows, columns = offsets.shape[-2:]
        y = torch.arange(rows, device=offsets.device, dtype=offsets.dtype)
        x = torch.arange(columns, device=offsets.device, dtype=offsets.dtype)
        middle_x = (offsets[:, 0] + x) / columns
        middle_y = (offsets[:, 1] + y[:, None]) / rows
        width, height = offsets[:, 2].exp() / columns, offsets[:, 3].exp() / rows
        return torch.stack([middle_x, middle_y, width, height], 1)


class YoloxModel(PreTrainedModel):
    """The whole detector; its convolutions are declared in the order in which they run."""

    config_class = YoloxConfig
    config: YoloxConfig
    base_model_prefix = "yolox"
    main_input_name = "pixel_values"

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__(config)
        width, depth = config.base_channels, config.base_depth
        # The first two layers work on four neighbouring pixels at a time.
        self.stem = nn.Sequential(*_convolution(12, width, 3))
        sizes = [width * factor for factor in (1, 2, 4, 8, 16)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                _block(sizes[i], sizes[i + 1], 2),
                *([PooledContext(sizes[4])] if i == 3 else []),
                SplitBlock(
                    sizes[i + 1], sizes[i + 1], depth * (3 if i in (1, 2) else 1), residual=i < 3
                ),
            )
            for i in range(4)
        )
        self.pyramid = Pyramid(config)
        self.heads = nn.ModuleList(YoloxHead(config, size) for size in sizes[2:])
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithNoAttention:
        """Encode canvases.

        Args:
            pixel_values: (B, 3, H, W) in 0..255 less ``pixel_offset``; H and W multiples of 32.
            output_hidden_states: has no effect; all hidden states are always given.
            return_dict: has no effect.

        Returns:
            ``hidden_states`` in the order of :data:`STAGE_NAMES`, then the detector's readings of
            the canvas at each of ``extra_sizes``, at strides 8, 16 and 32 there;
            ``last_hidden_state`` is the pyramid's deepest map.
        """
        # Boxes and scores of rounded features are others than those of the same image elsewhere.
        with _without_autocast(pixel_values):
            states, pyramid = self._features(pixel_values)
            evidence = self._read(pyramid)
            for share in self.config.extra_sizes:
                evidence += self._read(self._features(_resize(pixel_values, share))[1])
        return BaseModelOutputWithNoAttention(
            last_hidden_state=pyramid[-1], hidden_states=(*states, *pyramid, *evidence)
        )

    def _features(self, pixel_values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features of a canvas at strides 2 to 32, and the pyramid at 8 to 32."""
        folded = _fold_neighbours(pixel_values + self.config.pixel_offset)
        # Pixels with their channels together: depthwise convolutions take two thirds of the time.
        states = [self.stem(folded.contiguous(memory_format=torch.channels_last))]
        for stage in self.stages:
            states.append(stage(states[-1]))
        return states, self.pyramid(*states[2:])

    def _read(self, pyramid: list[Tensor]) -> list[Tensor]:
        """What the head of each level reads there."""
        return [head(level) for head, level in zip(self.heads, pyramid, strict=True)]


def _without_autocast(pixels: Tensor) -> AbstractContextManager[Any]:
    """Keeps autocast off; tensors without memory know none."""
    return nullcontext() if pixels.is_meta else torch.autocast(pixels.device.type, enabled=False)


def _resize(pixels: Tensor, share: float) -> Tensor:
    """(B, 3, H, W) at about a share of its size, in whole cells of the deepest stage."""
    size = [
        max(1, round(side * share / _DEEPEST_STRIDE)) * _DEEPEST_STRIDE for side in pixels.shape[2:]
    ]
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True)


def _fold_neighbours(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 12, H / 2, W / 2): each 2 x 2 block's columns, one after the other."""
    parts = [pixels[..., y::2, x::2] for x in (0, 1) for y in (0, 1)]
    return torch.cat(parts, 1)


AutoModel.register(YoloxConfig, YoloxModel, exist_ok=True)
