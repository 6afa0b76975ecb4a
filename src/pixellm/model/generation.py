"""Answer generation: a cache, one picture encoding, and one forward pass per codebook group.

When the first token of a group is chosen the rest of the group is no choice any more, so the
whole group is fed at once. Rows of a batch may be in different states: a step feeds each row its
one token or its whole group, padded on the left inside the step. Knows ids and tensors only.
Shape legend: B rows, T tokens, D text width, V vocabulary, G tokens of a group, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pixellm.model.modeling import (
    EncodedImages,
    PixelLMForConditionalGeneration,
    positions_from_mask,
)

Chooser = Callable[[Tensor], Tensor]
"""Picks the next id of each row, (B, V) logits to (B,) ids."""


@dataclass(frozen=True)
class Step:
    """What one row gained in one step.

    Attributes:
        row: index of the row in the batch given.
        ids: the new ids; several for a codebook group.
        group_states: (G, D) hidden states that the group's mask is read from; None otherwise.
        finished: nothing follows for this row.
    """

    row: int
    ids: tuple[int, ...]
    group_states: Tensor | None
    finished: bool


@dataclass
class GeneratedAnswer:
    """A row's answer: all new ids, and the (G, D) states of each complete group."""

    ids: list[int] = field(default_factory=list)
    group_states: list[Tensor] = field(default_factory=list)


def choose_greedily(logits: Tensor) -> Tensor:
    """The most likely id of each row."""
    return logits.argmax(-1)


@dataclass
class _Rows:
    """The rows still being answered, and all that a step needs of them."""

    index: list[int]
    cache: object
    attention_mask: Tensor
    next_position: Tensor
    last_hidden: Tensor
    remaining: list[int]
    forced: list[list[int]]

    def keep(self, positions: list[int]) -> None:
        """Drop every row but those at ``positions``."""
        if len(positions) == len(self.index):
            return
        device = self.attention_mask.device
        chosen = torch.tensor(positions, dtype=torch.long, device=device)
        self.cache.batch_select_indices(chosen)  # type: ignore[attr-defined]
        self.attention_mask = self.attention_mask[chosen]
        self.next_position = self.next_position[chosen]
        self.last_hidden = self.last_hidden[chosen]
        self.index = [self.index[p] for p in positions]
        self.remaining = [self.remaining[p] for p in positions]
        self.forced = [self.forced[p] for p in positions]


@torch.inference_mode()
def generate_steps(
    model: PixelLMForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    encoded: EncodedImages | None,
    *,
    eos_ids: frozenset[int],
    max_new_tokens: int,
    choose: Chooser = choose_greedily,
    group_at_once: bool = True,
    forbidden_ids: tuple[int, ...] = (),
) -> Iterator[Step]:
    """Answer a batch of prompts, yielding each row's new ids as they are chosen.

    Args:
        model: in evaluation mode.
        input_ids: (B, T) prompts, padded on the left.
        attention_mask: (B, T), zero at padding.
        encoded: the rows' pictures; None for text alone.
        eos_ids: ids that end an answer.
        max_new_tokens: limit per row; a group that does not fit is cut and leaves no mask.
        choose: picks the next ids.
        group_at_once: feed groups whole; otherwise token by token, for comparison.
        forbidden_ids: ids that may never be written, such as the image placeholder.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
    codebook = model.config.codebook_token_ids
    # Only the first id of a group is a choice; the others follow it and nothing else.
    vocab_size = model.config.text_config.vocab_size
    unwanted = [i for i in (*codebook[1:], *forbidden_ids) if i < vocab_size]
    banned = torch.tensor(unwanted, dtype=torch.long, device=input_ids.device)
    rows = _prefill(model, input_ids, attention_mask, encoded, max_new_tokens)
    pending: dict[int, list[Tensor]] = {}
    own = model.config.codebook_states == "own"
    while rows.index:
        logits = model.lm_head(rows.last_hidden).float()
        logits[:, banned] = -torch.inf
        feeds = _next_feeds(choose(logits).tolist(), rows, codebook, group_at_once)
        previous = rows.last_hidden
        stopped = [
            len(feed) >= left or feed[-1] in eos_ids
            for feed, left in zip(feeds, rows.remaining, strict=True)
        ]
        # A row that ends with a whole group still needs that group's states.
        completes = [
            feed[-1] == codebook[-1] and len(feed) <= left
            for feed, left in zip(feeds, rows.remaining, strict=True)
        ]
        hidden = _feed(model, rows, feeds) if any(completes) or not all(stopped) else None
        steps = []
        for r, feed in enumerate(feeds):
            fed = None if hidden is None else hidden[r, -len(feed) :]
            states = _group_states(pending, rows.index[r], feed, fed, previous[r], codebook, own)
            kept = feed[: rows.remaining[r]]
            complete = states if len(kept) == len(feed) else None
            steps.append(Step(rows.index[r], tuple(kept), complete, stopped[r]))
            rows.remaining[r] -= len(kept)
        rows.keep([r for r, stop in enumerate(stopped) if not stop])
        yield from steps


def generate_answers(
    model: PixelLMForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    encoded: EncodedImages | None,
    **options: object,
) -> list[GeneratedAnswer]:
    """:func:`generate_steps`, collected: one answer per row."""
    answers = [GeneratedAnswer() for _ in range(len(input_ids))]
    for step in generate_steps(model, input_ids, attention_mask, encoded, **options):  # type: ignore[arg-type]
        answers[step.row].ids.extend(step.ids)
        if step.group_states is not None:
            answers[step.row].group_states.append(step.group_states)
    return answers


def _prefill(
    model: PixelLMForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    encoded: EncodedImages | None,
    max_new_tokens: int,
) -> _Rows:
    """Run the prompts once and set up the rows."""
    positions = positions_from_mask(attention_mask, input_ids.shape[1])
    output = model.model(
        input_ids,
        image_tokens=None if encoded is None else encoded.tokens,
        attention_mask=attention_mask,
        position_ids=positions,
        use_cache=True,
    )
    count = len(input_ids)
    return _Rows(
        index=list(range(count)),
        cache=output.past_key_values,
        attention_mask=attention_mask,
        next_position=positions[:, -1] + 1,
        last_hidden=output.last_hidden_state[:, -1],
        remaining=[max_new_tokens] * count,
        forced=[[] for _ in range(count)],
    )


def _next_feeds(
    chosen: list[int], rows: _Rows, codebook: list[int], group_at_once: bool
) -> list[list[int]]:
    """What each row is fed next: its chosen id, a whole group, or a group's next id."""
    feeds = []
    for r, token in enumerate(chosen):
        if rows.forced[r]:
            feeds.append([rows.forced[r].pop(0)])
        elif token == codebook[0] and group_at_once:
            feeds.append(list(codebook))
        else:
            if token == codebook[0]:
                rows.forced[r] = list(codebook[1:])
            feeds.append([token])
    return feeds


def _feed(model: PixelLMForConditionalGeneration, rows: _Rows, feeds: list[list[int]]) -> Tensor:
    """One forward pass over every row's new ids; returns (B, F, D) states, right-aligned."""
    width, device = max(map(len, feeds)), rows.attention_mask.device
    padded = [[feed[0]] * (width - len(feed)) + feed for feed in feeds]
    lengths = torch.tensor([len(feed) for feed in feeds], device=device)
    column = torch.arange(width, device=device)[None] - (width - lengths)[:, None]
    mask = torch.cat([rows.attention_mask, (column >= 0).to(rows.attention_mask.dtype)], 1)
    output = model.model(
        torch.tensor(padded, device=device),
        attention_mask=mask,
        position_ids=rows.next_position[:, None] + column.clamp_min(0),
        past_key_values=rows.cache,
        use_cache=True,
    )
    rows.attention_mask = mask
    rows.next_position = rows.next_position + lengths
    rows.last_hidden = output.last_hidden_state[:, -1]
    return output.last_hidden_state


def _group_states(
    pending: dict[int, list[Tensor]],
    row: int,
    feed: list[int],
    fed: Tensor | None,
    previous: Tensor,
    codebook: list[int],
    own: bool,
) -> Tensor | None:
    """States of a group that this step completes; single tokens are gathered on the way."""
    if feed[0] not in codebook:
        return None
    if own:
        gained = [] if fed is None else list(fed)
    else:
        gained = [previous] + ([] if fed is None else list(fed[:-1]))
    collected = pending.setdefault(row, [])
    collected += gained
    if feed[-1] != codebook[-1]:
        return None
    del pending[row]
    return torch.stack(collected) if len(collected) == len(codebook) else None
