"""Linear layers that read their weights faster where they meet a few rows on a CPU.

Decoding multiplies one row or a few with all weights, and its time is that of reading them.
For 2 to 16 rows the product that ``torch.nn.functional.linear`` asks for, rows by weights, takes
about twice the time of weights by rows (``benchmarks/small_products.py``). Knows linear layers
only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_ROWS = 16
"""Rows up to which the other order was measured to be faster."""


class SmallBatchLinear(nn.Linear):
    """A linear layer that multiplies weights by rows where these are few and nothing is learnt."""

    def forward(self, input: Tensor) -> Tensor:
        """``input`` (..., in_features) to (..., out_features)."""
        if torch.is_grad_enabled() or not is_plain(self.weight):
            return super().forward(input)
        return small_batch_product(input, self.weight, self.bias)


def small_batch_product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, weights by rows where that is faster; no gradient."""
    size_out, size_in = weight.shape
    rows = input.numel() // size_in
    if not 1 < rows <= MAX_ROWS:
        return F.linear(input, weight, bias)
    columns = input.reshape(rows, size_in).T
    if bias is None:
        product = torch.mm(weight, columns)
    else:
        product = torch.addmm(bias[:, None], weight, columns)
    return product.T.contiguous().view(*input.shape[:-1], size_out)


def is_plain(weight: Tensor) -> bool:
    """Whether the weight is what it seems: float32 in main memory, not a quantised stand-in."""
    own = type(weight) is nn.Parameter or type(weight) is Tensor
    return own and weight.dtype is torch.float32 and weight.device.type == "cpu"


def use_small_batch_kernels(module: nn.Module) -> None:
    """Let a module's plain linear layers do so, in place; names and weights stay.

    Layers of other classes, such as those of adapters and of quantised models, are left alone.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = SmallBatchLinear
