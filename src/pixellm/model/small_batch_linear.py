"""Linear layers that read their weights faster where they meet a few rows on a CPU.

Decoding multiplies one row or a few with all weights, and its time is that of reading them. For 2
to 16 rows the product that ``torch.nn.functional.linear`` asks for, rows by weights, takes about
twice the time of weights by rows. A single row is multiplied by one thread, however many there are,
unless each thread is given its share of the weights as a product of its own
(``benchmarks/small_products.py``). Weights in 8 bits are multiplied as integers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixellm.model.rounded_product import rounded_of, rounded_product

MAX_ROWS = 16
"""Rows up to which the other order was measured to be faster."""

_SHARED_FROM = 1 << 18
"""Weights of a layer from which threads share the product of a single row."""


class SmallBatchLinear(nn.Linear):
    """A linear layer that multiplies weights by rows where these are few and nothing is learnt."""

    def forward(self, input: Tensor) -> Tensor:
        """``input`` (..., in_features) to (..., out_features)."""
        if torch.is_grad_enabled():
            return super().forward(input)
        if is_plain(self.weight):
            return small_batch_product(input, self.weight, self.bias)
        rounded = rounded_of(self.weight)
        if rounded is None:
            return super().forward(input)
        return rounded_product(input, rounded, self.bias)


def small_batch_product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, weights by rows where that is faster; no gradient."""
    size_out, size_in = weight.shape
    rows = input.numel() // size_in
    # A compiled step can't ask how many threads there are, and would be cut there.
    shares = weight.numel() >= _SHARED_FROM and not torch.compiler.is_compiling()
    if rows == 1 and shares and weight.is_contiguous():
        return _shared_product(input, weight, bias)
    if not 1 < rows <= MAX_ROWS:
        return F.linear(input, weight, bias)
    columns = input.reshape(rows, size_in).T
    if bias is None:
        product = torch.mm(weight, columns)
    else:
        product = torch.addmm(bias[:, None], weight, columns)
    return product.T.contiguous().view(*input.shape[:-1], size_out)


def _shared_product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One row by weights, an equal share of them by each thread, and what is left by one."""
    size_out, size_in = weight.shape
    threads = torch.get_num_threads()
    if threads == 1:
        return F.linear(input, weight, bias)
    row, even = input.reshape(1, size_in), size_out - size_out % threads
    shares = weight[:even].view(threads, -1, size_in).transpose(1, 2)
    product = torch.bmm(row.expand(threads, 1, -1), shares).view(1, even)
    if even < size_out:
        product = torch.cat([product, F.linear(row, weight[even:])], -1)
    product = product.view(*input.shape[:-1], size_out)
    return product if bias is None else product + bias


def is_plain(weight: Tensor) -> bool:
    """Whether the weight is what it seems: float32 in main memory, not a quantised stand-in."""
    own = type(weight) is nn.Parameter or type(weight) is Tensor
    return own and weight.dtype is torch.float32 and weight.device.type == "cpu"


def use_small_batch_kernels(module: nn.Module) -> None:
    """Let a module's plain linear layers do so, in place; names and weights stay.

    Layers of other classes, such as those of adapters, are left alone.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = SmallBatchLinear
