"""Answers of padded batches of ids, for tests and measurements that begin and end with tensors.

Shape legend: B rows, T tokens, G tokens of a group, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pixellm.engine.batch import AnswerLoop, Chooser, GeneratedAnswer, choose_by_options
from pixellm.engine.row import Prompt
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.model.outputs import EncodedImages


def generate_answers(
    model: PixelLMForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    encoded: EncodedImages | None,
    *,
    eos_ids: frozenset[int],
    max_new_tokens: int,
    forbidden_ids: Sequence[int] = (),
    choose: Chooser = choose_by_options,
) -> list[GeneratedAnswer]:
    """Answer a batch of prompts; one answer per row.

    Args:
        model: in evaluation mode.
        input_ids: (B, T) prompts, padded on the left.
        attention_mask: (B, T), zero at padding and at image tokens in the canvas's padding.
        encoded: the rows' images; None for text alone.
        eos_ids: ids that end an answer.
        max_new_tokens: limit of every row; a group that does not fit is cut and leaves no mask.
        forbidden_ids: ids that may never be written, such as the image placeholder.
        choose: picks the next ids.
    """
    loop = AnswerLoop(
        model, eos_ids=eos_ids, max_rows=len(input_ids), forbidden_ids=forbidden_ids, choose=choose
    )
    for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
        start = int(mask.bool().int().argmax())
        image = None if encoded is None else encoded.tokens[row]
        visible = tuple(mask[start:].bool().tolist())
        loop.add(Prompt(tuple(ids[start:].tolist()), max_new_tokens, image, visible))
    answers = [GeneratedAnswer() for _ in range(len(input_ids))]
    while loop.is_busy:
        for step in loop.step():
            answers[step.row].extend(step)
    return answers
