"""Whether a model's folder can be right: its files, its settings, the sizes of its weights.

Our settings are all known, and others are refused. The vision encoder's and the language model's
belong to transformers, whose versions differ and which keeps what models of other makers carry
beside; of those only what looks like a misspelt setting is refused. Sizes are compared by the heads
of the weight files and a model without storage: a configuration with a wrong or hostile number
costs neither memory nor minutes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig

from pixellm.checkpoint.weights import read_index
from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration

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

_NO_SIZES = ("max_position_embeddings", "sliding_window", "original_max_position_embeddings")
_LARGEST_IMAGE = 16_384
"""Side in pixels of the largest canvas; a model's grids grow with its square."""


def check_config(directory: Path) -> None:
    """Refuse a directory whose configuration holds settings that nobody knows."""
    path = directory / "config.json"
    check_settings(path, read_json(path))


def check_files(directory: Path) -> list[Path]:
    """Refuse a directory whose configuration or weights cannot be right.

    Returns:
        Its weight files.
    """
    check_config(directory)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_index(index).values()))
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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object as transformers writes it, infinities included.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no model: {path.name} is missing.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy it again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return values


def check_settings(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse a configuration with settings that would count for nothing.

    Args:
        path: the file, for messages.
        values: what it holds.
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


def expected_shapes(config: PixelLMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors, without making them; a tied head is left out."""
    with torch.device("meta"):
        model = PixelLMForConditionalGeneration(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.text_config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def check_sizes(config: PixelLMConfig, files: Sequence[Path], name: str) -> None:
    """Refuse a configuration of another model than the weight files hold.

    Args:
        config: as read from the model's folder.
        files: its safetensors files.
        name: of the folder, for messages.
    """
    stored = _stored_shapes(files)
    _check_numbers(config.to_dict(), stored, name)
    described = expected_shapes(config)
    for key in sorted(described.keys() & stored.keys()):
        if described[key] != stored[key]:
            raise ValueError(
                f"The weights of {name} do not fit: {key} has the shape {stored[key]}, "
                f"config.json asks for {described[key]}."
            )


def _stored_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no mapping
                shapes[key] = tuple(opened.get_slice(key).get_shape())
    return shapes


def _check_numbers(
    values: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]], name: str
) -> None:
    """Refuse sizes that no weight could have, before anything is built by them."""
    elements = sum(math.prod(shape) for shape in stored.values())
    for key, number in _numbers(values):
        leaf = key.rpartition(".")[2]
        if leaf.endswith(("_id", "_ids")) or leaf in _NO_SIZES:
            continue
        limit = len(stored) if leaf.endswith(("layers", "scales")) else elements
        limit = _LARGEST_IMAGE if leaf == "image_size" else limit
        if number > limit:
            raise ValueError(
                f"config.json of {name} says {key} = {number}, more than its weight files "
                f"({len(stored)} tensors with {elements} numbers) could hold."
            )


def _numbers(values: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of nested plain values with the dotted key that it stands under."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value, key)
    elif isinstance(values, int) and not isinstance(values, bool):
        yield key, values
