"""A model whose encoder tells what it found: built, saved, loaded and asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from conftest import square_image, square_sample, tiny_evidence_parts, tiny_texts
from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.io import save_model
from pixellm.data.collate import Collator
from pixellm.engine import load


def test_it_answers_after_saving_and_loading_and_says_how_familiar_an_image_is(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model, processor = build_model(tiny_evidence_parts(), tiny_texts())
    save_model(tmp_path / "model", model.eval(), processor)
    engine = load(tmp_path / "model", device="cpu", dtype="float32", max_new_tokens=8)
    answer = engine.predict(square_image((2, 3)), "Which squares are there?")
    assert 0 <= answer.info["familiarity"] <= 1
    given = engine.model.model.encode_images(torch.zeros(1, 3, 64, 64))[0]
    assert given.tokens.shape[1] == engine.model.config.num_image_tokens == 2 * 2 + 4


def test_its_training_batch_holds_what_is_annotated_and_the_loss_goes_down() -> None:
    torch.manual_seed(0)
    model, processor = build_model(tiny_evidence_parts(), tiny_texts())
    collator = Collator(processor, mask_size=16, class_map_size=32, with_objects=True)
    batch = collator([[square_sample()]])
    assert batch["object_shapes"].shape == (2, 32, 32)
    assert np.array_equal(batch["object_shapes"], batch["target_shapes"])
    inputs = {
        name: value
        for name, value in batch.items()
        if name not in ("sample_ids", "object_shapes", "object_rows", "target_shapes")
    }
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
