"""Muon for hidden matrices, in a number format that the machine multiplies fast.

Torch's own orthogonalises in bfloat16 wherever it runs, which is many times slower on a CPU without
units for it (``benchmarks/muon_step.py``), and before torch 2.9 there is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x^3 and x^5: steep at 0, so that small singular values grow in few rounds."""

ROUNDS = 5
MATCHED_SIZE = 0.2
"""Root mean square of an update at rate 1: about AdamW's, so that its rates and decays fit."""


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are near-orthogonal matrices (Jordan et al., "Muon", 2024).

    The learning rate is on AdamW's scale, the weight decay decoupled, and the momentum that of the
    gradient's running mean, in the manner of Nesterov. Groups may set `lr` and `weight_decay`;
    ValueError for a tensor that is no matrix.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        shapes = [p.shape for group in self.param_groups for p in group["params"] if p.ndim != 2]
        if shapes:
            raise ValueError(f"Muon moves matrices only, not a tensor of shape {tuple(shapes[0])}.")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every matrix that has a gradient; nothing here asks for a loss by a closure."""
        assert closure is None
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._move(matrix, matrix.grad, group)

    def _move(self, matrix: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        rate, momentum = group["lr"], group["momentum"]
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        mean = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - momentum)
        update = orthogonalise(gradient.lerp(mean, momentum))
        matrix.mul_(1 - rate * group["weight_decay"])
        size = MATCHED_SIZE * max(matrix.shape) ** 0.5
        matrix.add_(update.to(matrix.dtype), alpha=-rate * size)


def orthogonalise(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors and singular values near 1, by Newton-Schulz rounds.

    (rows, columns) of any scale; zeros stay zeros. The result is bfloat16 on a GPU and float32
    elsewhere.
    """
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.mT
    x = x / x.norm().clamp(min=1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return x.mT if is_tall else x
