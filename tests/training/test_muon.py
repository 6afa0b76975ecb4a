"""Muon: near-orthogonal updates of a known size, on any device's number format."""

import pytest
import torch
from torch import nn

from pixellm.training.muon import MATCHED_SIZE, Muon, orthogonalise


@pytest.mark.parametrize("shape", [(24, 24), (40, 12), (12, 40)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 1e-3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.diag(left.T @ orthogonalise(matrix) @ right.T)
    assert orthogonalise(matrix).shape == matrix.shape
    assert values.min() > 0.3
    assert values.max() < 1.3
    off_diagonal = left.T @ orthogonalise(matrix) @ right.T - torch.diag(values)
    assert off_diagonal.abs().max() < 1e-4


def test_a_gradient_of_zeros_moves_nothing() -> None:
    matrix = nn.Parameter(torch.ones(3, 5))
    matrix.grad = torch.zeros(3, 5)
    Muon([matrix], lr=0.1).step()
    assert torch.equal(matrix, torch.ones(3, 5))


def test_the_first_step_is_worked_out_by_hand() -> None:
    matrix = nn.Parameter(torch.full((4, 4), 2.0))
    matrix.grad = 3 * torch.eye(4)
    Muon([matrix], lr=0.01, weight_decay=0.5).step()
    value = 0.5  # of a unit matrix over its norm, 2
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    expected = 2.0 * (1 - 0.01 * 0.5) - 0.01 * MATCHED_SIZE * 2 * value * torch.eye(4)
    torch.testing.assert_close(matrix.detach(), expected)


def test_it_agrees_with_torchs_own_but_for_its_rounding() -> None:
    theirs = getattr(torch.optim, "Muon", None)
    if theirs is None:
        pytest.skip("this torch has no Muon of its own")
    torch.manual_seed(1)
    start, gradients = torch.randn(16, 8), torch.randn(3, 16, 8)

    def run(build: object) -> torch.Tensor:
        matrix = nn.Parameter(start.clone())
        optimizer = build([{"params": [matrix]}], lr=0.05, weight_decay=0.1)  # type: ignore[operator]
        for gradient in gradients:
            matrix.grad = gradient.clone()
            optimizer.step()
        return matrix.detach()

    def torchs(groups: list[dict[str, object]], **options: float) -> torch.optim.Optimizer:
        return theirs(groups, adjust_lr_fn="match_rms_adamw", **options)

    moved = (run(Muon) - start).norm()
    assert (run(Muon) - run(torchs)).norm() < 0.03 * moved


def test_only_matrices_are_taken() -> None:
    with pytest.raises(ValueError, match=r"not a tensor of shape \(3,\)"):
        Muon([nn.Parameter(torch.ones(3))])
