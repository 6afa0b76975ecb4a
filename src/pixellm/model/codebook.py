"""The segmentation codebook: from hidden states to one embedding per target and scale.

Source: PixelLM, section 3 (codebook and token fusion phi). The tokens' own embeddings are rows of
the language model's table; this module finds complete groups and fuses their hidden states.
Shape legend: B rows, T tokens, D text width, C decoder width, L scales, N tokens per scale,
M targets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixellm.model.config import PixelLMConfig
from pixellm.model.precision import FullPrecision


def find_groups(input_ids: Tensor, codebook_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Find complete codebook groups, row by row, left to right.

    A group is the whole run of ids in order; a partial one (an answer cut short) is passed over.

    Args:
        input_ids: (B, T) token ids.
        codebook_ids: (L * N,) the codebook's ids in order.

    Returns:
        ``rows`` (M,) and ``starts`` (M,), the row and first position of every group.
    """
    group = codebook_ids.numel()
    if input_ids.shape[1] < group:
        empty = torch.zeros(0, dtype=torch.long, device=input_ids.device)
        return empty, empty
    windows = input_ids.unfold(1, group, 1)
    rows, starts = (windows == codebook_ids).all(-1).nonzero(as_tuple=True)
    return rows, starts


class SegmentationCodebook(FullPrecision):
    """Projects the hidden states of codebook tokens and fuses those of one scale (phi)."""

    def __init__(self, config: PixelLMConfig) -> None:
        super().__init__()
        text_size, size = config.text_config.hidden_size, config.decoder_size
        self.num_scales = config.num_scales
        self.tokens_per_scale = config.tokens_per_scale
        self.reads_predicting_states = config.codebook_states == "predicting"
        self.token_fusion = config.token_fusion
        self.fusion_constant = config.fusion_constant
        self.text_projection = nn.Sequential(
            nn.Linear(text_size, text_size), nn.ReLU(), nn.Linear(text_size, size)
        )
        if self.token_fusion == "linear":
            joined = self.tokens_per_scale * size
            self.fusion = nn.ModuleList(nn.Linear(joined, size) for _ in range(self.num_scales))

    def gather_states(self, hidden_states: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
        """Pick the states that a group's targets are read from.

        Args:
            hidden_states: (B, T, D), after the language model's final norm.
            rows: (M,) row of each group.
            starts: (M,) position of each group's first token.

        Returns:
            (M, L * N, D) the tokens' own states, or those of the positions that predict them.
        """
        group = self.num_scales * self.tokens_per_scale
        offsets = torch.arange(group, device=starts.device) - int(self.reads_predicting_states)
        return hidden_states[rows[:, None], (starts[:, None] + offsets).clamp_min(0)]

    def forward(self, group_states: Tensor) -> Tensor:
        """Fuse groups into target embeddings.

        Args:
            group_states: (M, L * N, D) of any floating type, see :meth:`gather_states`.

        Returns:
            (M, L, C), coarse scale first, in this module's own type.
        """
        embedded = self.text_projection(group_states.to(self.dtype))
        tokens = embedded.unflatten(1, (self.num_scales, self.tokens_per_scale))
        if self.token_fusion == "linear":
            joined = tokens.flatten(2).unbind(1)
            return torch.stack([fuse(h) for fuse, h in zip(self.fusion, joined, strict=True)], 1)
        if self.token_fusion == "first":
            return tokens[:, :, 0]
        if self.token_fusion == "mean":
            return tokens.mean(2)
        return tokens.sum(2) * self.fusion_constant
