"""Token rows of a table and a head, ours against peft's: time of a forward and a backward pass.

    python benchmarks/token_rows.py [--width 1024] [--tokens 128]

Prints medians and their ratio, and whether the outputs agree; with a bias they do not, as peft
leaves a head's bias out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import TrainableTokensConfig
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor, nn

from pixellm.checkpoint.adapters import TokenHead, TokenTable

VOCABULARY, ADDED = 32008, 8
REPEATS = 7


def median_seconds(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def theirs(base: nn.Module, ids: list[int]) -> nn.Module:
    layer = TrainableTokensLayer(base, "default")
    layer.update_layer("default", TrainableTokensConfig(token_indices=ids))
    return layer


def compare(what: str, ours: nn.Module, peft: nn.Module, inputs: Tensor) -> None:
    seconds = [median_seconds(lambda one=one: one(inputs).sum().backward()) for one in (ours, peft)]
    agree = torch.allclose(ours(inputs), peft(inputs), atol=1e-4)
    print(
        f"{what}: ours {seconds[0] * 1e3:.1f} ms, peft {seconds[1] * 1e3:.1f} ms, "
        f"ratio {seconds[1] / seconds[0]:.1f}, outputs {'agree' if agree else 'differ'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ids = list(range(VOCABULARY - ADDED, VOCABULARY))
    table = nn.Embedding(VOCABULARY, options.width).requires_grad_(False)
    rows = nn.Parameter(table.weight[ids].clone())
    tokens = torch.randint(0, VOCABULARY, (1, options.tokens))
    compare("table", TokenTable(table, ids, rows), theirs(table, ids), tokens)
    states = torch.randn(1, options.tokens, options.width)
    for bias in (False, True):
        head = nn.Linear(options.width, VOCABULARY, bias=bias).requires_grad_(False)
        rows = nn.Parameter(head.weight[ids].clone())
        name = "head with a bias" if bias else "head"
        compare(name, TokenHead(head, ids, rows), theirs(head, ids), states)


if __name__ == "__main__":
    main()
