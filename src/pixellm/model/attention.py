"""Attention masks and position ids of rows with padding, holes and packed dialogues.

Knows (B, T) masks only: no tokens, no pictures. Shape legend: B rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed_attention_mask(
    attention_mask: Tensor, dialogue_ids: Tensor, dtype: torch.dtype
) -> Tensor:
    """Attention of dialogues that share one picture but not each other.

    A token sees earlier tokens of its own dialogue and of the shared prefix (id 0).

    Args:
        attention_mask: (B, T), 1 where a token may be attended to.
        dialogue_ids: (B, T), 0 for the shared prefix.
        dtype: floating type of the result.

    Returns:
        Additive (B, 1, T, T) mask.
    """
    length = attention_mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    keys, queries = dialogue_ids[:, None, :], dialogue_ids[:, :, None]
    allowed = causal & ((keys == 0) | (keys == queries)) & attention_mask[:, None, :].bool()
    allowed |= torch.eye(length, dtype=torch.bool, device=causal.device)
    bias = torch.zeros(allowed.shape, dtype=dtype, device=causal.device)
    return bias.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def positions_from_mask(attention_mask: Tensor, num_new: int) -> Tensor:
    """Position ids (B, num_new) of the last tokens: plain 0, 1, 2, ... from a row's first token.

    Masked image tokens (padding of the canvas) keep their positions, left padding does not count.
    """
    starts = attention_mask.bool().int().argmax(1, keepdim=True)
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)[None] - starts
    return positions.clamp_min(0)[:, -num_new:]
