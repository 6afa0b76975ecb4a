"""Attention masks and position ids of rows with padding, holes and packed dialogues.

Shape legend: B rows, T tokens, R dialogues, L tokens of the longest, D text width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def packed_attention_mask(
    attention_mask: Tensor,
    dialogue_ids: Tensor,
    dtype: torch.dtype,
    positions: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of dialogues that share one image but not each other.

    A token sees earlier tokens of its own dialogue and of the shared prefix (id 0).

    Args:
        attention_mask: (B, T), 1 where a token may be attended to.
        dialogue_ids: (B, T), 0 for the shared prefix.
        dtype: floating type of the result.
        positions: (B, T) of each token in its dialogue; needed with a window only.
        window: how many tokens of its dialogue a token sees, itself included; None for all.

    Returns:
        Additive (B, 1, T, T) mask.
    """
    length = attention_mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    keys, queries = dialogue_ids[:, None, :], dialogue_ids[:, :, None]
    allowed = causal & ((keys == 0) | (keys == queries)) & attention_mask[:, None, :].bool()
    if window is not None:
        assert positions is not None
        allowed &= positions[:, :, None] - positions[:, None, :] < window
    allowed |= torch.eye(length, dtype=torch.bool, device=causal.device)
    bias = torch.zeros(allowed.shape, dtype=dtype, device=causal.device)
    return bias.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


@dataclass(frozen=True)
class UnpackedRows:
    """Where the tokens of packed dialogues lie when each dialogue has a row of its own.

    Attributes:
        rows: (R, 1) packed row of each dialogue.
        columns: (R, L) columns there of its prefix and itself, filled up on the right.
        is_filled: (R, L), false where a row is filled up.
        is_own: (R, L), whose states count: a shared prefix counts once.
    """

    rows: Tensor
    columns: Tensor
    is_filled: Tensor
    is_own: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """(B, T, ...) values of packed rows to (R, L, ...)."""
        return values[self.rows, self.columns]

    def gather(self, values: Tensor, like: Tensor) -> Tensor:
        """(R, L, D) values back to the shape (B, T, D) of ``like``; zero where nothing was."""
        rows = self.rows.expand_as(self.columns)
        packed = values.new_zeros(like.shape)
        return packed.index_put((rows[self.is_own], self.columns[self.is_own]), values[self.is_own])


def unpack_dialogues(dialogue_ids: Tensor) -> UnpackedRows:
    """Give each dialogue of packed rows a row of its own, the shared prefix in front.

    Args:
        dialogue_ids: (B, T), 0 for the shared prefix (and for what fills rows up).
    """
    rows, columns, own = list[int](), list[Tensor](), list[Tensor]()
    for row, ids in enumerate(dialogue_ids):
        for number in [int(i) for i in ids.unique() if i] or [0]:
            is_first = number == int(ids[ids > 0][0]) if number else True
            found = ((ids == 0) | (ids == number)).nonzero()[:, 0]
            rows.append(row)
            columns.append(found)
            own.append((ids[found] == number) | is_first)
    return UnpackedRows(
        torch.tensor(rows, device=dialogue_ids.device)[:, None],
        pad_sequence(columns, batch_first=True),
        pad_sequence([torch.ones_like(o) for o in own], batch_first=True),
        pad_sequence(own, batch_first=True),
    )


def positions_from_mask(attention_mask: Tensor, num_new: int) -> Tensor:
    """Position ids (B, num_new) of the last tokens: plain 0, 1, 2, ... from a row's first token.

    Masked image tokens (padding of the canvas) keep their positions, left padding does not count.
    """
    starts = attention_mask.bool().int().argmax(1, keepdim=True)
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)[None] - starts
    return positions.clamp_min(0)[:, -num_new:]
