"""The language model's weights in 8 or 4 bits: int8 and int4 by torchao, nf4 by bitsandbytes.

Only the linear layers inside the language model are rounded. All that a mask is made of keeps its
precision: vision tower, projections, codebook, pixel decoder, and the tables of the embedding and
the head with their codebook rows.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from pixellm.model.modeling import PixelLMForConditionalGeneration

BITS = ("int8", "int4", "nf4")
"""As the command line and recipes call them; with nf4 adapters can be trained on top (QLoRA)."""

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
        bits: of :data:`BITS`.
        device: where the model will run.
        dtype: of everything else.
    """
    if bits == "nf4":
        return _nf4(device)
    with _quiet():
        kind = _kind(bits, device, dtype)
        from transformers import TorchAoConfig

        return TorchAoConfig(kind, modules_to_not_convert=list(FULL_PRECISION))


def quantize_model(model: PixelLMForConditionalGeneration, bits: str) -> None:
    """Round the weights of a model that is in memory, as :func:`quantization_config` would."""
    if bits == "nf4":
        raise ValueError("nf4 goes with whole models; fold the adapters in with `pixellm merge`.")
    with _quiet():
        kind = _kind(bits, model.device, model.dtype)
        from torchao.quantization import quantize_

        quantize_(model, kind, filter_fn=_is_rounded)


def _is_rounded(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and not name.startswith(FULL_PRECISION)


def _kind(bits: str, device: torch.device, dtype: torch.dtype) -> Any:
    """What torchao calls it."""
    if bits not in BITS:
        raise ValueError(f"Weights can be {', '.join(BITS[:-1])} or {BITS[-1]}, not {bits!r}.")
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if bits == "int8":
        return Int8WeightOnlyConfig()
    if device.type == "cuda":
        if dtype != torch.bfloat16:
            raise ValueError("int4 on a GPU needs the floating type bfloat16.")
        return Int4WeightOnlyConfig(GROUP_SIZE, int4_packing_format="tile_packed_to_4d")
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(GROUP_SIZE, set_inductor_config=False)


def _nf4(device: torch.device) -> Any:
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError("nf4 needs an NVIDIA GPU; leave it out for weights that are not rounded.")
    if find_spec("bitsandbytes") is None:
        raise ValueError("nf4 needs bitsandbytes; run: pip install 'pixellm[quant]'.")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(FULL_PRECISION),  # whole names, from their beginning
    )


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
