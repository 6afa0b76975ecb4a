from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from conftest import square_sample, tiny_parts, tiny_texts
from pixellm.checkpoint.build import build_model
from pixellm.data.collate import Collator
from pixellm.training.auxiliary import TargetClassHead, empty_mask_loss_sum, find_absent
from pixellm.training.config import LossWeights
from pixellm.training.objective import Normalisers, Objective
from pixellm.types import Turn


@pytest.fixture
def objective_and_batch() -> tuple[Objective, dict[str, Any]]:
    torch.manual_seed(0)
    model, processor = build_model(tiny_parts(), texts=tiny_texts())
    batch = Collator(processor, 16, ("red square", "blue square"))([[square_sample()]])
    head = TargetClassHead(model.config.num_scales, model.config.decoder_size, 3)
    del batch["sample_ids"]
    return Objective(model, None, head), batch


COUNTS = Normalisers(label_tokens=10, targets=2, pixels=256)


def test_a_stage_without_mask_losses_decodes_no_masks_but_reads_the_targets(
    objective_and_batch: tuple[Objective, dict[str, Any]],
) -> None:
    objective, batch = objective_and_batch
    calls: list[int] = []
    decoder = objective.model.model.pixel_decoder
    decoder.register_forward_hook(lambda *_: calls.append(1))
    words = LossWeights(text=1, mask=0, dice=0, target_class=1)
    losses = objective(batch, words, COUNTS)
    assert not calls
    assert losses["target_class"] > 0
    losses["total"].backward()
    codebook = objective.model.model.codebook.text_projection[0].weight
    assert codebook.grad is not None and codebook.grad.abs().sum() > 0
    assert decoder.mask_token.grad is None
    objective(batch, LossWeights(text=1, mask=1, dice=1), COUNTS)
    assert calls


def test_a_stage_of_words_alone_touches_nothing_of_targets(
    objective_and_batch: tuple[Objective, dict[str, Any]],
) -> None:
    objective, batch = objective_and_batch
    losses = objective(batch, LossWeights(text=1, mask=0, dice=0), COUNTS)
    losses["total"].backward()
    assert "target_class" not in losses
    assert objective.model.model.codebook.text_projection[0].weight.grad is None


def test_targets_are_looked_for_in_the_next_picture_unless_it_shows_their_class() -> None:
    patch_classes = torch.tensor([[[0, 1], [2, 2]], [[0, 1], [0, -100]], [[3, 0], [0, 0]]])
    rows = torch.tensor([0, 0, 1, 2, 2, 2])
    classes = torch.tensor([1, 2, 1, 3, 1, -100])
    places, others = find_absent(rows, classes, patch_classes)
    assert places.tolist() == [1, 2, 3]  # picture 1 shows a 1, as picture 0 does
    assert others.tolist() == [1, 2, 0]


def test_a_batch_of_one_picture_lacks_nothing() -> None:
    places, _ = find_absent(torch.tensor([0]), torch.tensor([2]), torch.tensor([[[0, 2]]]))
    assert places.tolist() == []


def test_the_loss_of_an_empty_mask_is_the_mean_over_known_pixels() -> None:
    logits = torch.tensor([[[0.0, 2.0], [-1.0, 5.0]], [[1.0, 1.0], [1.0, 1.0]]])
    valid = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    by_hand = sum(math.log1p(math.exp(x)) for x in (0.0, 2.0, -1.0)) / 3
    assert empty_mask_loss_sum(logits, valid).item() == pytest.approx(by_hand, abs=1e-6)


def test_absence_teaches_masks_to_stay_empty() -> None:
    torch.manual_seed(0)
    model, processor = build_model(tiny_parts(), texts=tiny_texts())
    names = ("red square", "blue square")
    sample = square_sample()
    red, blue = sample.turns[0].targets
    alone = [
        replace(sample, turns=(Turn("Which?", "One {seg}.", (one,)),), objects=(one,), id=one.name)
        for one in (red, blue)
    ]
    batch: dict[str, Any] = dict(Collator(processor, 16, names)([[alone[0]], [alone[1]]]))
    del batch["sample_ids"]
    objective = Objective(model, None)
    optimizer = torch.optim.AdamW(model.model.pixel_decoder.parameters(), lr=0.01)
    weights = LossWeights(text=0, mask=0, dice=0, absent=1)
    seen = []
    for _ in range(30):
        optimizer.zero_grad()
        losses = objective(batch, weights, COUNTS)
        losses["total"].backward()
        optimizer.step()
        seen.append(losses["absent"].item())
    assert seen[0] > 0.3 and seen[-1] < seen[0] / 3
