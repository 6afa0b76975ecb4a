from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TINY_QUESTION, square_image, tiny_parts
from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.io import load_model_and_processor, save_model
from pixellm.engine import Engine

THREE_SCALES = {
    "num_scales": 3,
    "tokens_per_scale": 3,
    "vision_depths": [-1, -2, -3],
    "decoder_upsampling": [1, 2, 2],
}


def build_around(source: Path, **settings: Any) -> Any:
    return build_model({"initial_weights": str(source), "settings": settings})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tokens_per_scale": 1, "token_fusion": "first"},
        {"num_scales": 1, "vision_depths": [-1], "decoder_upsampling": [2]},
        THREE_SCALES,
    ],
    ids=["same shape", "fewer tokens", "one scale", "three scales"],
)
def test_encoder_and_language_model_move_and_everything_else_is_fresh(
    tiny_model_dir: Path, settings: dict[str, Any]
) -> None:
    donor, _ = load_model_and_processor(tiny_model_dir)
    model, processor = build_around(tiny_model_dir, **settings)
    given, own = donor.state_dict(), model.state_dict()
    for name, value in given.items():
        kept = name.startswith(("model.vision_tower", "model.image_projector"))
        if kept or "language_model.layers" in name:
            assert torch.equal(own[name], value), name
    assert model.config.group_size == len(model.config.codebook_token_ids)
    assert not torch.equal(
        own["model.codebook.text_projection.0.weight"],
        given["model.codebook.text_projection.0.weight"],
    )
    assert len(own["lm_head.weight"]) >= len(processor.tokenizer)


def test_words_keep_their_rows_and_codebook_tokens_get_new_ones(tiny_model_dir: Path) -> None:
    donor, old = load_model_and_processor(tiny_model_dir)
    model, new = build_around(tiny_model_dir, **THREE_SCALES)
    before, after = donor.lm_head.weight, model.lm_head.weight
    codebook = set(donor.config.codebook_token_ids)
    words = [i for i in range(len(before)) if i not in codebook]
    assert torch.equal(after[words], before[words])
    assert not any(torch.equal(after[i], before[i]) for i in codebook)
    text = "There is a red square on the left."
    assert new.tokenizer(text)["input_ids"] == old.tokenizer(text)["input_ids"]
    assert model.config.codebook_token_ids[:4] == donor.config.codebook_token_ids
    assert new.codec.codebook_ids == tuple(model.config.codebook_token_ids)


def test_the_new_model_answers_trains_and_is_saved(tiny_model_dir: Path, tmp_path: Path) -> None:
    donor, donor_processor = load_model_and_processor(tiny_model_dir)
    donor_processor.reasoning_suffix = "Answer with masks."
    save_model(tmp_path / "donor", donor, donor_processor)
    model, processor = build_around(tmp_path / "donor", **THREE_SCALES)
    assert processor.reasoning_suffix == "Answer with masks."
    save_model(tmp_path / "model", model, processor)
    loaded, loaded_processor = load_model_and_processor(tmp_path / "model")
    first = Engine(model, processor, max_new_tokens=30)
    second = Engine(loaded, loaded_processor, max_new_tokens=30)
    image = square_image((2, 3))
    assert first.predict(image, TINY_QUESTION).text == second.predict(image, TINY_QUESTION).text


def test_two_seeds_give_two_decoders_around_one_encoder(tiny_model_dir: Path) -> None:
    built = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            built.append(build_around(tiny_model_dir)[0].state_dict())
    assert torch.equal(built[0]["lm_head.weight"][20:], built[1]["lm_head.weight"][20:])
    name = "model.pixel_decoder.mask_mlp.0.weight"
    assert not torch.equal(built[0][name], built[1][name])


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"settings": {"llm_projector_size": 8}}, "image_projector"),
        ({"settings": {"tokens": 3}}, "no tokens"),
        ({"settings": {"num_scales": 3}}, "vision_depths holds 2 entries for 3"),
        ({"template": "compact"}, "brings its own template"),
        ({"vision": tiny_parts()["vision"]}, "brings its own vision"),
    ],
)
def test_what_does_not_fit_the_pretrained_parts_is_refused(
    tiny_model_dir: Path, section: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        build_model({"initial_weights": str(tiny_model_dir), **section})
