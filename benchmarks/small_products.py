"""Products of a few rows with a layer's weights, as decoding a small batch makes them on a CPU.

    python benchmarks/small_products.py

Prints milliseconds for 40 layers of 768 to 2048 in two orders of the same product: rows by weights,
as `torch.nn.functional.linear` has it, and weights by rows, transposed afterwards; and as pixellm
makes it, where threads share the weights that a single row meets. Medians of 15.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pixellm.model.small_batch_linear import small_batch_product

LAYERS, INPUT, OUTPUT, REPEATS = 40, 768, 2048, 15


def milliseconds(product: Callable[[Tensor], Tensor], weights: list[Tensor]) -> float:
    """Median time of a product with every layer's weights."""
    seconds = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        for weight in weights:
            product(weight)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[2:])


def main() -> None:
    """Print one line for each number of rows."""
    weights = [torch.randn(OUTPUT, INPUT) for _ in range(LAYERS)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for count in (1, 2, 4, 8, 16):
        rows = torch.randn(count, INPUT)
        usual = milliseconds(lambda weight, rows=rows: F.linear(rows, weight), weights)
        turned = milliseconds(lambda weight, rows=rows: torch.mm(weight, rows.T).T, weights)
        own = milliseconds(lambda weight, rows=rows: small_batch_product(rows, weight), weights)
        print(
            f"{count:2d} rows: {usual:6.1f} ms rows by weights, {turned:6.1f} ms weights by rows, "
            f"{own:6.1f} ms as pixellm makes it"
        )


if __name__ == "__main__":
    main()
