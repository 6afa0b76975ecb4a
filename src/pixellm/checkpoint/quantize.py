"""The language model's weights in 8 or 4 bits, through torchao.

Only the linear layers inside the language model are rounded. All that a mask is made of keeps its
precision: vision tower, projections, codebook, pixel decoder, and the tables of the embedding and
the head with their codebook rows. It knows no file and no tokenizer.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pixellm.model.modeling import PixelLMForConditionalGeneration

BITS = ("int8", "int4")

FULL_PRECISION = (
    "model.vision_tower",
    "model.image_projector",
    "model.feature_projector",
    "model.codebook",
    "model.pixel_decoder",
    "lm_head",
)
"""Modules whose weights are never rounded; embeddings are no linear layers and stay as well."""

GROUP_SIZE = 32
"""Weights that share a scale in 4 bits."""


def quantization_config(bits: str, device: torch.device, dtype: torch.dtype) -> Any:
    """What ``from_pretrained`` needs to round weights as it reads them.

    Only weights are rounded, to the nearest: in 8 bits with a scale for each row, in 4 bits for
    each :data:`GROUP_SIZE` weights of one.

    Args:
        bits: "int8" or "int4".
        device: where the model will run.
        dtype: of everything else.

    Raises:
        ValueError: another name, or 4 bits with a type that the GPU has no product for.
        ImportError: the package of the extra ``quant`` is missing.
    """
    with _quiet():
        kind = _kind(bits, device, dtype)
        from transformers import TorchAoConfig

        return TorchAoConfig(kind, modules_to_not_convert=list(FULL_PRECISION))


def quantize_model(model: PixelLMForConditionalGeneration, bits: str) -> None:
    """Round the weights of a model that is in memory, as :func:`quantization_config` would."""
    with _quiet():
        kind = _kind(bits, model.device, model.dtype)
        from torchao.quantization import quantize_

        quantize_(model, kind, filter_fn=_is_rounded)


def _is_rounded(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and not name.startswith(FULL_PRECISION)


def _kind(bits: str, device: torch.device, dtype: torch.dtype) -> Any:
    """What torchao calls it."""
    if bits not in BITS:
        raise ValueError(f"Weights can be {' or '.join(BITS)}, not {bits!r}.")
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if bits == "int8":
        return Int8WeightOnlyConfig()
    if device.type == "cuda":
        if dtype != torch.bfloat16:
            raise ValueError("int4 on a GPU needs the floating type bfloat16.")
        return Int4WeightOnlyConfig(GROUP_SIZE, int4_packing_format="tile_packed_to_4d")
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(GROUP_SIZE, set_inductor_config=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torchao's notes on kernels for other machines, which it makes when imported."""
    notes = logging.getLogger("torchao")
    level = notes.level
    notes.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            notes.setLevel(level)
