"""Untrained PixelLM models around any causal language model and any vision encoder.

Each part brings what is its own: the language model its tokenizer and chat template, the encoder
the numbers that its images are normalised with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.convert_llava import CANVAS, UNIT
from pixellm.checkpoint.hub import fetch_directory
from pixellm.checkpoint.io import save_model
from pixellm.checkpoint.model_files import read_json
from pixellm.checkpoint.pretrained import from_pretrained
from pixellm.files import new_folder
from pixellm.model.vision import choose_depths, hidden_shapes, takes_padding_mask

_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")


def init_from_parts(
    llm: str,
    vision: str,
    out: str | Path,
    *,
    template: str | None = None,
    image_size: int = CANVAS,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Make an untrained PixelLM from any causal language model and vision encoder.

    Args:
        llm: directory or hub id of the language model, with its tokenizer.
        vision: directory or hub id of the encoder, or of a model with one, such as CLIP.
        out: directory to write; it must not exist or be empty.
        template: of dialogues, "vicuna", "compact" or "own"; where None the language model's own
            chat template, or Vicuna's where it has none.
        image_size: side of the canvas in pixels; a part of a patch is left out.
        settings: other arguments of ``PixelLMConfig``.
        seed: of the fresh parts.

    Raises:
        FileNotFoundError: a file or repository is missing.
        ValueError: parts that do not fit together.
    """
    text_dir, vision_dir = fetch_directory(llm), fetch_directory(vision)
    encoder = from_pretrained(AutoConfig, vision_dir)
    encoder = getattr(encoder, "vision_config", encoder)
    patch = getattr(encoder, "patch_size", None)
    side = image_size // patch * patch if isinstance(patch, int) else image_size
    if hasattr(encoder, "image_size"):
        encoder.image_size = side
    text = from_pretrained(AutoConfig, text_dir)
    if template is None:
        has_own = from_pretrained(AutoTokenizer, text_dir).chat_template
        template = "own" if has_own else "vicuna"
    torch.manual_seed(seed)
    model, processor = build_model(
        {
            "vision": {"source": str(vision_dir)},
            "text": {"source": str(text_dir)},
            "tokenizer": {"source": str(text_dir)},
            "image": read_image_settings(vision_dir, encoder.model_type),
            "template": template,
            "settings": {
                "image_size": side,
                "vision_depths": choose_depths(hidden_shapes(encoder, side)),
                "mask_padding": takes_padding_mask(encoder),
                "llm_projector_size": 2 * text.get_text_config().hidden_size,
                **(settings or {}),
            },
        }
    )
    with new_folder(Path(out)) as partial:
        save_model(partial, model, processor)
    return Path(out)


def read_image_settings(directory: Path, model_type: str) -> dict[str, Any]:
    """How an encoder's images are normalised and resized, as ``model.image`` of a recipe says it.

    Args:
        directory: of the encoder, with its preprocessor_config.json.
        model_type: of the encoder; CLIP's numbers are known without a file.
    """
    path = next((directory / name for name in _IMAGE_FILES if (directory / name).is_file()), None)
    if path is None:
        if "clip" in model_type and "siglip" not in model_type:
            return {"rescale_factor": UNIT, "mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}
        raise FileNotFoundError(
            f"{directory} has no preprocessor_config.json, which says how a {model_type} wants its "
            "images normalised; copy it there from where the weights are published."
        )
    try:
        values = read_json(path)
        values = values.get("image_processor", values)
        plain = not values.get("do_normalize", True)
        rescales = values.get("do_rescale", True)
        return {
            "rescale_factor": float(values.get("rescale_factor", UNIT)) if rescales else 1.0,
            "mean": _channels(0.0 if plain else values["image_mean"]),
            "std": _channels(1.0 if plain else values["image_std"]),
            "resample": Image.Resampling(values.get("resample", 2)).name.lower(),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} can't be read ({error!r}); copy it again.") from error


def _channels(value: float | list[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list) else (float(value),) * 3
