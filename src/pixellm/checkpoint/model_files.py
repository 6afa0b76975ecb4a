"""Which files a model directory holds, and which settings its configuration may.

Our settings are all known, and others are refused. The vision encoder's and the language model's
belong to transformers, whose versions differ and which keeps what models of other makers carry
beside; of those only what looks like a misspelt setting is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from pixellm.model.config import PixelLMConfig

PROCESSOR_FILES = ("processor_config.json", "tokenizer.json")
"""What a model directory holds beside its configuration and weights."""

_OF_TRANSFORMERS = frozenset(
    ["auto_map", "bos_token_id", "dtype", "eos_token_id", "pad_token_id", "torch_dtype"]
)
"""Settings that a configuration may hold and a fresh one does not write."""

_OF_OLDER_VERSIONS = frozenset(["tie_encoder_decoder"])
"""What transformers 4 wrote for every model and is called almost like something else."""

_LIKENESS = 0.9
"""Of a misspelt name to the right one: one letter of ten."""


def check_config(directory: Path) -> None:
    """Refuse a directory whose configuration holds settings that nobody knows.

    Raises:
        ValueError: such a setting, or a file that is no JSON object.
    """
    path = directory / "config.json"
    check_settings(path, read_json(path))


def check_files(directory: Path) -> list[Path]:
    """Refuse a directory whose configuration or weights cannot be right.

    Returns:
        Its weight files.

    Raises:
        FileNotFoundError: a shard, the index, or a file of the processor is missing.
        ValueError: unknown settings, a damaged index or one that leads elsewhere, or only pickled
            weights.
    """
    check_config(directory)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = _shard_names(index)
    elif (directory / "model.safetensors").is_file():
        names = ["model.safetensors"]
    elif any(directory.glob("*.bin")):
        raise ValueError(
            f"{directory} holds pickled weights only; convert it with: "
            f"pixellm convert {directory} --out DIR"
        )
    else:
        raise FileNotFoundError(f"{directory} holds no weights: model.safetensors is missing.")
    missing = [n for n in (*names, *PROCESSOR_FILES) if not (directory / n).is_file()]
    if missing:
        raise FileNotFoundError(f"{directory} lacks {', '.join(missing)}; copy the model again.")
    return [directory / name for name in names]


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} names no weight files; copy the model again.")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if name in ("", ".", "..") or set(name) & {"/", "\\"}]
    if outside:
        raise ValueError(f"{index} names {outside[0]!r}, which is no file beside it.")
    return names


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return values


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
