from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import square_sample, tiny_parts, tiny_texts
from pixellm.checkpoint.build import build_model
from pixellm.data.collate import Collator
from pixellm.training.auxiliary import (
    FeatureClassHead,
    PatchBoxHead,
    empty_mask_loss_sum,
    find_absent,
)
from pixellm.training.config import LossWeights, OptimizerConfig, Stage
from pixellm.training.objective import LOSS_NAMES, Normalisers, Objective
from pixellm.training.optim import group_parameters
from pixellm.types import Sample, Turn


@pytest.fixture
def objective_and_batch() -> tuple[Objective, dict[str, Any]]:
    torch.manual_seed(0)
    model, processor = build_model(tiny_parts(), texts=tiny_texts())
    batch = Collator(processor, 16, ("red square", "blue square"))([[square_sample()]])
    sizes = model.config
    channels = sizes.vision_channels[str(sizes.vision_depths[0])]
    heads = {
        "patch_box_head": PatchBoxHead(channels),
        "feature_class_head": FeatureClassHead(sizes.num_scales, sizes.decoder_size, 3),
    }
    del batch["sample_ids"]
    return Objective(model, heads), batch


COUNTS = Normalisers(label_tokens=10, targets=2, pixels=256, shown=100)


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


def test_the_encoder_and_the_neck_learn_without_the_language_model(
    objective_and_batch: tuple[Objective, dict[str, Any]],
) -> None:
    objective, batch = objective_and_batch
    calls: list[int] = []
    model = objective.model.model
    model.language_model.register_forward_hook(lambda *_: calls.append(1))
    weights = LossWeights(text=0, mask=0, dice=0, patch_box=1, feature_class=1)
    losses = objective(batch, weights, COUNTS)
    losses["total"].backward()
    assert not calls
    assert list(losses) == ["patch_box", "feature_class", "total"]
    moved = {
        name.split(".")[0]
        for name, value in model.named_parameters()
        if value.grad is not None and value.grad.any()
    }
    assert moved == {"vision_tower", "feature_projector"}
    stage = Stage(name="encoder", steps=1, batch_size=1, loss=weights)
    groups = group_parameters(objective.parameters_by_name(), stage, OptimizerConfig())
    trained = {name for group in groups if group.optimizer for name in group.names}
    got = {n for n, v in objective.parameters_by_name().items() if v.grad is not None}
    assert got <= trained
    assert not any("language_model" in name or "codebook" in name for name in trained)


def test_a_loss_whose_head_is_missing_is_refused_by_name(
    objective_and_batch: tuple[Objective, dict[str, Any]],
) -> None:
    objective, batch = objective_and_batch
    weights = LossWeights(text=0, mask=0, dice=0, patch_class=1)
    with pytest.raises(ValueError, match="patch_class loss needs data"):
        objective(batch, weights, COUNTS)


def test_targets_are_looked_for_in_the_next_image_unless_it_shows_their_class() -> None:
    patch_classes = torch.tensor([[[0, 1], [2, 2]], [[0, 1], [0, -100]], [[3, 0], [0, 0]]])
    rows = torch.tensor([0, 0, 1, 2, 2, 2])
    classes = torch.tensor([1, 2, 1, 3, 1, -100])
    indices, others = find_absent(rows, classes, patch_classes)
    assert indices.tolist() == [1, 2, 3]  # image 1 shows a 1, as image 0 does
    assert others.tolist() == [1, 2, 0]
    alone, _ = find_absent(torch.tensor([0, 0]), torch.tensor([2, 3]), torch.tensor([[[0, 2]]]))
    assert alone.tolist() == []  # not even what the map is too coarse for


def test_the_loss_of_an_empty_mask_is_the_mean_over_known_pixels() -> None:
    logits = torch.tensor([[[0.0, 2.0], [-1.0, 5.0]], [[1.0, 1.0], [1.0, 1.0]]])
    valid = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    by_hand = sum(math.log1p(math.exp(x)) for x in (0.0, 2.0, -1.0)) / 3
    assert empty_mask_loss_sum(logits, valid).item() == pytest.approx(by_hand, abs=1e-6)


def alone(name: str) -> Sample:
    """The image of both squares, said to show one of them only."""
    sample = square_sample()
    (one,) = (target for target in sample.turns[0].targets if target.name == name)
    return replace(sample, turns=(Turn("Which?", "One {seg}.", (one,)),), objects=(one,), id=name)


def test_absence_empties_masks_of_what_is_missing_and_spares_what_is_there() -> None:
    torch.manual_seed(0)
    names = ("red square", "blue square")
    model, processor = build_model(tiny_parts(), texts=tiny_texts())
    plain = replace(alone(names[1]), image=np.full((32, 24, 3), 90, np.uint8))
    batch: dict[str, Any] = dict(Collator(processor, 16, names)([[alone(names[0])], [plain]]))
    del batch["sample_ids"]
    objective = Objective(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    weights = LossWeights(text=0, mask=2, dice=1, absent=2)
    seen = []
    for _ in range(60):
        optimizer.zero_grad()
        losses = objective(batch, weights, COUNTS)
        losses["total"].backward()
        optimizer.step()
        seen.append((losses["absent"].item(), losses["dice"].item()))
    assert seen[-1][0] < seen[0][0] / 3
    assert seen[-1][1] < seen[0][1] / 2


def test_losses_come_in_one_order_and_those_without_targets_are_zero(
    objective_and_batch: tuple[Objective, dict[str, Any]],
) -> None:
    objective, batch = objective_and_batch
    weights = LossWeights(
        text=1, mask=2, dice=1, patch_box=1, feature_class=1, target_class=0.5, absent=4
    )
    full = objective(batch, weights, COUNTS)
    assert full["absent"] == 0  # one image lacks nothing
    sample = square_sample()
    words = replace(sample, turns=(Turn("Why?", "No."),))
    processor = build_model(tiny_parts(), texts=tiny_texts())[1]
    silent = Collator(processor, 16, ("red square", "blue square"))([[words]])
    del silent["sample_ids"]
    empty = objective(silent, weights, COUNTS)
    assert list(empty) == list(full) == [*(n for n in LOSS_NAMES if getattr(weights, n)), "total"]
    assert empty["target_class"] == empty["absent"] == 0


def test_absence_needs_another_image() -> None:
    with pytest.raises(ValueError, match="batch_size of at least 2"):
        Stage(name="joint", steps=1, batch_size=1, loss=LossWeights(absent=1))
