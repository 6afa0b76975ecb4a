from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_answers import build_family, follow, prompt_batch, recompute_states

from conftest import square_image, square_sample
from pixellm.checkpoint.io import load_model_and_processor, save_model
from pixellm.data.collate import Collator
from pixellm.types import Sample

GROUP = -1
ANSWERS = [[20, GROUP, 21], [GROUP, GROUP], [24, 25]]
FAMILIES = [
    ("clip", "gpt_neox", {"tied": True, "token_fusion": "mean"}),
    ("siglip", "qwen2", {"scale_weights": "fixed", "llm_projector_size": 24}),
    ("dinov2", "llama", {"shared_projector": True, "decoder_projector_sizes": [24, 20]}),
    ("mobilenet", "qwen2", {"tied": True, "neck_top_down": True, "decoder_similarity": True}),
    ("convnext", "gpt_neox", {"token_fusion": "fixed", "fusion_constant": 0.5}),
]
IDS = [f"{vision}-{text}" for vision, text, _ in FAMILIES]


def training_batch(processor: Any) -> dict[str, Any]:
    other = square_sample((4, 10))
    without = Sample(square_image((1, 1)), (32, 24), other.turns[1:], "without")
    batch = Collator(processor, mask_size=16)([[square_sample()], [other, other], [without]])
    del batch["sample_ids"]
    return batch


@pytest.mark.parametrize(("vision", "text", "settings"), FAMILIES, ids=IDS)
def test_every_family_trains_generates_and_is_saved_to_the_bit(
    vision: str, text: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model, processor = build_family(vision, text, **settings)
    batch = training_batch(processor)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
        losses.append([output.loss.item(), output.text_loss.item()])
    assert losses[2][0] < losses[0][0] and losses[2][1] < losses[0][1]
    table = model.get_input_embeddings().weight
    assert (model.lm_head.weight is table) == settings.get("tied", False)

    model.eval()
    prompts = prompt_batch(processor)
    answers = follow(model, prompts, ANSWERS)
    for row, answer in enumerate(answers):
        if answer.group_states:
            states = torch.stack(answer.group_states)
            whole = recompute_states(model, prompts, row, answer.ids)
            torch.testing.assert_close(states, whole, atol=1e-4, rtol=1e-4)

    save_model(tmp_path / "model", model, processor)
    again, _ = load_model_and_processor(tmp_path / "model")
    saved, loaded = model.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(value, loaded[name]) for name, value in saved.items())
    with torch.inference_mode():
        first, second = model(**batch), again(**batch)
    # Equal weights that lie elsewhere in memory are multiplied by other kernels here and there.
    torch.testing.assert_close(first.mask_logits, second.mask_logits, atol=2e-6, rtol=1e-5)
    assert first.loss.item() == pytest.approx(second.loss.item(), rel=1e-6)


def test_losses_of_a_batch_are_sums_over_the_counts_given() -> None:
    model, processor = build_family("clip", "llama")
    batch = training_batch(processor)
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    targets = len(batch["target_sizes"])
    with torch.inference_mode():
        mean = model(**batch)
        half = model(**batch, num_label_tokens=2 * tokens, num_targets=4 * targets)
    assert half.text_loss.item() == pytest.approx(mean.text_loss.item() / 2)
    assert half.mask_loss.item() == pytest.approx(mean.mask_loss.item() / 4)
    assert half.dice_loss.item() == pytest.approx(mean.dice_loss.item() / 4)
    weighted = mean.text_loss + 2.0 * mean.mask_loss + 0.5 * mean.dice_loss
    assert mean.loss.item() == pytest.approx(weighted.item())


def test_a_batch_without_targets_has_no_mask_loss() -> None:
    model, processor = build_family("clip", "llama")
    sample = square_sample()
    plain = Sample(sample.image, sample.size, sample.turns[1:], "plain")
    batch = Collator(processor, mask_size=16)([[plain]])
    del batch["sample_ids"]
    output = model(**batch)
    assert output.mask_loss == 0 and output.dice_loss == 0 and output.mask_logits is None
    output.loss.backward()
    assert output.text_loss > 0


def test_inputs_that_do_not_fit_together_are_refused() -> None:
    model, processor = build_family("clip", "llama")
    batch = training_batch(processor)
    for sizes in (batch["target_sizes"][:-1], batch["target_sizes"][:0]):
        with pytest.raises(ValueError, match="each group needs its mask"):
            model(**{**batch, "target_sizes": sizes})
    for masks in (batch["target_masks"][:-1], batch["target_masks"].repeat(2)):
        with pytest.raises(ValueError, match=r"The masks of the batch take \d+ bytes"):
            model(**{**batch, "target_masks": masks})
    with pytest.raises(ValueError, match="image placeholders"):
        model(**{**batch, "pixel_values": batch["pixel_values"][:1], "pixel_mask": None})
    swapped = batch["input_ids"].clone()
    first = swapped[0] == model.config.image_token_id
    swapped[0, first.nonzero()[0]] = 20
    swapped[1, -1] = model.config.image_token_id
    with pytest.raises(ValueError, match="image placeholders"):
        model(**{**batch, "input_ids": swapped})
    with pytest.raises(TypeError, match="target_mask"):
        model(**batch, target_mask=None)
