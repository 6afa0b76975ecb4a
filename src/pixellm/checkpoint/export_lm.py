"""A PixelLM's language model as a plain Hugging Face causal language model.

What tools that test chat and knowledge load (lm-evaluation-harness, VLMEvalKit's text-only parts,
``transformers`` itself): a directory with the language model, its head and its tokenizer, and
nothing that needs this package. It knows nothing of those tools.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pixellm.checkpoint.io import load_model_and_processor
from pixellm.files import new_folder
from pixellm.model.language import layers_name
from pixellm.model.modeling import PixelLMForConditionalGeneration


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
