"""How much memory the weights of full-size released models take, in each precision.

    python benchmarks/weights_memory.py

Builds PixelLM-7B and -13B without their values (on torch's meta device), in the shape that
`pixellm convert` gives them, and counts what a load in each floating type would hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration

SHAPES = {
    "PixelLM-7B": {"hidden_size": 4096, "intermediate_size": 11008, "layers": 32, "heads": 32},
    "PixelLM-13B": {"hidden_size": 5120, "intermediate_size": 13824, "layers": 40, "heads": 40},
}
"""LLaMA's sizes."""

VOCAB_SIZE = 32008
"""LLaMA's 32,000 pieces, six codebook tokens, and the two around an image."""

IMAGE_TOKENS = 256


@dataclass(frozen=True)
class WeightsMemory:
    """Counts of one model.

    Attributes:
        parameters: all of them, vision tower included.
        full_precision: those that stay in float32 whatever the rest does.
        bytes: floating type -> bytes of all weights and stored buffers.
        cache_bytes_per_token: keys and values of one token in 16 bits.
    """

    parameters: int
    full_precision: int
    bytes: dict[str, int]
    cache_bytes_per_token: int


def released_shape(
    hidden_size: int, intermediate_size: int, layers: int, heads: int
) -> PixelLMConfig:
    """The configuration that a conversion gives a released model of these sizes."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=448,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    return PixelLMConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=VOCAB_SIZE,
        codebook_token_ids=list(range(32000, 32006)),
        llm_projector_size=2 * hidden_size,
        shared_projector=True,
        decoder_projector_sizes=[2 * hidden_size, hidden_size],
        scale_weights="fixed",
        token_fusion="fixed",
        codebook_states="predicting",
    )


def count(config: PixelLMConfig) -> WeightsMemory:
    """Count a model of this configuration on the meta device."""
    with torch.device("meta"):
        model: Any = PixelLMForConditionalGeneration(config)
    parameters = sum(value.numel() for value in model.parameters())
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        stored = model.to(dtype).state_dict().values()
        sizes[str(dtype).removeprefix("torch.")] = sum(v.numel() * v.element_size() for v in stored)
    kept = sum(v.numel() for v in model.parameters() if v.dtype == torch.float32)
    text = config.text_config
    width = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    return WeightsMemory(parameters, kept, sizes, 2 * 2 * text.num_hidden_layers * width)


def main() -> None:
    """Print the table of docs/released-weights.md."""
    print("| model | parameters | of these always float32 | float32 | bfloat16 or float16 |")
    print("|---|---|---|---|---|")
    for name, sizes in SHAPES.items():
        found = count(released_shape(**sizes))
        print(
            f"| {name} | {found.parameters / 1e9:.2f} G | {found.full_precision / 1e9:.3f} G "
            f"| {found.bytes['float32'] / 1e9:.1f} GB | {found.bytes['bfloat16'] / 1e9:.1f} GB |"
        )
    for name, sizes in SHAPES.items():
        per_token = count(released_shape(**sizes)).cache_bytes_per_token
        print(
            f"{name}: keys and values take {per_token / 1e6:.2f} MB a token in 16 bits, "
            f"an image {per_token * IMAGE_TOKENS / 1e6:.0f} MB."
        )


if __name__ == "__main__":
    main()
