"""What a step of Muon costs over nano's language model, ours beside torch's own.

    python benchmarks/muon_step.py [--repeats 5] [--threads 2]

Random gradients, medians of whole steps; torch's own needs torch 2.9.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

import pixellm
from pixellm.training.muon import Muon


def step_seconds(build: Callable[..., torch.optim.Optimizer], repeats: int) -> float:
    """Median seconds of a step, behind one that is not counted."""
    layers = pixellm.load("nano-scenes", device="cpu").model.model.language_model.layers
    matrices = [nn.Parameter(p.detach().clone()) for p in layers.parameters() if p.ndim == 2]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    optimizer = build(matrices)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def main() -> None:
    """Print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ours = step_seconds(Muon, arguments.repeats)
    print(f"torch {torch.__version__}, {arguments.threads} threads: ours {ours:.3f} s a step")
    if hasattr(torch.optim, "Muon"):
        theirs = step_seconds(torch.optim.Muon, arguments.repeats)
        print(f"torch's own {theirs:.3f} s a step, {theirs / ours:.1f} times as long")


if __name__ == "__main__":
    main()
