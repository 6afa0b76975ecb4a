"""Small models of several families, and answers that are scripted instead of chosen.

A scripted answer makes every way of generating comparable: the ids are the same, so the hidden
states must be, whatever the family and however badly it is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from conftest import square_image, tiny_parts, tiny_texts
from measuring.generation import generate_answers
from pixellm.checkpoint.build import build_model
from pixellm.engine.batch import GeneratedAnswer
from pixellm.engine.row import Row
from pixellm.model.codebook import find_groups
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.processing.processor import PixelLMProcessor
from pixellm.processing.prompts import dialogue_messages

VIT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}
VISION: dict[str, dict[str, Any]] = {
    "clip": {"model_type": "clip_vision_model", **VIT},
    "siglip": {"model_type": "siglip_vision_model", **VIT},
    "dinov2": {"model_type": "dinov2", **VIT, "mlp_ratio": 2},
    "mobilenet": {"model_type": "mobilenet_v2", "depth_multiplier": 0.25, "tf_padding": False},
    "convnext": {"model_type": "convnext", "hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4},
}
LANGUAGE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
TEXT: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **LANGUAGE, "num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", **LANGUAGE, "num_key_value_heads": 1},
    "gpt_neox": {"model_type": "gpt_neox", **LANGUAGE},
}
DEPTHS = {"mobilenet": [11, 4], "convnext": [-2, -3]}


def build_family(
    vision: str, text: str, *, tied: bool = False, **settings: Any
) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """A seeded, untrained model with a small encoder and language model of the families named."""
    torch.manual_seed(0)
    parts = tiny_parts(settings={"vision_depths": DEPTHS.get(vision, [-1, -2]), **settings})
    parts["vision"] = {"config": VISION[vision]}
    parts["text"] = {"config": {**TEXT[text], "tie_word_embeddings": tied}}
    model, processor = build_model(parts, tiny_texts())
    return model.eval(), processor


def prompt_batch(processor: PixelLMProcessor) -> Any:
    """Three prompts of unequal length about images of unequal shape."""
    images = [square_image((2, 3)), square_image((1, 2), (24, 32)), square_image((4, 4))]
    questions = ["What?", "Which squares are there on the left of the picture?", "Is it red?"]
    return processor.encode_batch([dialogue_messages((), q) for q in questions], images)


class Follower:
    """A chooser that tells each row its answer."""

    def __init__(self, answers: Sequence[list[int]]) -> None:
        self.left = [list(answer) for answer in answers]

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> list[int]:
        return [self.left[row.index].pop(0) for row in rows]


def follow(
    model: PixelLMForConditionalGeneration,
    batch: Any,
    answers: Sequence[list[int]],
    *,
    max_new_tokens: Any = 64,
) -> list[GeneratedAnswer]:
    """Generate the answers of a script; -1 in one stands for a codebook group."""
    codebook, end = model.config.codebook_token_ids, model.config.eos_token_id
    script = [[codebook[0] if i == -1 else i for i in [*answer, end]] for answer in answers]
    encoded = None
    with torch.inference_mode():
        if "pixel_values" in batch:
            encoded, _ = model.model.encode_images(batch["pixel_values"], batch["pixel_mask"])
    return generate_answers(
        model,
        batch["input_ids"],
        batch["attention_mask"],
        encoded,
        eos_ids=frozenset([end]),
        choose=Follower(script),
        max_new_tokens=max_new_tokens,
    )


@torch.inference_mode()
def recompute_states(
    model: PixelLMForConditionalGeneration, batch: Any, row: int, ids: list[int]
) -> Tensor:
    """(K, G, D) states of a row's groups from one pass over its prompt and answer, no cache."""
    kept = batch["input_ids"][row] != model.config.pad_token_id
    prompt, mask = batch["input_ids"][row][kept], batch["attention_mask"][row][kept]
    whole = torch.cat([prompt, torch.tensor(ids)])[None]
    full_mask = torch.cat([mask, mask.new_ones(len(ids))])[None]
    encoded, _ = model.model.encode_images(
        batch["pixel_values"][row : row + 1], batch["pixel_mask"][row : row + 1]
    )
    output = model.model(whole, encoded.tokens, full_mask, use_cache=False)
    rows, starts = find_groups(whole, torch.tensor(model.config.codebook_token_ids))
    return model.model.codebook.gather_states(output.last_hidden_state, rows, starts)
