"""Whether the weight files of a model hold what its configuration describes.

Only the heads of the files are read, and the model is described without storage: a configuration
with a wrong or hostile number costs neither memory nor minutes. Used by: loading.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration

_NO_SIZES = ("max_position_embeddings", "sliding_window", "original_max_position_embeddings")
_LARGEST_IMAGE = 16_384
"""Side in pixels of the largest canvas; a model's grids grow with its square."""


def check_sizes(config: PixelLMConfig, files: Sequence[Path], name: str) -> None:
    """Refuse a configuration of another model than the weight files hold.

    Args:
        config: as read from the model's folder.
        files: its safetensors files.
        name: of the folder, for messages.

    Raises:
        ValueError: the first difference.
        safetensors.SafetensorError: a file is damaged.
    """
    stored = _stored_shapes(files)
    _check_numbers(config.to_dict(), stored, name)
    with torch.device("meta"):
        model = PixelLMForConditionalGeneration(config)
    described = {key: tuple(value.shape) for key, value in model.state_dict().items()}
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
