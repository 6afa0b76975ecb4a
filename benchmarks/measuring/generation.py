"""Answers of padded batches of ids, for tests and measurements that begin and end with tensors.

Shape legend: B rows, T tokens, G tokens of a group, D text width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from pixellm.engine.batch import AnswerLoop, Chooser, GeneratedAnswer, Step, choose_by_options
from pixellm.engine.row import Prompt
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.model.outputs import EncodedImages


def generate_steps(
    model: PixelLMForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    encoded: EncodedImages | None,
    *,
    eos_ids: frozenset[int],
    max_new_tokens: int | Sequence[int],
    forbidden_ids: Sequence[int] = (),
    choose: Chooser = choose_by_options,
) -> Iterator[Step]:
    """Answer a batch of prompts, yielding each row's new ids as they are chosen.

    Args:
        model: in evaluation mode.
        input_ids: (B, T) prompts, padded on the left.
        attention_mask: (B, T), zero at padding and at image tokens in the canvas's padding.
        encoded: the rows' images; None for text alone.
        eos_ids: ids that end an answer.
        max_new_tokens: limit of every row, or of each; a group that does not fit is cut and
            leaves no mask.
        forbidden_ids: ids that may never be written, such as the image placeholder.
        choose: picks the next ids.

    Raises:
        ValueError: a limit below 1, or not one limit per row.
    """
    count = len(input_ids)
    limits = [max_new_tokens] * count if isinstance(max_new_tokens, int) else [*max_new_tokens]
    if len(limits) != count:
        raise ValueError(f"max_new_tokens holds {len(limits)} limits for {count} prompts.")
    loop = AnswerLoop(
        model, eos_ids=eos_ids, max_rows=count, forbidden_ids=forbidden_ids, choose=choose
    )
    for row, (ids, mask, limit) in enumerate(zip(input_ids, attention_mask, limits, strict=True)):
        start = int(mask.bool().int().argmax())
        image = None if encoded is None else encoded.tokens[row]
        visible = tuple(mask[start:].bool().tolist())
        loop.add(Prompt(tuple(ids[start:].tolist()), limit, image, visible))
    while loop.is_busy:
        yield from loop.step()


def generate_answers(
    model: PixelLMForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    encoded: EncodedImages | None,
    **options: Any,
) -> list[GeneratedAnswer]:
    """:func:`generate_steps`, collected: one answer per row."""
    answers = [GeneratedAnswer() for _ in range(len(input_ids))]
    for step in generate_steps(model, input_ids, attention_mask, encoded, **options):
        answers[step.row].extend(step)
    return answers
