"""A model whose encoder tells what it found: built, saved, loaded and asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from conftest import square_image, square_sample, tiny_evidence_parts, tiny_texts
from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.io import save_model
from pixellm.data.collate import Collator
from pixellm.engine import Engine, load
from pixellm.engine.answers import AnswerDecoder, PendingAnswer
from pixellm.engine.batch import GeneratedAnswer
from pixellm.engine.images import PreparedImage
from pixellm.engine.row import Prompt
from pixellm.model.evidence import BOX_CHANNELS
from pixellm.types import Request


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


def test_a_group_has_a_mask_of_each_thing_that_it_stands_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = tiny_evidence_parts()
    parts["settings"] |= {"masks_per_thing": True, "decoder_region_attention": 2}
    model, processor = build_model(parts, tiny_texts())
    drawn = model.model.pixel_decoder
    drawn.choice_bias.data.fill_(30)  # all that is found is meant, and all of its window
    drawn.draw.bias.data.fill_(30)
    drawn.lone[-1].bias.data.fill_(-30)
    save_model(tmp_path / "model", model.eval(), processor)
    engine = load(tmp_path / "model", device="cpu", dtype="float32")
    (image,) = engine.images.prepare([square_image((2, 3))])
    assert isinstance(image, PreparedImage)
    found = int((image.encoded.features[-1][..., BOX_CHANNELS - 1] > 0).sum())
    assert found > 1
    decoder = AnswerDecoder(engine.model, engine.processor, frozenset())
    states = torch.randn(4, engine.model.config.text_config.hidden_size)
    several = decoder.group_masks([(states, image), (states, image)])
    assert [len(group) for group in several] == [found, found]
    (joined,) = decoder.masks([(states, image)])
    assert np.array_equal(np.logical_or.reduce([one.mask for one in several[0]]), joined.mask)

    answer = decoder.prediction(pending_answer(engine, image), several)
    assert [one.label for one in answer.segments] == ["red"] * found  # none is shown twice
    assert answer.info["num_filtered"] == 0
    unlike = [several[0][:1], several[1][:2]]
    answer = decoder.prediction(pending_answer(engine, image), unlike)
    assert [one.label for one in answer.segments] == ["red", "on"]
    assert answer.segments[1].score == several[1][1].score


def pending_answer(engine: Engine, image: PreparedImage) -> PendingAnswer:
    """An answer of two words, each with a group behind it."""
    group = list(engine.model.config.codebook_token_ids)
    words = [engine.processor.tokenizer.encode(w, add_special_tokens=False) for w in ("red", "on")]
    written = GeneratedAnswer(ids=[*words[0], *group, *words[1], *group])
    request = Request(square_image((2, 3)), "What?")
    return PendingAnswer(request, image, Prompt((1,), 1), written)


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
