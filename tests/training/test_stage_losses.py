from __future__ import annotations

from typing import Any

import pytest
import torch

from conftest import square_sample, tiny_parts, tiny_texts
from pixellm.checkpoint.build import build_model
from pixellm.data.collate import Collator
from pixellm.training.auxiliary import TargetClassHead
from pixellm.training.config import LossWeights
from pixellm.training.objective import Normalisers, Objective


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
