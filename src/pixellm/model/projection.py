"""The two projections and the neck: encoder features into the language model and the decoder.

Source: PixelLM, section 3 (``p_{V->T}`` and ``p_{V->D}``). Shape legend: B rows, S image tokens, D
text width, C decoder width, h w a grid.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixellm.model.config import PixelLMConfig
from pixellm.model.decoder import ChannelNorm
from pixellm.model.derived import Derived
from pixellm.model.evidence import BOX_CHANNELS, description_size
from pixellm.model.precision import FullPrecision

_LOUDNESS = 4.0
"""How much larger than words the names of instances found begin: the other channels add to them."""

_PLACE_WAVES = 6
"""Frequencies along each side of a grid that make up its places."""


def grid_position_codes(grid: tuple[int, int], size: int) -> Tensor:
    """Codes of a grid's cells that are the more alike the nearer cells lie.

    Cosines of low frequency along either side, each in a random direction of its own: left and
    right differ along one direction. Independent codes would hide that from a model for long.

    Args:
        grid: (height, width) in cells.
        size: width of a code.

    Returns:
        (height * width, size), row by row, of mean square 1.
    """
    order = torch.arange(1, _PLACE_WAVES + 1)
    down, across = (
        torch.cos(torch.pi * (torch.arange(count)[:, None] + 0.5) / count * order) / order
        for count in grid
    )
    waves = torch.cat(
        [down[:, None].expand(-1, grid[1], -1), across[None].expand(grid[0], -1, -1)], dim=-1
    )
    codes = waves.flatten(0, 1) @ torch.randn(2 * _PLACE_WAVES, size)
    return codes / codes.square().mean().sqrt()


class ImageProjector(nn.Module):
    """``p_{V->T}``: the deepest features, pooled to the language model's grid and projected."""

    def __init__(self, config: PixelLMConfig, vision_size: int) -> None:
        super().__init__()
        text_size, inner = config.text_config.hidden_size, config.llm_projector_size
        self.grid = (config.llm_grid[0], config.llm_grid[1])
        if inner:
            self.projection: nn.Module = nn.Sequential(
                nn.Linear(vision_size, inner), nn.GELU(), nn.Linear(inner, text_size)
            )
        else:
            self.projection = nn.Linear(vision_size, text_size)
        if config.llm_normalise:
            self.norm = nn.LayerNorm(vision_size)
        if config.llm_positions:
            scale = 1.0 if config.llm_normalise else 0.02
            self.positions = nn.Parameter(grid_position_codes(self.grid, text_size) * scale)
        if config.evidence_tokens:
            vision: Any = config.vision_config
            if not hasattr(vision, "state_size"):
                raise ValueError(
                    f"A {vision.model_type} encoder tells no evidence; leave out evidence_depths."
                )
            about = description_size(vision.num_classes, vision.state_size)
            self.evidence_projection = nn.Linear(about, text_size)
            self.nothing = nn.Parameter(torch.zeros(text_size))
            self.num_classes: int = vision.num_classes

    def forward(self, features: Tensor, entries: Tensor | None = None) -> Tensor:
        """Make image tokens.

        Args:
            features: (B, C_v, h, w).
            entries: (B, K, 5 + D) instances found, see :func:`pixellm.model.evidence.pack`.

        Returns:
            (B, S, D) tokens, row by row of the grid, then one for each entry.
        """
        if features.shape[-2:] != self.grid:
            features = F.interpolate(features, size=self.grid, mode="bilinear")
        cells = features.flatten(2).transpose(1, 2)
        tokens = self.projection(self.norm(cells) if hasattr(self, "norm") else cells)
        if hasattr(self, "positions"):
            tokens = tokens + self.positions
        if entries is None:
            return tokens
        found = entries[..., BOX_CHANNELS - 1, None] > 0
        described = self.evidence_projection(entries[..., BOX_CHANNELS:].to(tokens.dtype))
        return torch.cat([tokens, torch.where(found, described, self.nothing)], 1)

    @torch.no_grad()
    def name_classes(self, words: Tensor) -> None:
        """Let the token of an instance lie near (c, D) words, its class's own."""
        shares = slice(self.num_classes, 2 * self.num_classes)
        self.evidence_projection.weight[:, shares] = _LOUDNESS * words.T


class FeatureProjector(FullPrecision):
    """``p_{V->D}`` and the neck: encoder features of every scale into the decoder's width.

    With ``neck_top_down`` a finer scale takes the coarser one in before its 3 x 3 mixing. Where no
    gradient is asked for, the projector's last layer and the neck's 1 x 1 convolution, which have
    nothing between them, are one product.
    """

    def __init__(self, config: PixelLMConfig, vision_sizes: list[int]) -> None:
        super().__init__()
        sizes = config.decoder_projector_sizes
        self.top_down = config.neck_top_down
        self.shared = config.shared_projector
        if self.shared and len(set(vision_sizes)) > 1:
            raise ValueError(f"A shared projector needs scales of one width, not {vision_sizes}.")
        count = 1 if self.shared else config.num_scales
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(c, sizes[0]), nn.GELU(), nn.Linear(sizes[0], sizes[1]))
            if sizes
            else nn.Identity()
            for c in vision_sizes[:count]
        )
        self.necks = nn.ModuleList(
            self._build_neck(sizes[1] if sizes else c, config.decoder_size)
            for c in vision_sizes[:count]
        )
        self._folded = [Derived[tuple[Tensor, Tensor]]() for _ in range(count)]

    @staticmethod
    def _build_neck(size_in: int, size: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(size_in, size, kernel_size=1, bias=False),
            ChannelNorm(size, eps=1e-6),
            nn.Conv2d(size, size, kernel_size=3, padding=1, bias=False),
            ChannelNorm(size, eps=1e-6),
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Per scale (B, C_l, h_l, w_l) of any floating type to (B, C, h_l, w_l) of its own."""
        features: list[Tensor] = []
        for scale, feature_map in enumerate(maps):
            index = 0 if self.shared else scale
            neck: Any = self.necks[index]
            _, narrow_norm, mix, mix_norm = neck
            feature = narrow_norm(self._narrow(index, feature_map.to(self.dtype)))
            if self.top_down and features:
                # Before the mixing, which can then tell an edge of this instance from another's.
                coarser = F.interpolate(features[-1], size=feature.shape[-2:], mode="bilinear")
                feature = feature + coarser
                feature = feature + mix_norm(mix(F.gelu(feature)))
            else:
                feature = mix_norm(mix(feature))
            features.append(feature)
        return features

    def _narrow(self, index: int, feature_map: Tensor) -> Tensor:
        """Maps (B, C_l, h, w) through projector and 1 x 1 convolution, to (B, C, h, w)."""
        projection: Any = self.projections[index]
        neck: Any = self.necks[index]
        narrow = neck[0]
        cells = feature_map.permute(0, 2, 3, 1)
        if torch.is_grad_enabled() or not _can_fold(projection, narrow, cells.device):
            narrowed: Tensor = narrow(projection(cells).permute(0, 3, 1, 2))
            return narrowed
        first, activation, last = projection

        def fold() -> tuple[Tensor, Tensor]:
            # In float64, so that folding adds no rounding of its own.
            weight = narrow.weight[:, :, 0, 0].double()
            products = weight @ last.weight.double(), weight @ last.bias.double()
            return products[0].to(last.weight.dtype), products[1].to(last.bias.dtype)

        folded = self._folded[index].get((last.weight, last.bias, narrow.weight), fold)
        return F.linear(activation(first(cells)), *folded).permute(0, 3, 1, 2)


def _can_fold(projection: nn.Module, narrow: nn.Conv2d, device: torch.device) -> bool:
    """Whether the layers are there, and their weights at hand: not sharded, not offloaded."""
    if not isinstance(projection, nn.Sequential):
        return False
    last = projection[-1]
    plain = type(last) is nn.Linear and type(last.weight) is type(narrow.weight) is nn.Parameter
    return plain and last.weight.device == narrow.weight.device == device
