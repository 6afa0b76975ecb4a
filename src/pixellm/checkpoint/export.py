"""Models written for use elsewhere: adapters merged into one whole model, the language model alone.

The language model is what tools that test chat and knowledge load (lm-evaluation-harness,
VLMEvalKit's text-only parts, ``transformers`` itself): with its head and its tokenizer, and without
anything that needs this package.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pixellm.checkpoint.adapters import read_adapter_config
from pixellm.checkpoint.io import load_model_and_processor, save_model
from pixellm.checkpoint.model_files import read_json
from pixellm.checkpoint.sources import is_adapter_folder, resolve_source
from pixellm.files import new_folder
from pixellm.model.language import layers_name
from pixellm.model.modeling import PixelLMForConditionalGeneration

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge_adapters(source: str | Path, out: str | Path, *, dtype: str = "auto") -> Path:
    """Fold adapters into the weights of the model that they belong to.

    The sums are made in float32, whatever the type that is written.

    Args:
        source: a run's folder, one of its checkpoints, or a folder with adapters.
        out: directory to write; it must not exist or be empty.
        dtype: floating type on disk; "auto" is that of the model under the adapters.

    Raises:
        FileNotFoundError: no such folder, or the model under the adapters is not there.
        ValueError: the folder holds a whole model already, or an unknown type.
    """
    found = Path(resolve_source(source))
    if not is_adapter_folder(found):
        raise ValueError(f"{found} holds a whole model already; there is nothing to merge.")
    if dtype != "auto" and dtype not in _TYPES:
        raise ValueError(f"There is no floating type {dtype!r}; try {', '.join(_TYPES)} or auto.")
    name = _type_of_base(found) if dtype == "auto" else dtype
    with new_folder(Path(out)) as partial:
        model, processor = load_model_and_processor(found)
        save_model(partial, model, processor, dtype=_TYPES[name])
    return Path(out)


def _type_of_base(directory: Path) -> str:
    """Floating type of the model under the adapters, as its configuration names it."""
    base = Path(resolve_source(read_adapter_config(directory)[1]))
    if is_adapter_folder(base):
        return _type_of_base(base)
    path = base / "config.json"
    values = read_json(path) if path.is_file() else {}
    name = str(values.get("dtype") or values.get("torch_dtype") or "float32")
    return name if name in _TYPES else "float32"


def export_language_model(
    source: str | Path, out: str | Path, *, dtype: torch.dtype | None = None
) -> Path:
    """Write the language model of a checkpoint, head and tokenizer included.

    The tokenizer keeps its ids, so the codebook's tokens are still in the vocabulary; free
    generation is told to suppress them and the image's, as without an image they mean nothing.
    Its chat template is the dialogue template, which for text alone places no image.

    Args:
        source: an embedded name, a directory, a run's folder, or a hub id.
        out: directory to write; it must not exist or be empty, and appears only when complete.
        dtype: floating type on disk; float32 where None.

    Returns:
        The directory.

    Raises:
        FileNotFoundError: no such model.
        ValueError: ``out`` is not empty, or the model does not fit.
    """
    with new_folder(Path(out)) as partial:
        model, processor = load_model_and_processor(source)
        language_model = build_language_model(model)
        vocab_size = model.config.text_config.vocab_size
        control = (model.config.image_token_id, *model.config.codebook_token_ids)
        generation = copy.deepcopy(model.generation_config)
        generation.suppress_tokens = sorted(i for i in control if i < vocab_size)
        language_model.generation_config = generation
        if dtype is not None:
            language_model = language_model.to(dtype)
        language_model.save_pretrained(partial, safe_serialization=True)
        tokenizer = processor.tokenizer
        tokenizer.chat_template = processor.chat_template
        tokenizer.save_pretrained(partial)
    return Path(out)


def build_language_model(model: PixelLMForConditionalGeneration) -> PreTrainedModel:
    """The language model with its head, as transformers' own class; weights are copied."""
    config = copy.deepcopy(model.config.text_config)
    config.tie_word_embeddings = bool(model.config.tie_word_embeddings)
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    layers = getattr(plain, str(layers_name(plain)))
    layers.load_state_dict(model.model.language_model.state_dict())
    plain.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    plain.tie_weights()
    return plain.eval()
