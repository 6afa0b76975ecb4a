from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pixellm.model.losses import count_claims, dice_loss, target_refinement_loss, text_loss_sum

LOG2 = math.log(2)
# Three overlapping masks of one answer and one mask of another answer, four pixels each.
OVERLAPPING = torch.tensor(
    [[0.9, 0.9, 0.5, 0.2], [0.6, 0.4, 0.5, 0.1], [0.3, 0.9, 0.9, 0.1], [0.99, 0.99, 0.99, 0.99]]
)
ANSWERS = torch.tensor([0, 0, 0, 1])


def contested_pixels(logits: Tensor, answers: Tensor) -> Tensor:
    return count_claims(logits, answers, int(answers.max()) + 1)[answers] >= 2


def test_text_loss_is_the_summed_negative_log_likelihood() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    loss = text_loss_sum(logits, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(LOG2 + math.log(4 / 3), rel=1e-6)


def test_pixels_that_two_targets_of_an_answer_claim_are_contested() -> None:
    contested = contested_pixels(OVERLAPPING.logit(), ANSWERS)
    both = [True, True, False, False]  # above one half: two, two, one (a logit of 0 is none), none
    assert contested.tolist() == [both, both, both, [False] * 4]


def test_the_refinement_loss_follows_the_formula() -> None:
    truth = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 1]]).float()
    alpha, expected = 3.0, [0.0] * 4
    for k, answer in enumerate(ANSWERS.tolist()):
        for i in range(4):
            claims = [OVERLAPPING[j, i] > 0.5 for j in range(4) if ANSWERS[j] == answer]
            factor = alpha if sum(claims) >= 2 else 1.0
            p = OVERLAPPING[k, i].item()
            expected[k] -= factor * math.log(p if truth[k, i] else 1 - p) / 4
    logits = OVERLAPPING.logit()
    loss = target_refinement_loss(logits, truth, contested_pixels(logits, ANSWERS), alpha)
    assert loss.tolist() == pytest.approx(expected, rel=1e-4)


def test_dice_against_hand_computed_numbers() -> None:
    truth = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    # p = 1/2: overlap 2 x 1 / 1000, total (2 + 2) / 1000.
    half = dice_loss(torch.zeros(1, 4), truth)
    assert half.tolist() == pytest.approx([1 - 0.002001 / 0.004001], rel=1e-5)
    sure = torch.tensor([[50.0, 50.0, -50.0, -50.0]])
    assert dice_loss(sure, truth).tolist() == pytest.approx([0], abs=1e-6)
    assert dice_loss(-sure, truth).tolist() == pytest.approx([1], abs=1e-3)
    nothing = dice_loss(torch.full((1, 4), -90.0), torch.zeros(1, 4))
    assert nothing.tolist() == pytest.approx([0], abs=1e-6)


def test_a_target_with_an_empty_mask_gives_finite_losses() -> None:
    logits = torch.zeros(2, 4, requires_grad=True)
    loss = target_refinement_loss(logits, torch.zeros(2, 4), None, 2.0)
    (loss + dice_loss(logits, torch.zeros(2, 4))).sum().backward()
    assert math.isfinite(loss.sum().item()) and bool(logits.grad.isfinite().all())
