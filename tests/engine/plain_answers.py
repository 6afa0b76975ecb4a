"""What an engine has to equal: answers written one id at a time, without cache or batch.

Every id is found by one pass over image, prompt and answer so far, and all masks by one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scripted_answers import build_family

from conftest import square_image
from pixellm.model.codebook import find_groups
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.model.pixel_masks import restore_masks
from pixellm.processing.processor import PixelLMProcessor
from pixellm.processing.prompts import dialogue_messages
from pixellm.types import Prediction, Request

QUESTIONS = [
    "What?",
    "Which squares are there on the left of the picture?",
    "Is it red?",
    "There is a blue square in this picture. Which one is on the left of the red square?",
    "Is there a green one?",
    "No squares?",
    "Is there a red square, a blue square and a green one on the left?",
]


@dataclass(frozen=True)
class PlainAnswer:
    """Ids of an answer, its text, and its masks over the original image."""

    ids: list[int]
    text: str
    masks: list[NDArray[np.bool_]]


def build_talker(text: str = "llama", **settings: Any) -> Any:
    """An untrained model that writes all kinds of ids, groups and ends, and its processor."""
    model, processor = build_family("clip", text, **settings)
    generator = torch.Generator().manual_seed(2)
    head = model.lm_head.weight
    with torch.no_grad():
        head.copy_(torch.randn(head.shape, generator=generator))
        # Rows that lie further out win more often.
        head[model.config.codebook_token_ids[0]] *= 2.5
        head[model.config.eos_token_id] *= 2
    return model, processor


def mixed_requests(count: int = 7) -> list[Request]:
    """Questions of unequal length about three images of unequal shape."""
    images = [square_image((2, 3)), square_image((1, 2), (24, 32)), square_image((4, 4))]
    return [Request(images[i % 3], QUESTIONS[i]) for i in range(count)]


@torch.inference_mode()
def answer_plainly(
    model: PixelLMForConditionalGeneration,
    processor: PixelLMProcessor,
    request: Request,
    limit: int,
) -> PlainAnswer:
    """Answer one request greedily."""
    messages = dialogue_messages(request.history, request.question)
    batch = processor.encode_batch([messages], [request.image])
    encoded, _ = model.model.encode_images(batch["pixel_values"], batch["pixel_mask"])
    codebook, end = model.config.codebook_token_ids, model.config.eos_token_id
    length, ids, hidden = batch["input_ids"].shape[1], batch["input_ids"], None
    while True:
        mask = torch.ones_like(ids)
        mask[:, :length] = batch["attention_mask"]
        hidden = model.model(ids, encoded.tokens, mask, use_cache=False).last_hidden_state
        written = ids[0, length:].tolist()
        if len(written) == limit or written[-1:] == [end]:
            break
        if written and written[-1] in codebook[:-1]:
            following = codebook[codebook.index(written[-1]) + 1]
        else:
            logits = model.lm_head(hidden[0, -1])
            logits[[*codebook[1:], model.config.image_token_id]] = -torch.inf
            following = int(logits.argmax())
        ids = torch.cat([ids, torch.tensor([[following]])], 1)
    rows, starts = find_groups(ids, torch.tensor(codebook))
    sizes = [tuple(batch[name][0].tolist()) for name in ("resized_sizes", "original_sizes")]
    masks = []
    if len(rows):
        embeddings = model.target_embeddings(hidden, rows, starts)
        logits = model.decode_masks(embeddings, encoded.features, rows)
        masks = list((restore_masks(logits, *sizes, model.config.image_size) > 0).numpy())
    text = processor.codec.decode_answer([i for i in written if i != end]).text
    return PlainAnswer(written, text, masks)


def assert_plain(found: Prediction, plain: PlainAnswer) -> None:
    """The engine's answer is the plain one: ids by their number and text, and every mask."""
    assert found.text == plain.text
    assert found.info["num_tokens"] == len(plain.ids)
    assert len(found.segments) == len(plain.masks)
    for segment, mask in zip(found.segments, plain.masks, strict=True):
        assert np.array_equal(segment.mask, mask)


def assert_same(first: Prediction, second: Prediction) -> None:
    """Two predictions agree in everything but the rounding of scores."""
    assert (first.text, first.question, first.size) == (second.text, second.question, second.size)
    assert first.info["num_tokens"] == second.info["num_tokens"]
    assert len(first.segments) == len(second.segments)
    for one, other in zip(first.segments, second.segments, strict=True):
        assert (one.label, one.span) == (other.label, other.span)
        assert abs(one.score - other.score) < 1e-4
        assert np.array_equal(one.mask, other.mask)
