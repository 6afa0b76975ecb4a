"""Untrained PixelLM models that start from LLaVA.

LLaVA fills the language model and the projection into it (``p_V->T``); the codebook, the decoder
and the projection into it are fresh. Both layouts are read: transformers' own and that of
LLaVA-v1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pixellm.checkpoint.build import add_control_tokens, configure
from pixellm.checkpoint.hub import fetch_directory
from pixellm.checkpoint.io import save_model
from pixellm.checkpoint.model_files import read_json
from pixellm.checkpoint.pretrained import from_pretrained
from pixellm.checkpoint.released_config import llama_config, released_tower_config
from pixellm.checkpoint.sentencepiece_tokenizer import build_fast_tokenizer
from pixellm.checkpoint.weights import read_weights
from pixellm.files import new_folder
from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.model.vision import choose_depths, hidden_shapes
from pixellm.processing.image import PixelLMImageProcessor
from pixellm.processing.processor import PixelLMProcessor
from pixellm.processing.templates import VICUNA_TEMPLATE, codebook_token_names

CANVAS = 448
CODEBOOK_SIZE = 6
UNIT = 1 / 255

_VISION_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
"""Parts of a CLIP tower; its checkpoints name them with or without "vision_model." in front."""


@dataclass(frozen=True, slots=True)
class LlavaParts:
    """What a LLaVA brings along.

    Attributes:
        text_config: of its language model.
        vision_config: of its encoder.
        text: tensors of the language model, named as in its transformers class.
        head: (V, D) rows of the language model's head.
        projector: tensors of the projection, named "0.weight" to "2.bias".
        vision: tensors of the encoder.
        tokenizer: its own.
    """

    text_config: Any
    vision_config: Any
    text: dict[str, Tensor]
    head: Tensor
    projector: dict[str, Tensor]
    vision: dict[str, Tensor]
    tokenizer: PreTrainedTokenizerBase


def init_from_llava(
    source: str | Path,
    out: str | Path,
    vision_tower: str | Path | None = None,
    *,
    revision: str | None = None,
    seed: int = 0,
) -> Path:
    """Make an untrained PixelLM from a LLaVA, in its floating type.

    Args:
        source: directory or hub id, of transformers' layout or of LLaVA-v1's.
        out: directory to write; it must not exist or be empty.
        vision_tower: the CLIP of a LLaVA-v1 model; the one that it names where None.
        revision: commit, tag or branch on the hub.
        seed: of the fresh parts.

    Raises:
        FileNotFoundError: a file, repository or revision is missing.
        ValueError: no LLaVA, a damaged file, or tensors that do not fit.
    """
    directory, out = fetch_directory(source, revision), Path(out)
    values = read_json(directory / "config.json")
    if values.get("model_type") not in ("llava", "llava_llama"):
        raise ValueError(f"{directory} holds a {values.get('model_type')!r} model, not a LLaVA.")
    parts = (
        _read_transformers_layout(directory)
        if "text_config" in values
        else _read_original_layout(directory, values, vision_tower)
    )
    torch.manual_seed(seed)
    add_control_tokens(parts.tokenizer, "vicuna", codebook_token_names(CODEBOOK_SIZE))
    model = PixelLMForConditionalGeneration(_config(parts))
    _fill(model, parts, str(directory))
    with new_folder(out) as partial:
        images = PixelLMImageProcessor(
            rescale_factor=UNIT, image_mean=OPENAI_CLIP_MEAN, image_std=OPENAI_CLIP_STD
        )
        processor = PixelLMProcessor.for_model(
            model.config, images, parts.tokenizer, VICUNA_TEMPLATE
        )
        save_model(partial, model, processor, dtype=parts.head.dtype)
    return out


def _read_transformers_layout(directory: Path) -> LlavaParts:
    model = from_pretrained(LlavaForConditionalGeneration, directory, dtype="auto")
    inner = model.model
    names = {"linear_1": "0", "linear_2": "2"}
    projector = {
        f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value
        for key, value in inner.multi_modal_projector.state_dict().items()
    }
    tower = inner.vision_tower
    return LlavaParts(
        text_config=model.config.text_config,
        vision_config=model.config.vision_config,
        text=inner.language_model.state_dict(),
        head=model.lm_head.weight.detach(),
        projector=projector,
        vision=getattr(tower, "vision_model", tower).state_dict(),
        tokenizer=from_pretrained(AutoTokenizer, directory),
    )


def _read_original_layout(
    directory: Path, values: dict[str, Any], vision_tower: str | Path | None
) -> LlavaParts:
    text_config = llama_config(values, directory)
    tower_dir = fetch_directory(vision_tower or values.get("mm_vision_tower", "missing"))
    tower: CLIPVisionConfig = released_tower_config(read_json(tower_dir / "config.json"))
    state = {
        name: value.clone()
        for name, value in read_weights(directory).items()
        if "vision_tower" not in name and "inv_freq" not in name
    }
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        if name not in state:
            raise ValueError(f"{directory} is no LLaVA-v1: it lacks {name}.")
    head, projector = state.pop("lm_head.weight"), "model.mm_projector."
    vision = {
        name.removeprefix("vision_model."): value.clone()
        for name, value in read_weights(tower_dir).items()
        if name.removeprefix("vision_model.").startswith(_VISION_PARTS)
        and not name.endswith("position_ids")
    }
    return LlavaParts(
        text_config=text_config,
        vision_config=tower,
        text={n.removeprefix("model."): v for n, v in state.items() if projector not in n},
        head=head,
        projector={n.removeprefix(projector): v for n, v in state.items() if projector in n},
        vision=vision,
        tokenizer=build_fast_tokenizer(directory, ()),
    )


def _config(parts: LlavaParts) -> PixelLMConfig:
    vision = parts.vision_config
    side = CANVAS // vision.patch_size * vision.patch_size
    vision.image_size = side
    parts.text_config.tie_word_embeddings = False
    return configure(
        parts.text_config,
        vision,
        parts.tokenizer,
        codebook_token_names(CODEBOOK_SIZE),
        rows=len(parts.text["embed_tokens.weight"]),
        image_size=side,
        vision_depths=choose_depths(hidden_shapes(vision, side)),
        llm_projector_size=len(parts.projector.get("0.weight", ())),
    )


def _fill(model: PixelLMForConditionalGeneration, parts: LlavaParts, source: str) -> None:
    """Copy LLaVA's tensors; rows of new tokens start at the mean of the old ones."""
    count = model.config.text_config.vocab_size
    text = dict(parts.text)
    text["embed_tokens.weight"] = _grow(text["embed_tokens.weight"], count)
    try:
        model.model.language_model.load_state_dict(text)
        model.lm_head.load_state_dict({"weight": _grow(parts.head, count)})
        model.model.image_projector.projection.load_state_dict(parts.projector)
        model.model.vision_tower.load_encoder(parts.vision)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"The weights of {source} do not fit its config.json: {reason}") from error


def _grow(rows: Tensor, count: int) -> Tensor:
    new = rows.float().mean(0, keepdim=True).to(rows.dtype).expand(count - len(rows), -1)
    return torch.cat([rows, new])
