"""How the next token is picked: greedily, or drawn from the most likely ones.

Every row draws from its own random stream, so that an answer depends on its request and seed alone
and not on the rows that happen to share its batch. Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How one answer is written.

    Attributes:
        max_new_tokens: longest answer in tokens; the engine's own limit where None.
        temperature: 0 takes the most likely token each time; above, tokens are drawn from
            ``softmax(logits / temperature)``.
        top_p: draw from the fewest most likely tokens whose probabilities reach this sum.
        seed: the same request with the same seed gets the same answer, whatever its company.
        keep_logits: hand the masks' logits on, in :attr:`pixellm.types.Prediction.info`.

    Raises:
        ValueError: a value out of range.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    keep_logits: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or above.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")


class Sampler:
    """Picks the ids of one row, with its own random stream."""

    def __init__(self, options: AnswerOptions) -> None:
        self.options = options
        self._random = random.Random(options.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.options.temperature == 0

    def draw(self) -> float:
        """The row's next number in [0, 1)."""
        return self._random.random()


def choose_ids(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Pick the next id of each row of (B, V) float32 logits, all rows in a few operations."""
    chosen = logits.argmax(-1)
    drawn = [row for row, sampler in enumerate(samplers) if not sampler.is_greedy]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        chosen[rows] = _draw_ids(logits[rows], [samplers[row] for row in drawn])
    ids: list[int] = chosen.tolist()
    return ids


def _draw_ids(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Ids (B,) by inverting the cumulative probabilities of the tokens within top_p."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=logits.dtype, device=logits.device)[:, None]

    temperature = column([sampler.options.temperature for sampler in samplers])
    ordered, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    # The largest logit is taken off first: a tiny temperature must not overflow.
    likely = ((ordered - ordered[:, :1]) / temperature).softmax(-1)
    reached = likely.cumsum(-1)
    outside = reached - likely >= column([sampler.options.top_p for sampler in samplers])
    outside[:, 0] = False
    reached = likely.masked_fill(outside, 0).cumsum(-1)
    wanted = column([sampler.draw() for sampler in samplers]) * reached[:, -1:]
    # The first token whose cumulative probability lies above the number drawn.
    place = (reached > wanted).int().argmax(-1, keepdim=True)
    return ids.gather(1, place)[:, 0]
