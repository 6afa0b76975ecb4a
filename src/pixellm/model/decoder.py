"""The pixel decoder: target embeddings and feature maps in, mask logits out.

Source: PixelLM, section 3 (pixel decoder, ``m^l = Attn^l(h^l, f'^l)``, modulation and the sum over
scales). One call serves all M targets of a batch. Shape legend: M targets, B rows, L scales, C
decoder width, P pixels of a grid, Q query tokens, h w a grid; scale 0 is the coarsest.
"""

from __future__ import annotations

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
    """Multi-head attention whose inner width may be smaller than its inputs.

    Between a few tokens and many pixels no pixel is projected: what a head's projection would do to
    every pixel is done to the tokens instead, ``q . (W x) = (W^T q) . x``. With six tokens of eight
    heads that is 48 products a pixel for 128, and pixels have no keys and values to be kept.
    """

    def __init__(self, size: int, num_heads: int, inner_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(size, inner_size)
        self.k_proj = nn.Linear(size, inner_size)
        self.v_proj = nn.Linear(size, inner_size)
        self.out_proj = nn.Linear(inner_size, size)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from (M, Q, C) to (M, P, C); returns (M, Q, C)."""
        queries, keys = self._split(self.q_proj(query)), self._split(self.k_proj(key))
        values = self._split(self.v_proj(value)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def gather(self, tokens: Tensor, placed: Tensor, pixels: Tensor) -> Tensor:
        """The same from few (M, Q, C) tokens to many pixels (M, P, C), with and without places."""
        scores = self._scores(self.q_proj(tokens), self.k_proj, placed)
        seen = scores.softmax(-1) @ pixels
        heads = seen.unflatten(1, (self.num_heads, -1))
        values = torch.einsum("mhqc,hdc->mqhd", heads, self._weights(self.v_proj))
        return self.out_proj(values.flatten(2) + self.v_proj.bias)

    def scatter(self, pixels: Tensor, placed: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Add to (M, P, C) pixels what they, with their places, find in (M, Q, C) tokens."""
        scores = self._scores(self.k_proj(keys), self.q_proj, placed)
        shares = scores.unflatten(1, (self.num_heads, -1)).softmax(2).flatten(1, 2)
        weight = self.out_proj.weight.unflatten(1, (self.num_heads, -1))
        written = torch.einsum("mqhd,chd->mhqc", self._split(self.v_proj(values)), weight)
        # The shares of a head add up to 1, so each writes its part of the bias.
        written = (written + self.out_proj.bias / self.num_heads).flatten(1, 2)
        return torch.baddbmm(pixels, shares.transpose(1, 2), written)

    def _scores(self, tokens: Tensor, layer: nn.Linear, pixels: Tensor) -> Tensor:
        """Products (M, heads * Q, P) of projected tokens with what ``layer`` makes of pixels."""
        heads = self._split(tokens)
        heads = heads * heads.shape[-1] ** -0.5
        looked = torch.einsum("mqhd,hdc->mhqc", heads, self._weights(layer)).flatten(1, 2)
        bias = torch.einsum("mqhd,hd->mhq", heads, layer.bias.unflatten(0, (self.num_heads, -1)))
        return torch.baddbmm(bias.flatten(1)[..., None], looked, pixels.transpose(1, 2))

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.num_heads, -1))

    def _weights(self, layer: nn.Linear) -> Tensor:
        """(heads, d, C)."""
        return layer.weight.unflatten(0, (self.num_heads, -1))


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
    ) -> tuple[Tensor, Tensor]:
        """Update (M, Q, C) tokens and (M, P, C) pixels."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_positions
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        placed = pixels + pixel_positions
        attended = self.tokens_to_pixels.gather(tokens + token_positions, placed, pixels)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        pixels = self.pixels_to_tokens.scatter(pixels, placed, tokens + token_positions, tokens)
        return tokens, self.norm4(pixels)


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

    def forward(self, tokens: Tensor, pixels: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Run the block on (M, Q, C) tokens and (M, P, C) pixels at (P, C) positions."""
        token_positions = tokens
        for layer in self.layers:
            tokens, pixels = layer(tokens, pixels, token_positions, positions)
        attended = self.final_attn.gather(tokens + token_positions, pixels + positions, pixels)
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
    """Coarse-to-fine mask decoder with learned scale weights on the simplex."""

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
        block: Any = self.blocks[scale]
        positions: Tensor = self.positions[scale](grid)
        pixels = self._modulate(pixels[rows], grid, previous) + self.pixel_embedding
        similarity = None
        if self.has_similarity:
            similarity = block.match(target, pixels, positions)
            pixels = pixels + similarity.sigmoid()[..., None] * block.similarity_embedding
        tokens = torch.cat([self.mask_token, self.context_tokens])[None]
        tokens = torch.cat([tokens.expand(len(rows), -1, -1), target[:, None]], 1)
        tokens, pixels = block(tokens + self.scale_embedding[scale], pixels, positions)
        upsampled = self.output_upsampler(pixels.transpose(1, 2).unflatten(2, grid))
        logits = torch.einsum("mc,mchw->mhw", self.mask_mlp(tokens[:, 0]), upsampled)
        if similarity is not None:
            matched = similarity.unflatten(1, grid)[:, None]
            logits = logits + F.interpolate(matched, size=logits.shape[-2:], mode="bilinear")[:, 0]
        return logits

    def _modulate(self, pixels: Tensor, grid: tuple[int, int], previous: Tensor | None) -> Tensor:
        """Pixels (M, P, C) of a grid, those of the coarser scale's masks made stronger."""
        if previous is None:
            return pixels
        seen = F.interpolate(previous[:, None], size=grid, mode="bilinear").flatten(1)
        return pixels * (seen.sigmoid() + 1)[..., None]
