"""A stand-in for how the released code answers: no cache, the image anew for every token.

Same weights, same prompt, same scripted answer as the engine, and so the same masks; only the way
there differs. Kinder than the release where that was simpler: the head is applied to the last
position alone, and the decoder's features are computed once. Source: PixelLM's released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixellm.engine.answers import AnswerDecoder
from pixellm.engine.images import PreparedImage
from pixellm.model.codebook import find_groups
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.processing.image import load_image
from pixellm.processing.processor import PixelLMProcessor
from pixellm.processing.prompts import dialogue_messages
from pixellm.types import Request


@torch.inference_mode()
def answer_as_released(
    model: PixelLMForConditionalGeneration,
    processor: PixelLMProcessor,
    request: Request,
    script: Sequence[int],
) -> list[NDArray[np.bool_]]:
    """Masks, each (H, W), of a scripted answer, in pixels of the request's image."""
    device = model.device
    messages = [dialogue_messages(request.history, request.question)]
    batch = processor.encode_batch(messages, [load_image(request.image)]).to(device)
    ids, visible = batch["input_ids"], batch["attention_mask"]
    hidden = None
    for token in script:
        hidden = _read(model, batch, ids, visible)
        model.compute_logits(hidden[:, -1]).float().argmax(-1).tolist()
        ids = torch.cat([ids, ids.new_tensor([[token]])], 1)
        visible = torch.cat([visible, visible.new_ones(1, 1)], 1)
    assert hidden is not None
    rows, starts = find_groups(ids[:, :-1], ids.new_tensor(model.config.codebook_token_ids))
    groups = model.model.codebook.gather_states(hidden, rows, starts)
    encoded, _ = model.model.encode_images(batch["pixel_values"], batch["pixel_mask"])
    resized, original = (batch[f"{name}_sizes"][0].tolist() for name in ("resized", "original"))
    image = PreparedImage(b"", encoded, tuple(original), tuple(resized), ())
    decoder = AnswerDecoder(model, processor, frozenset())
    return [found.mask for found in decoder.masks([(states, image) for states in groups])]


def _read(
    model: PixelLMForConditionalGeneration, batch: Any, ids: Tensor, visible: Tensor
) -> Tensor:
    """States (1, T, D) of the whole text so far, the image encoded again."""
    maps = model.model.vision_tower(batch["pixel_values"], batch["pixel_mask"])
    tokens = model.model.image_projector(maps[0])
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    output = model.model(ids, tokens, visible, positions, use_cache=False)
    states: Tensor = output.last_hidden_state
    return states
