"""Which settings the config.json of a model may hold.

Ours are all known, and others are refused. The vision encoder's and the language model's belong
to transformers, whose versions differ and which keeps what models of other makers carry beside;
of those only what looks like a misspelt setting is refused. It knows no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from pixellm.model.config import PixelLMConfig

_OF_TRANSFORMERS = frozenset(
    ["auto_map", "bos_token_id", "dtype", "eos_token_id", "pad_token_id", "torch_dtype"]
)
"""Settings that a configuration may hold and a fresh one does not write."""

_OF_OLDER_VERSIONS = frozenset(
    [
        "add_cross_attention",
        "bad_words_ids",
        "begin_suppress_tokens",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "is_decoder",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_scores",
        "partial_rotary_factor",
        "prefix",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "rope_scaling",
        "rope_theta",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torchscript",
        "typical_p",
        "use_bfloat16",
    ]
)
"""Settings that transformers 4 wrote for every model."""

_LIKENESS = 0.9
"""Of a misspelt name to the right one: one letter of ten."""


def check_settings(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse a configuration with settings that would count for nothing.

    Args:
        path: the file, for messages.
        values: what it holds.

    Raises:
        ValueError: the model is none of ours, or a setting is unknown or misspelt.
    """
    if values.get("model_type") != PixelLMConfig.model_type:
        raise ValueError(
            f"{path} describes a {values.get('model_type')!r} model, not a pixellm one; "
            "see `pixellm convert --help`."
        )
    known = PixelLMConfig().to_dict().keys() | _OF_TRANSFORMERS
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(f"{path} holds unknown settings: {', '.join(unknown)}.")
    for name in PixelLMConfig.sub_configs:
        part = values.get(name)
        if part is not None and not isinstance(part, dict):
            raise ValueError(f"{name} in {path} must be a JSON object, not {part!r}.")
        for key, near in _misspelt(part or {}):
            raise ValueError(
                f"{name} in {path} holds the unknown setting {key}; mend it to {near}."
            )


def _misspelt(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, the setting that it is almost called like) of the unknown keys of a part."""
    try:
        config = AutoConfig.for_model(str(part.get("model_type")))
    except ValueError:  # an unknown kind of model: told when it is built
        return
    known = config.to_dict().keys() | vars(config).keys() | config.attribute_map.keys()
    for key in sorted(part.keys() - known - _OF_TRANSFORMERS - _OF_OLDER_VERSIONS):
        for near in get_close_matches(key, known, n=1, cutoff=_LIKENESS):
            yield key, near
