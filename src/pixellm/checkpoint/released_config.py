"""The settings of released models in terms of ours: what their configuration says and implies.

The quirks of the release end here, as named values of :class:`PixelLMConfig` and of the
processor. Source: the facts of the released code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from pixellm.checkpoint.model_files import read_json
from pixellm.model.config import PixelLMConfig
from pixellm.processing.image import PixelLMImageProcessor
from pixellm.processing.processor import PixelLMProcessor
from pixellm.processing.templates import VICUNA_TEMPLATE, codebook_token_names

RELEASED_ARCHITECTURE = "PixelLMForCausalLM"

_LLAMA_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
)
_EARLY_LAYER = -11
_LLM_GRID = (16, 16)
_CONTEXT_TOKENS = 4
_REASONING_SUFFIX = "Please output segmentation mask."
"""One of the two that the release asks MUSE's validation questions with, drawn at random there."""


def is_released(directory: Path) -> bool:
    """Whether a directory holds a released PixelLM rather than a pixellm checkpoint."""
    try:
        values = read_json(directory / "config.json")
    except (FileNotFoundError, ValueError):
        return False
    return RELEASED_ARCHITECTURE in (values.get("architectures") or ())


def llama_config(values: dict[str, Any], path: Path) -> LlamaConfig:
    """The language model's part of a released configuration."""
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
        if key not in values:
            raise ValueError(f"{path / 'config.json'} lacks {key}; copy the original file.")
    known = {key: values[key] for key in _LLAMA_SETTINGS if values.get(key) is not None}
    return LlamaConfig(**known)


def released_tower_config(values: dict[str, Any]) -> CLIPVisionConfig:
    """The vision part of a CLIP configuration, alone or inside a whole CLIP's."""
    found = values.get("vision_config", values)
    if values.get("model_type") not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"The vision tower is a {values.get('model_type')!r} model, but released models use "
            "CLIP; pass the tower that config.json names."
        )
    return CLIPVisionConfig(**{k: v for k, v in found.items() if k not in _BOOKKEEPING})


_BOOKKEEPING = ("model_type", "architectures", "_name_or_path", "transformers_version")


def released_pixellm_config(
    values: dict[str, Any],
    tower: CLIPVisionConfig,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
) -> PixelLMConfig:
    """Translate a released configuration.

    Args:
        values: the released ``config.json``.
        tower: the configuration of its vision tower; its image size is changed here.
        tokenizer: the converted tokenizer.
        directory: where the configuration lies, for messages.
    """
    text = llama_config(values, directory)
    width = values.get("mm_hidden_size", tower.hidden_size)
    if tower.hidden_size != width:
        raise ValueError(
            f"The vision tower is {tower.hidden_size} wide but {directory} was trained with one "
            f"of width {width}; pass {values.get('vision_tower', 'its own tower')}."
        )
    if values.get("resize_vision_tower", True):
        tower.image_size = int(values.get("resize_vision_tower_size", 448))
    num_scales = int(values.get("image_feature_scale_num", 2))
    if num_scales not in (1, 2):
        raise ValueError(
            f"{directory / 'config.json'} asks for {num_scales} scales (image_feature_scale_num); "
            "released models have 1 or 2."
        )
    names = codebook_names(tokenizer, num_scales, directory)
    tokens_per_scale = len(names) // num_scales
    inner = int(values.get("mm_projector_hidden_dim", 2)) * text.hidden_size
    output = int(values.get("mm_projector_out_dim", 1)) * text.hidden_size
    size = int(values.get("out_dim", 256))
    last = max(i for token, i in tokenizer.get_vocab().items() if token != "<image>")
    if last >= text.vocab_size:
        raise ValueError(
            f"The tokenizer of {directory} gives ids up to {last} but vocab_size is "
            f"{text.vocab_size}; config.json and the tokenizer are of different models."
        )
    config = PixelLMConfig(
        vision_config=tower,
        text_config=text,
        image_size=tower.image_size,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        codebook_token_ids=tokenizer.convert_tokens_to_ids(names),
        num_scales=num_scales,
        tokens_per_scale=tokens_per_scale,
        vision_depths=[int(values.get("mm_vision_select_layer", -2)), _EARLY_LAYER][:num_scales],
        mask_padding=bool(values.get("pad_train_clip_images", True)),
        llm_grid=list(_LLM_GRID),
        llm_projector_size=inner,
        shared_projector=True,
        decoder_projector_sizes=[inner, output],
        decoder_size=size,
        decoder_mask_size=size // 8,
        decoder_context_tokens=_CONTEXT_TOKENS,
        scale_weights="fixed",
        token_fusion="fixed",
        fusion_constant=1 / (num_scales * tokens_per_scale),
        codebook_states="predicting",
        gpu_dtype="float16",
        target_refinement_alpha=1.0,
    )
    config.architectures = ["PixelLMForConditionalGeneration"]
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return config


def codebook_names(
    tokenizer: PreTrainedTokenizerFast, num_scales: int, directory: Path
) -> list[str]:
    """The codebook's tokens that a tokenizer knows, ``[SEG0]`` and on."""
    vocabulary = tokenizer.get_vocab()
    names = codebook_token_names(len(vocabulary))
    count = next(i for i, name in enumerate(names) if name not in vocabulary)
    if count == 0 or count % num_scales:
        raise ValueError(
            f"The tokenizer of {directory} has {count} codebook tokens for {num_scales} scales; "
            "added_tokens.json must list [SEG0], [SEG1] and so on, as many for each scale."
        )
    return names[:count]


def released_processor(
    tokenizer: PreTrainedTokenizerFast, config: PixelLMConfig
) -> PixelLMProcessor:
    """The release's input pipeline: 0..255 normalisation, Vicuna prompt, suffix of MUSE."""
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    images = PixelLMImageProcessor()
    return PixelLMProcessor.for_model(
        config, images, tokenizer, VICUNA_TEMPLATE, reasoning_suffix=_REASONING_SUFFIX
    )
