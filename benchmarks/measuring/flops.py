"""Floating point operations of an answer, counted on meta tensors: no weights, no time.

The same count for PixelLM and for a system that gets its masks from SAM (LISA-like: CLIP-L at 224
pixels for the language model, SAM ViT-H at 1024 for the masks, one token a target). Counted are
products of matrices, attention and convolutions; a multiplication and an addition are two.
Shape legend: T tokens, D text width, K targets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from measuring.workload import random_config
from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration

PARTS = ("vision", "prefill", "decode", "masks")


@dataclass(frozen=True, slots=True)
class AnswerFlops:
    """FLOPs of one answer about one image.

    Attributes:
        vision: encoders and projections into the language model.
        prefill: the language model over image and question.
        decode: the language model and its head, token by token with a cache.
        masks: from the encoder's features and hidden states to masks: projection into the
            decoder, neck, codebook and pixel decoder; for SAM its mask decoder.
        parameters: of the whole system.
    """

    vision: int
    prefill: int
    decode: int
    masks: int
    parameters: int

    @property
    def total(self) -> int:
        """All parts."""
        return self.vision + self.prefill + self.decode + self.masks


@torch.no_grad()
def pixellm_flops(
    config: PixelLMConfig, prompt_tokens: int, answer_words: int, targets: int
) -> AnswerFlops:
    """Count a PixelLM.

    Args:
        config: of the model.
        prompt_tokens: of the question and its template, without the image's.
        answer_words: tokens of the answer that are no codebook tokens.
        targets: masks of the answer; each costs a codebook group.
    """
    model = _on_meta(config)
    parts, size = model.model, config.image_size
    pixels = torch.empty(1, 3, size, size, device="meta")
    maps = parts.vision_tower(pixels)
    states = torch.empty(targets, config.group_size, config.text_config.hidden_size, device="meta")
    rows = torch.zeros(targets, dtype=torch.long, device="meta")

    def decode_masks() -> None:
        features = parts.feature_projector(maps)
        parts.pixel_decoder(parts.codebook(states), features, rows)

    decode_masks()  # what is made of weights once is no part of an answer
    prompt = prompt_tokens + config.num_image_tokens
    written = answer_words + targets * config.group_size
    prefill, decode = _text_flops(model, prompt, written)
    vision = count_flops(lambda: parts.image_projector(parts.vision_tower(pixels)[0]))
    return AnswerFlops(vision, prefill, decode, count_flops(decode_masks), _size(model))


@torch.no_grad()
def sam_based_flops(
    config: PixelLMConfig, prompt_tokens: int, answer_words: int, targets: int
) -> AnswerFlops:
    """Count a LISA-like system around the language model of a configuration."""
    text = config.text_config
    small = random_config("7b")
    small.vision_config.image_size = 224
    lisa = PixelLMConfig(
        vision_config=small.vision_config,
        text_config=text,
        image_size=224,
        llm_projector_size=config.llm_projector_size,
    )
    model, sam = _on_meta(lisa), _sam_on_meta()
    parts, width = model.model, sam.config.mask_decoder_config.hidden_size
    pixels, large = (torch.empty(1, 3, s, s, device="meta") for s in (224, 1024))
    to_prompt = nn.Sequential(
        nn.Linear(text.hidden_size, text.hidden_size, device="meta"),
        nn.ReLU(),
        nn.Linear(text.hidden_size, width, device="meta"),
    )

    def encode() -> None:
        parts.image_projector(parts.vision_tower(pixels)[0])
        sam.vision_encoder(large)

    def decode_masks() -> None:
        to_prompt(torch.empty(targets, text.hidden_size, device="meta"))
        sam.mask_decoder(
            image_embeddings=torch.empty(1, width, 64, 64, device="meta"),
            image_positional_embeddings=torch.empty(1, width, 64, 64, device="meta"),
            sparse_prompt_embeddings=torch.empty(1, targets, 1, width, device="meta"),
            dense_prompt_embeddings=torch.empty(1, width, 64, 64, device="meta"),
            multimask_output=False,
        )

    prompt = prompt_tokens + lisa.num_image_tokens
    prefill, decode = _text_flops(model, prompt, answer_words + targets)
    language = parts.language_model, model.lm_head, parts.vision_tower, parts.image_projector
    size = sum(map(_size, (*language, sam, to_prompt)))
    masks = count_flops(decode_masks)
    return AnswerFlops(count_flops(encode), prefill, decode, masks, size)


def compare_flops(
    sizes: Sequence[str], prompt_tokens: int, answer_words: int, targets: Sequence[int]
) -> list[dict[str, Any]]:
    """Both systems for each size and number of targets: TFLOPs by part, and what they amount to.

    Returns:
        Rows; ``of_sam_based`` is PixelLM's total over the other's, ``masks_share`` what masks take
        of a system's own total.
    """
    rows = []
    for size in sizes:
        for count in targets:
            asked = (prompt_tokens, answer_words, count)
            ours = pixellm_flops(random_config(size), *asked)
            other = sam_based_flops(random_config(size), *asked)
            for name, flops in (("PixelLM", ours), ("SAM-based", other)):
                row = {"system": name, "size": size, "targets": count}
                row |= {f"{part}_tflops": getattr(flops, part) / 1e12 for part in PARTS}
                row |= {"total_tflops": flops.total / 1e12, "parameters": flops.parameters}
                row["masks_share"] = flops.masks / flops.total
                rows.append({**row, "of_sam_based": flops.total / other.total})
    return rows


@torch.no_grad()
def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of a piece of work."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        work()
    return int(counter.get_total_flops())


def _text_flops(
    model: PixelLMForConditionalGeneration, prompt: int, written: int
) -> tuple[int, int]:
    """FLOPs of reading a prompt of so many tokens, and of writing an answer behind it.

    A step's cost grows evenly with what was read before, so all steps cost as much as the one in
    the middle, that many times.
    """
    text, width = model.model.language_model, model.config.text_config.hidden_size

    def read(count: int, cache: Any = None) -> Any:
        states = torch.empty(1, count, width, device="meta")
        return text(inputs_embeds=states, use_cache=True, cache=cache)

    def step() -> None:
        model.compute_logits(read(1, before).last_hidden_state)

    prefill = count_flops(lambda: read(prompt))
    before = read(prompt + written // 2).cache
    return prefill, count_flops(step) * written


def _on_meta(config: PixelLMConfig) -> PixelLMForConditionalGeneration:
    config = copy.deepcopy(config)
    for part in (config.text_config, config.vision_config):
        part._attn_implementation = "eager"  # fused kernels hide their products from the counter
    with torch.device("meta"):
        return PixelLMForConditionalGeneration(config).eval()


def _sam_on_meta() -> Any:
    """SAM with its largest encoder, ViT-H."""
    from transformers import SamConfig, SamModel, SamVisionConfig

    vision = SamVisionConfig(
        hidden_size=1280,
        num_hidden_layers=32,
        num_attention_heads=16,
        global_attn_indexes=[7, 15, 23, 31],
    )
    vision._attn_implementation = "eager"
    with torch.device("meta"):
        return SamModel(SamConfig(vision_config=vision)).eval()


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
