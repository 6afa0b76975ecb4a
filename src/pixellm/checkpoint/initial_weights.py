"""A fresh PixelLM around the pretrained encoder and language model of another one.

What a comparison of codebooks and decoders needs: every variant starts from the same encoder,
language model and image projection, and from an untrained codebook and decoder of its own shape.
It knows checkpoints and shapes; it knows no recipes, data or training.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor

from pixellm.checkpoint.io import load_model_and_processor
from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.processing.image import PixelLMImageProcessor
from pixellm.processing.processor import PixelLMProcessor

PRETRAINED_PARTS = (
    "model.vision_tower.",
    "model.language_model.",
    "model.image_projector.",
    "lm_head.",
)
"""Names that begin so keep their weights; all other weights start fresh."""

_NOT_SETTINGS = frozenset({"self", "kwargs", "image_token_id", "codebook_token_ids"})


def build_from_checkpoint(
    source: str | Path, settings: Mapping[str, Any]
) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """Build a PixelLM with pretrained encoder and language model, the rest untrained.

    The tokenizer keeps its ids and gains the codebook tokens that it lacks. The rows of all
    codebook tokens start fresh, whether the source had them or not, so that no shape of the
    codebook has an advantage.

    Args:
        source: an embedded name, a directory, a run's folder, or a hub id.
        settings: arguments of ``PixelLMConfig`` that differ from the source's.

    Raises:
        ValueError: a setting that the pretrained weights do not fit, or an unknown one.
        FileNotFoundError: no such model.
    """
    donor, donor_processor = load_model_and_processor(source)
    config = derive_config(donor.config, settings)
    names = _codebook_names(donor_processor, config.group_size)
    tokenizer = donor_processor.tokenizer
    tokenizer.add_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    config.codebook_token_ids = tokenizer.convert_tokens_to_ids(names)
    config.text_config.vocab_size = max(config.text_config.vocab_size, len(tokenizer))
    model = PixelLMForConditionalGeneration(config)
    model.generation_config = donor.generation_config
    old_ids = donor.config.codebook_token_ids
    _copy_pretrained(model, donor, fresh_rows=sorted({*old_ids, *config.codebook_token_ids}))
    return model, _new_processor(donor_processor, config, names)


def derive_config(donor: PixelLMConfig, settings: Mapping[str, Any]) -> PixelLMConfig:
    """The source's configuration with some settings changed and provisional codebook ids.

    Args:
        donor: of the model that gives its weights.
        settings: arguments of ``PixelLMConfig`` that differ.

    Raises:
        ValueError: an unknown setting.
    """
    known = inspect.signature(PixelLMConfig.__init__).parameters.keys() - _NOT_SETTINGS
    if unknown := sorted(settings.keys() - known):
        raise ValueError(f"model.settings has no {', '.join(unknown)}; see PixelLMConfig.")
    values = donor.to_dict()
    kept = {name: values[name] for name in known if name in values}
    config = PixelLMConfig(
        **{**kept, **settings}, image_token_id=donor.image_token_id, codebook_token_ids=None
    )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, getattr(donor, name, None))
    return config


def _codebook_names(processor: PixelLMProcessor, count: int) -> list[str]:
    """Texts of ``count`` codebook tokens: the source's own as far as they go, then new ones."""
    own = processor.codebook_tokens
    return [own[i] if i < len(own) else f"[SEG{i}]" for i in range(count)]


@torch.no_grad()
def _copy_pretrained(
    model: PixelLMForConditionalGeneration,
    donor: PixelLMForConditionalGeneration,
    fresh_rows: list[int],
) -> None:
    """Copy encoder, language model, head and image projection; codebook rows stay fresh.

    Raises:
        ValueError: a pretrained weight has no place of its shape in the new model.
    """
    own, given = model.state_dict(), donor.state_dict()
    embeddings = model.get_input_embeddings()
    path = next(name for name, module in model.named_modules() if module is embeddings)
    tables = [f"{path}.weight", *(name for name in own if name.startswith("lm_head."))]
    wanted = [name for name in {**own, **given} if name.startswith(PRETRAINED_PARTS)]
    initial = {name: own[name][fresh_rows].clone() for name in tables}
    for name in wanted:
        source, target = given.get(name), own.get(name)
        if source is None or target is None or not _fits(source, target, name in tables):
            raise ValueError(
                f"model.settings changes {name}, which keeps its pretrained weights; change "
                "only what the codebook, the decoder and its projections are made of."
            )
        (target[: len(source)] if name in tables else target).copy_(source)
    for name in tables:
        own[name][fresh_rows] = initial[name]


def _fits(source: Tensor, target: Tensor, is_table: bool) -> bool:
    """Whether weights can move; a token table may have gained rows."""
    if is_table:
        return source.shape[1:] == target.shape[1:] and len(source) <= len(target)
    return source.shape == target.shape


def _new_processor(
    donor: PixelLMProcessor, config: PixelLMConfig, names: list[str]
) -> PixelLMProcessor:
    images = donor.image_processor
    return PixelLMProcessor(
        PixelLMImageProcessor(
            image_size=config.image_size,
            resample=images.resample,
            rescale_factor=images.rescale_factor,
            image_mean=images.image_mean,
            image_std=images.image_std,
        ),
        donor.tokenizer,
        chat_template=donor.chat_template,
        image_token=donor.image_token,
        codebook_tokens=names,
        llm_grid=config.llm_grid,
        evidence_tokens=config.evidence_tokens,
        reasoning_suffix=donor.reasoning_suffix,
    )
