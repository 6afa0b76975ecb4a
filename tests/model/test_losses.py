from __future__ import annotations

import math

import pytest
import torch

from pixellm.model.losses import (
    dice_loss_sum,
    refinement_weights,
    target_refinement_loss_sum,
    text_loss_sum,
)

LOG2 = math.log(2)
# Three overlapping masks of one answer and one mask of another answer, four pixels each.
OVERLAPPING = torch.tensor(
    [[0.9, 0.9, 0.5, 0.2], [0.6, 0.4, 0.5, 0.1], [0.3, 0.9, 0.9, 0.1], [0.99, 0.99, 0.99, 0.99]]
)
ANSWERS = torch.tensor([4, 4, 4, 7])


def test_text_loss_is_the_summed_negative_log_likelihood() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    loss = text_loss_sum(logits, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(LOG2 + math.log(4 / 3), rel=1e-6)


def test_the_refinement_map_marks_pixels_that_two_targets_of_an_answer_claim() -> None:
    weights = refinement_weights(OVERLAPPING.logit(), ANSWERS, alpha=3)
    contested = [3, 3, 1, 1]  # claims above one half: two, two, one (a logit of 0 is none), none
    assert weights.tolist() == [contested, contested, contested, [1, 1, 1, 1]]


def test_the_refinement_loss_follows_the_formula() -> None:
    truth = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 1]]).float()
    alpha, expected = 3.0, 0.0
    for k, answer in enumerate(ANSWERS.tolist()):
        for i in range(4):
            claims = [OVERLAPPING[j, i] > 0.5 for j in range(4) if ANSWERS[j] == answer]
            factor = alpha if sum(claims) >= 2 else 1.0
            p = OVERLAPPING[k, i].item()
            expected -= factor * math.log(p if truth[k, i] else 1 - p) / 4
    loss = target_refinement_loss_sum(OVERLAPPING.logit(), truth, ANSWERS, torch.ones(4, 4), alpha)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("answers", "alpha", "factor"),
    [([0, 0, 0, 0], 2.0, 2.0), ([0, 0, 0, 0], 1.0, 1.0), ([0, 1, 2, 3], 2.0, 1.0)],
    ids=["contested", "alpha 1", "other answers don't contest"],
)
def test_alpha_counts_contested_pixels_again(
    answers: list[int], alpha: float, factor: float
) -> None:
    logits, valid = torch.full((4, 5), 0.1), torch.ones(4, 5)
    loss = target_refinement_loss_sum(logits, torch.ones(4, 5), torch.tensor(answers), valid, alpha)
    assert loss.item() == pytest.approx(factor * 4 * math.log1p(math.exp(-0.1)), rel=1e-6)


def test_a_logit_of_exactly_0_claims_nothing() -> None:
    weights = refinement_weights(torch.zeros(4, 5), torch.zeros(4, dtype=torch.long), alpha=2)
    assert bool((weights == 1).all())


def test_dice_against_hand_computed_numbers() -> None:
    truth = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    valid = torch.ones(1, 4)
    # p = 1/2: overlap 2 x 1 / 1000, total (2 + 2) / 1000.
    half = dice_loss_sum(torch.zeros(1, 4), truth, valid)
    assert half.item() == pytest.approx(1 - 0.002001 / 0.004001, rel=1e-5)
    sure = torch.tensor([[50.0, 50.0, -50.0, -50.0]])
    assert dice_loss_sum(sure, truth, valid).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss_sum(-sure, truth, valid).item() == pytest.approx(1, abs=1e-3)
    nothing = dice_loss_sum(torch.full((1, 4), -90.0), torch.zeros(1, 4), valid)
    assert nothing.item() == pytest.approx(0, abs=1e-6)


def test_padding_counts_in_no_mask_loss() -> None:
    torch.manual_seed(0)
    logits, truth = torch.randn(3, 8), (torch.rand(3, 8) > 0.5).float()
    valid = torch.ones(3, 8)
    valid[:, 5:] = 0
    answers = torch.zeros(3, dtype=torch.long)
    changed = logits.clone()
    changed[:, 5:] = 30.0
    everywhere = torch.ones(3, 5)
    for padded in (logits, changed):
        loss = target_refinement_loss_sum(padded, truth, answers, valid, 2.0)
        shown = target_refinement_loss_sum(logits[:, :5], truth[:, :5], answers, everywhere, 2.0)
        assert loss.item() == pytest.approx(shown.item(), rel=1e-6)
        dice = dice_loss_sum(padded, truth, valid)
        shown_dice = dice_loss_sum(logits[:, :5], truth[:, :5], everywhere)
        assert dice.item() == pytest.approx(shown_dice.item(), rel=1e-6)


def test_a_target_with_an_empty_mask_or_no_visible_pixel_gives_finite_losses() -> None:
    logits = torch.zeros(2, 4, requires_grad=True)
    valid = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    answers = torch.tensor([0, 1])
    loss = target_refinement_loss_sum(logits, torch.zeros(2, 4), answers, valid, 2.0)
    loss = loss + dice_loss_sum(logits, torch.zeros(2, 4), valid)
    loss.backward()
    assert math.isfinite(loss.item()) and bool(logits.grad.isfinite().all())
    assert logits.grad[1].abs().sum() == 0


def test_no_targets_give_no_loss() -> None:
    empty, none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    assert refinement_weights(empty, none, 2.0).shape == (0, 4)
    assert target_refinement_loss_sum(empty, empty, none, empty, 2.0) == 0
    assert dice_loss_sum(empty, empty, empty) == 0
