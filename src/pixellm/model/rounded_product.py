"""Products with weights in 8 bits on a CPU, made of integers.

torchao makes floats of such a weight again whenever it meets states. Here the states are rounded
to 8 bits too, each row with a scale of its own, and integers are multiplied, of which a processor
with vector instructions for them does several times as many (``docs/benchmarks.md``).
Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LARGEST = 127
_LEAST_SCALE = 1e-12
"""Of a row of zeros."""


class Rounded(NamedTuple):
    """A weight in 8 bits: integers (N, K), and the scale of each row, (N,)."""

    integers: Tensor
    scales: Tensor


def rounded_of(weight: Any) -> Rounded | None:
    """What torchao's weight in 8 bits holds; None for other weights, and where floats are as fast.

    Args:
        weight: (N, K), of any class.
    """
    if type(weight).__name__ != "Int8Tensor" or not _multiplies_integers():
        return None
    integers, scales = weight.qdata, weight.scale
    if integers.device.type != "cpu" or scales.numel() != len(integers):
        return None
    return Rounded(integers, scales.reshape(-1).float())


def join_rounded(weights: Sequence[Rounded]) -> Rounded:
    """Weights of the same states, one below the other."""
    return Rounded(*(torch.cat(parts) for parts in zip(*weights, strict=True)))


def rounded_product(input: Tensor, weight: Rounded, bias: Tensor | None = None) -> Tensor:
    """(..., K) states by a weight in 8 bits, (..., N); no gradient."""
    rows = input.reshape(-1, input.shape[-1]).float()
    scales = rows.abs().amax(-1, keepdim=True).div_(_LARGEST).clamp_min_(_LEAST_SCALE)
    integers = rows.div(scales).round_().to(torch.int8)
    product = torch._int_mm(integers, weight.integers.T).to(torch.float32)
    product = product.mul_(scales).mul_(weight.scales).to(input.dtype)
    product = product.view(*input.shape[:-1], -1)
    return product if bias is None else product + bias


@cache
def _multiplies_integers() -> bool:
    """Whether this processor was measured to gain from it."""
    capability = torch.backends.cpu.get_cpu_capability()
    return torch.backends.mkldnn.is_available() and capability.startswith("AVX512")
