"""Rows being answered, and how a language model reads their ids, each row on its own.

:class:`SeparateRows` is right for every family of language models; :mod:`pixellm.engine.cache`
reads many rows together where the family allows it. Shape legend: B rows, F new ids of a row, D
text width, S image tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pixellm.engine.sampling import AnswerOptions, Sampler
from pixellm.model.codebook import find_groups
from pixellm.model.modeling import PixelLMForConditionalGeneration


@dataclass(frozen=True, eq=False)
class Prompt:
    """What one answer is written to.

    Attributes:
        ids: the prompt, image placeholders expanded.
        max_new_tokens: most ids of the answer; a group that does not fit is cut and leaves no
            mask.
        image_tokens: (S, D) inputs that stand for the placeholders; None for text alone.
        visible: for each leading id whether it may be attended to; ids behind them all may.
        prefix: number of leading ids up to and including the image.
        key: names the image; prompts of one key share what was read of their common beginning.
            None shares nothing.
        keep: keep what was read of prompt and answer, for the next turn of a dialogue.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    image_tokens: Tensor | None = None
    visible: tuple[bool, ...] = ()
    prefix: int = 0
    key: Hashable | None = None
    keep: bool = False
    options: AnswerOptions = field(default_factory=AnswerOptions)

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError("A prompt holds no ids; there is nothing to answer.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")


class Row:
    """A prompt, and how far its answer has come.

    Attributes:
        index: number of the prompt, in the order in which prompts came.
        read: leading ids that the language model has read and still remembers.
        used: leading ids whose states were made use of; more than ``read`` only for a row that
            gave up its memory and has to be read again.
        handed_out: how many ids of the answer were handed out.
        state: (D,) state of the last id read; None before.
        group: states of the codebook group being written.
        cache: what the language model remembers of the row, where it is kept for each row.
    """

    def __init__(self, index: int, prompt: Prompt) -> None:
        self.index = index
        self.prompt = prompt
        self.sampler = Sampler(prompt.options)
        self.ids = list(prompt.ids)
        self.read = 0
        self.used = len(prompt.ids)
        self.handed_out = 0
        self.state: Tensor | None = None
        self.group: list[Tensor] = []
        self.cache: Any = None

    @property
    def turn(self) -> list[int]:
        """Ids that were chosen and not yet handed out."""
        return self.ids[len(self.prompt.ids) + self.handed_out :]

    @property
    def limit(self) -> int:
        """How many more ids may be handed out."""
        return self.prompt.max_new_tokens - self.handed_out


class KVBackend:
    """Holds the rows being answered and lets the language model read their next ids.

    Attributes:
        rows: in any order; ``add`` appends.
        padding_budget: ids of padding that cost less than another pass over the weights.
        shares_prefixes: whether ``copy`` and ``load`` work.
    """

    padding_budget = float("inf")
    shares_prefixes = False

    def __init__(self, model: PixelLMForConditionalGeneration) -> None:
        self.model = model
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Make room for a row of which nothing was read."""
        self.rows.append(row)

    def remove(self, row: Row) -> None:
        """Forget a row, and give its memory back."""
        self.rows.remove(row)

    def clear(self) -> None:
        """Forget every row, and give the memory back."""
        for row in self.rows.copy():
            self.remove(row)

    def forward(self, rows: Sequence[Row], new_ids: Sequence[Sequence[int]]) -> Tensor:
        """Read the ids ``new_ids`` behind ``row.read`` of each row.

        Returns:
            (B, F, D) states after the final norm, rows aligned on the left.
        """
        raise NotImplementedError

    def copy(self, row: Row, length: int) -> list[tuple[Tensor, Tensor]]:
        """What is remembered of a row's first ``length`` ids: keys and values of each layer."""
        raise NotImplementedError

    def load(self, row: Row, memory: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """Remember the first ``length`` ids of a copy as the row's own."""
        raise NotImplementedError


class SeparateRows(KVBackend):
    """Reads every row on its own, without padding: for families that nothing is known of.

    Where the family's own cache takes several ids at a time it is used; otherwise the whole row is
    read anew for each step, which is slow and always right. Caches of unknown families can't be
    cut, so none is shared.
    """

    def __init__(self, model: PixelLMForConditionalGeneration) -> None:
        super().__init__(model)
        self.uses_cache = model.model.reading.caches

    def remove(self, row: Row) -> None:
        """Forget a row and its cache."""
        super().remove(row)
        row.cache = None

    def forward(self, rows: Sequence[Row], new_ids: Sequence[Sequence[int]]) -> Tensor:
        """See :class:`KVBackend`."""
        states = [self._read(row, new) for row, new in zip(rows, new_ids, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(states, batch_first=True)

    def _read(self, row: Row, new: Sequence[int]) -> Tensor:
        """States (F, D) of one row's next ids."""
        device, end = self.model.device, row.read + len(new)
        first = row.read if row.cache is not None else 0
        visible = [*row.prompt.visible, *[True] * end][:end]
        image = row.prompt.image_tokens if first == 0 else None
        output = self.model.model(
            torch.tensor([row.ids[first:end]], device=device),
            image_tokens=None if image is None else image[None],
            attention_mask=torch.tensor([visible], dtype=torch.long, device=device),
            position_ids=torch.arange(first, end, device=device)[None],
            cache=row.cache,
            use_cache=self.uses_cache,
        )
        row.cache = output.cache if self.uses_cache else None
        states: Tensor = output.last_hidden_state[0, -len(new) :]
        return states


@torch.inference_mode()
def read_groups(
    model: PixelLMForConditionalGeneration,
    ids: Sequence[Sequence[int]],
    visible: Sequence[Sequence[bool]],
    image_tokens: Sequence[Tensor],
) -> list[Tensor]:
    """Read whole texts in one pass, for the states of the codebook groups in them.

    Args:
        model: in evaluation mode.
        ids: of each text, image placeholders expanded.
        visible: for each leading id whether it may be attended to; ids behind them all may.
        image_tokens: (S, D) inputs that stand for the placeholders, of each text.

    Returns:
        For each text (K, G, D) states of its groups, from left to right.
    """
    device, pad = model.device, torch.nn.utils.rnn.pad_sequence
    seen = [[*v, *[True] * len(i)][: len(i)] for i, v in zip(ids, visible, strict=True)]
    # Padding lies behind everything that is read, so that its ids change nothing.
    padded = pad([torch.tensor(i) for i in ids], batch_first=True).to(device)
    mask = pad([torch.tensor(s, dtype=torch.long) for s in seen], batch_first=True).to(device)
    tokens = torch.stack(list(image_tokens))
    # Nothing is read behind these texts: keys and values would be kept for nothing.
    hidden = model.model(padded, tokens, mask, use_cache=False).last_hidden_state
    codebook = torch.tensor(model.config.codebook_token_ids, device=device)
    rows, starts = find_groups(padded, codebook)
    states = model.model.codebook.gather_states(hidden, rows, starts)
    return list(states.split(torch.bincount(rows, minlength=len(ids)).tolist()))
