"""The pixel decoder: target embeddings and feature maps in, mask logits out.

Source: PixelLM, section 3 (pixel decoder, ``m^l = Attn^l(h^l, f'^l)``, modulation and the sum
over scales). It knows neither text nor images. One call serves all M targets of a batch.
Shape legend: M targets, B rows, L scales, C decoder width, P pixels of a grid, Q query tokens,
h w a grid; scale 0 is the coarsest.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixellm.model.config import PixelLMConfig
from pixellm.model.derived import Derived
from pixellm.model.precision import FullPrecision


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, h, w)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise; the shape stays (B, C, h, w)."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GridPositions(nn.Module):
    """Random Fourier encoding of the cells of a grid (Tancik et al., 2020)."""

    frequencies: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, size // 2))
        self._codes: Derived[Tensor] = Derived()

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Encode cell centres of ``grid`` = (h, w); returns (h * w, C)."""
        return self._codes.get([self.frequencies], lambda: self._encode(grid), grid)

    def _encode(self, grid: tuple[int, int]) -> Tensor:
        height, width = grid
        device, dtype = self.frequencies.device, self.frequencies.dtype
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        yy, xx = torch.meshgrid(y, x, indexing="ij")
        coordinates = 2 * torch.stack([xx, yy], -1).reshape(-1, 2) - 1
        angles = 2 * torch.pi * coordinates @ self.frequencies.float()
        return torch.cat([angles.sin(), angles.cos()], -1).to(dtype)


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its inputs."""

    def __init__(self, size: int, num_heads: int, inner_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(size, inner_size)
        self.k_proj = nn.Linear(size, inner_size)
        self.v_proj = nn.Linear(size, inner_size)
        self.out_proj = nn.Linear(inner_size, size)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from (M, Q, C) to (M, P, C); returns (M, Q, C)."""
        return self.attend(self.q_proj(query), self.k_proj(key), self.v_proj(value))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The same of what is projected already, of the inner width each."""
        heads = [x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value)]
        mixed = F.scaled_dot_product_attention(*heads)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class SharedPixels:
    """Pixels before the first layer: what the targets of an image have in common, and their own.

    A target's pixels are ``base[row] * weight + shift``, so that a projection of them is one of the
    image's ``base``, done once, weighted afterwards.

    Attributes:
        base: (B, P, C).
        rows: (M,) which image a target is of.
        weight: (M, P, 1); None where no target has its own.
        shift: (C,).
    """

    base: Tensor
    rows: Tensor
    weight: Tensor | None
    shift: Tensor

    def whole(self) -> Tensor:
        """All pixels (M, P, C)."""
        pixels = self._of_targets(self.base)
        return (pixels if self.weight is None else pixels * self.weight) + self.shift

    def project(self, layer: nn.Linear, positions: Tensor | None = None) -> Tensor:
        """``layer`` of all pixels, with (P, C) positions added to them: (M, P, C')."""
        shift = layer(self.shift if positions is None else self.shift + positions)
        projected = self._of_targets(F.linear(self.base, layer.weight))
        if self.weight is None:
            return projected + shift
        return torch.addcmul(shift, projected, self.weight)

    def _of_targets(self, images: Tensor) -> Tensor:
        """(B, P, C) to (M, P, C); of a single image without a copy."""
        if len(images) == 1 and not torch.is_grad_enabled():
            return images.expand(len(self.rows), -1, -1)
        return images[self.rows]


class TwoWayLayer(nn.Module):
    """Queries attend to themselves and to pixels, pixels attend back to queries."""

    def __init__(self, config: PixelLMConfig, *, first: bool) -> None:
        super().__init__()
        size, heads = config.decoder_size, config.decoder_heads
        self.first = first
        self.self_attn = Attention(size, heads, size)
        self.norm1 = nn.LayerNorm(size)
        self.tokens_to_pixels = Attention(size, heads, size // 2)
        self.norm2 = nn.LayerNorm(size)
        self.mlp = nn.Sequential(
            nn.Linear(size, config.decoder_mlp_size),
            nn.ReLU(),
            nn.Linear(config.decoder_mlp_size, size),
        )
        self.norm3 = nn.LayerNorm(size)
        self.pixels_to_tokens = Attention(size, heads, size // 2)
        self.norm4 = nn.LayerNorm(size)

    def forward(
        self,
        tokens: Tensor,
        pixels: Tensor,
        token_positions: Tensor,
        pixel_positions: Tensor,
        shared: SharedPixels | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Update (M, Q, C) tokens and (M, P, C) pixels; ``shared`` are the same pixels."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_positions
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        inward, outward = self.tokens_to_pixels, self.pixels_to_tokens
        if shared is None:
            placed = pixels + pixel_positions
            keys, values = inward.k_proj(placed), inward.v_proj(pixels)
            queries = outward.q_proj(placed)
        else:
            keys, values = (
                shared.project(inward.k_proj, pixel_positions),
                shared.project(inward.v_proj),
            )
            queries = shared.project(outward.q_proj, pixel_positions)
        attended = inward.attend(inward.q_proj(tokens + token_positions), keys, values)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        keys, values = outward.k_proj(tokens + token_positions), outward.v_proj(tokens)
        return tokens, self.norm4(pixels + outward.attend(queries, keys, values))


class AttentionBlock(nn.Module):
    """``Attn^l``: a two-way transformer over one scale, closed by a last look at the pixels."""

    def __init__(self, config: PixelLMConfig) -> None:
        super().__init__()
        size = config.decoder_size
        self.layers = nn.ModuleList(
            TwoWayLayer(config, first=i == 0) for i in range(config.decoder_layers)
        )
        self.final_attn = Attention(size, config.decoder_heads, size // 2)
        self.final_norm = nn.LayerNorm(size)
        if config.decoder_similarity:
            self.similarity_query = nn.Linear(size, size)
            self.similarity_key = nn.Linear(size, size)
            self.similarity_embedding = nn.Parameter(torch.zeros(size))
            self.similarity_scale = nn.Parameter(torch.tensor(1.0))
            self.similarity_bias = nn.Parameter(torch.tensor(-1.0))

    def forward(
        self,
        tokens: Tensor,
        pixels: Tensor,
        positions: Tensor,
        shared: SharedPixels | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the block on (M, Q, C) tokens and (M, P, C) pixels at (P, C) positions.

        ``shared`` are the same pixels, for the first layer to save work.
        """
        token_positions = tokens
        for layer in self.layers:
            tokens, pixels = layer(tokens, pixels, token_positions, positions, shared)
            shared = None
        attended = self.final_attn(tokens + token_positions, pixels + positions, pixels)
        return self.final_norm(tokens + attended), pixels

    def match(self, target: Tensor, pixels: Tensor, positions: Tensor) -> Tensor:
        """Similarity logits (M, P) of (M, C) target embeddings with (M, P, C) pixels."""
        keys = self.similarity_key(pixels + positions)
        logits = torch.einsum("mc,mpc->mp", self.similarity_query(target), keys)
        return logits * (self.similarity_scale / keys.shape[-1] ** 0.5) + self.similarity_bias


def _upsampler(size_in: int, size_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(size_in, size_out, kernel_size=2, stride=2),
        ChannelNorm(size_out, eps=1e-6),
        nn.GELU(),
    )


class PixelDecoder(FullPrecision):
    """Coarse-to-fine mask decoder with learned scale weights on the simplex.

    Without a gradient, what the targets of an image have in common is computed once for all.
    """

    def __init__(self, config: PixelLMConfig) -> None:
        super().__init__()
        size, mask_size = config.decoder_size, config.decoder_mask_size
        self.size = size
        self.has_similarity = config.decoder_similarity
        self.blocks = nn.ModuleList(AttentionBlock(config) for _ in range(config.num_scales))
        self.positions = nn.ModuleList(GridPositions(size) for _ in range(config.num_scales))
        self.pixel_embedding = nn.Parameter(torch.zeros(size))
        self.mask_token = nn.Parameter(torch.randn(1, size) * 0.02)
        self.context_tokens = nn.Parameter(torch.randn(config.decoder_context_tokens, size) * 0.02)
        self.scale_embedding = nn.Parameter(torch.randn(config.num_scales, size) * 0.02)
        self.feature_upsamplers = nn.ModuleList(
            _upsampler(size, size) if factor == 2 else nn.Identity()
            for factor in config.decoder_upsampling
        )
        steps = config.decoder_output_upsampling
        widths = [size] + [mask_size * 2 ** (steps - 1 - i) for i in range(steps)]
        self.output_upsampler = nn.Sequential(*(_upsampler(a, b) for a, b in pairwise(widths)))
        self.mask_mlp = nn.Sequential(
            nn.Linear(size, size),
            nn.ReLU(),
            nn.Linear(size, size),
            nn.ReLU(),
            nn.Linear(size, widths[-1]),
        )
        self.num_scales = config.num_scales
        if config.decoder_similarity:
            self.target_norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(config.num_scales))
            self.pixel_norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(config.num_scales))
        if config.scale_weights == "learned":
            self.scale_logits = nn.Parameter(torch.zeros(config.num_scales))

    def forward(self, target_embeddings: Tensor, features: list[Tensor], rows: Tensor) -> Tensor:
        """Decode every target of a batch.

        Args:
            target_embeddings: (M, L, C), coarse scale first.
            features: per scale (B, C, h_l, w_l), after the neck.
            rows: (M,) which row's features a target reads.

        Returns:
            (M, h, w) mask logits at the finest block's output grid, in the canvas frame.
        """
        scale_masks: list[Tensor] = []
        for scale, maps in enumerate(features):
            previous = scale_masks[-1] if scale_masks else None
            scale_masks.append(
                self._decode_scale(scale, target_embeddings[:, scale], maps, rows, previous)
            )
        finest = scale_masks[-1].shape[-2:]
        resized = [
            F.interpolate(masks[:, None], size=finest, mode="bilinear")[:, 0]
            for masks in scale_masks
        ]
        return torch.einsum("l,lmhw->mhw", self.scale_weights(), torch.stack(resized))

    def scale_weights(self) -> Tensor:
        """Gamma, (L,): at least 0, adding up to 1."""
        if hasattr(self, "scale_logits"):
            return self.scale_logits.softmax(0)
        return torch.full_like(self.scale_embedding[:, 0], 1 / self.num_scales)

    def _decode_scale(
        self, scale: int, target: Tensor, maps: Tensor, rows: Tensor, previous: Tensor | None
    ) -> Tensor:
        """Logits (M, h', w') of one scale: modulate, attend, upsample, read off."""
        maps = self.feature_upsamplers[scale](maps)
        grid = (maps.shape[-2], maps.shape[-1])
        pixels = maps.flatten(2).transpose(1, 2)
        if self.has_similarity:
            target, pixels = self.target_norms[scale](target), self.pixel_norms[scale](pixels)
        weight = None
        if previous is not None:
            seen = F.interpolate(previous[:, None], size=grid, mode="bilinear").flatten(1)
            weight = (seen.sigmoid() + 1)[..., None]
        block: Any = self.blocks[scale]
        positions: Tensor = self.positions[scale](grid)
        shared = SharedPixels(pixels, rows, weight, self.pixel_embedding)
        pixels = shared.whole()
        similarity = None
        if self.has_similarity:
            similarity = block.match(target, pixels, positions)
            pixels = pixels + similarity.sigmoid()[..., None] * block.similarity_embedding
        tokens = torch.cat([self.mask_token, self.context_tokens])[None]
        tokens = torch.cat([tokens.expand(len(rows), -1, -1), target[:, None]], 1)
        saving = None if torch.is_grad_enabled() or self.has_similarity else shared
        tokens, pixels = block(tokens + self.scale_embedding[scale], pixels, positions, saving)
        upsampled = self.output_upsampler(pixels.transpose(1, 2).unflatten(2, grid))
        logits = torch.einsum("mc,mchw->mhw", self.mask_mlp(tokens[:, 0]), upsampled)
        if similarity is not None:
            matched = similarity.unflatten(1, grid)[:, None]
            logits = logits + F.interpolate(matched, size=logits.shape[-2:], mode="bilinear")[:, 0]
        return logits
