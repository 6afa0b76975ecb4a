"""Answer generation: a cache, one picture encoding, and one forward pass per codebook group.

When the first token of a group is chosen the rest of the group is no choice any more, so the
whole group is fed at once. Rows of a batch may be in different states: a step feeds each row its
one token or its whole group, padded on the left inside the step. Knows ids and tensors only.
Shape legend: B rows, T tokens, D text width, V vocabulary, G tokens of a group, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pixellm.model.attention import positions_from_mask
from pixellm.model.modeling import (
    EncodedImages,
    PixelLMForConditionalGeneration,
)

Chooser = Callable[[Tensor, Sequence[int]], Tensor]
"""Picks the next ids: (B, V) logits and the rows' indices in the batch given, to (B,) ids."""


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

    def extend(self, step: Step) -> None:
        """Add what the row gained in a step."""
        self.ids.extend(step.ids)
        if step.group_states is not None:
            self.group_states.append(step.group_states)


def choose_greedily(logits: Tensor, rows: Sequence[int]) -> Tensor:
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
    gathered: list[list[Tensor]]

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
        self.gathered = [self.gathered[p] for p in positions]


@torch.inference_mode()
def generate_steps(
    model: PixelLMForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    encoded: EncodedImages | None,
    *,
    eos_ids: frozenset[int],
    max_new_tokens: int | Sequence[int],
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
        max_new_tokens: limit of every row, or of each; a group that does not fit is cut and
            leaves no mask.
        choose: picks the next ids.
        group_at_once: feed groups whole; otherwise token by token, for comparison.
        forbidden_ids: ids that may never be written, such as the image placeholder.

    Raises:
        ValueError: a limit below 1, or not one limit per row.
    """
    count = len(input_ids)
    limits = [max_new_tokens] * count if isinstance(max_new_tokens, int) else [*max_new_tokens]
    if len(limits) != count or min(limits) < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; each row's must be at least 1.")
    codebook = model.config.codebook_token_ids
    # Only the first id of a group is a choice; the others follow it and nothing else.
    vocab_size = model.config.text_config.vocab_size
    unwanted = [i for i in (*codebook[1:], *forbidden_ids) if i < vocab_size]
    banned = torch.tensor(unwanted, dtype=torch.long, device=input_ids.device)
    rows = _prefill(model, input_ids, attention_mask, encoded, limits)
    while rows.index:
        logits = model.lm_head(rows.last_hidden).float()
        logits[:, banned] = -torch.inf
        feeds = _next_feeds(choose(logits, rows.index).tolist(), rows, codebook, group_at_once)
        steps = _take(model, rows, feeds, eos_ids)
        rows.keep([r for r, step in enumerate(steps) if not step.finished])
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
        answers[step.row].extend(step)
    return answers


def _prefill(
    model: PixelLMForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    encoded: EncodedImages | None,
    limits: list[int],
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
        remaining=limits,
        forced=[[] for _ in range(count)],
        gathered=[[] for _ in range(count)],
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


def _take(
    model: PixelLMForConditionalGeneration,
    rows: _Rows,
    feeds: list[list[int]],
    eos_ids: frozenset[int],
) -> list[Step]:
    """Write the new ids of every row, run the model over them where anything depends on it."""
    config = model.config
    limited = list(zip(feeds, rows.remaining, strict=True))
    stopped = [len(feed) >= left or feed[-1] in eos_ids for feed, left in limited]
    # A row that ends with a whole group still needs that group's states.
    last = config.codebook_token_ids[-1]
    completes = [feed[-1] == last and len(feed) <= left for feed, left in limited]
    previous = rows.last_hidden
    hidden = _feed(model, rows, feeds) if any(completes) or not all(stopped) else None
    steps = []
    for r, (feed, left) in enumerate(limited):
        if hidden is not None and feed[0] in config.codebook_token_ids:
            states = torch.cat([previous[r : r + 1], hidden[r, -len(feed) :]])
            own = config.codebook_states == "own"
            rows.gathered[r] += [*(states[1:] if own else states[:-1])]
        group = torch.stack(rows.gathered[r]) if completes[r] else None
        if completes[r]:
            rows.gathered[r] = []
        steps.append(Step(rows.index[r], tuple(feed[:left]), group, stopped[r]))
        rows.remaining[r] -= min(len(feed), left)
    return steps


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
