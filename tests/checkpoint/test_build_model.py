from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from conftest import tiny_parts, tiny_texts
from pixellm.checkpoint.build import build_model, train_tokenizer
from pixellm.processing.templates import codebook_token_names


def test_parts_fit_together() -> None:
    model, processor = build_model(tiny_parts(), tiny_texts())
    config, tokenizer = model.config, processor.tokenizer
    assert config.codebook_token_ids == tokenizer.convert_tokens_to_ids(codebook_token_names(4))
    assert config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    assert config.text_config.vocab_size == len(tokenizer) <= 340
    assert config.eos_token_id == tokenizer.eos_token_id
    assert config.vision_config.image_size == processor.image_processor.image_size == 32
    assert processor.codec.num_image_tokens == config.num_image_tokens


@pytest.mark.parametrize(
    "text", ["There are 12 red apples.", "naïve 12½ ²³ – 東京 🍎", "  two\n\nlines\t", "a2b 007"]
)
def test_a_new_tokenizer_loses_no_character(text: str) -> None:
    tokenizer = train_tokenizer(tiny_texts(), 320, ["<image>"])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert decoded.removeprefix(" ") == text.removeprefix(" ")
    assert len({i for i in ids if tokenizer.decode([i]) in "0123456789"}) <= 10


def test_pretrained_parts_keep_their_weights(tmp_path: Path) -> None:
    parts = tiny_parts()
    vision_values = {k: v for k, v in parts["vision"]["config"].items() if k != "model_type"}
    text_values = {k: v for k, v in parts["text"]["config"].items() if k != "model_type"}
    tokenizer = train_tokenizer(tiny_texts(), 310, ["<note>"])
    torch.manual_seed(3)
    vision = CLIPVisionModel(CLIPVisionConfig(**{**vision_values, "image_size": 16}))
    text = LlamaForCausalLM(LlamaConfig(**text_values, vocab_size=len(tokenizer)))
    for part, name in ((vision, "vision"), (text, "text"), (tokenizer, "text")):
        part.save_pretrained(tmp_path / name)
    section: dict[str, Any] = {
        **parts,
        "vision": {"source": str(tmp_path / "vision")},
        "text": {"source": str(tmp_path / "text")},
        "tokenizer": {"source": str(tmp_path / "text")},
    }
    model, processor = build_model(section)
    before, after = text.state_dict(), model.state_dict()
    old = len(AutoTokenizer.from_pretrained(tmp_path / "text"))
    assert len(processor.tokenizer) == old + 7  # <user>, <assistant>, <image>, four of the codebook
    table = after["model.language_model.embed_tokens.weight"]
    assert len(table) == len(processor.tokenizer)
    assert torch.equal(table[:old], before["model.embed_tokens.weight"])
    # New rows start near the mean of the old ones, not at random.
    mean = before["model.embed_tokens.weight"].mean(0)
    assert (table[old:] - mean).abs().max() < 0.02
    assert torch.equal(after["lm_head.weight"][:old], before["lm_head.weight"])
    layer = "layers.1.self_attn.q_proj.weight"
    assert torch.equal(after[f"model.language_model.{layer}"], before[f"model.{layer}"])
    encoder = model.model.vision_tower.encoder.state_dict()
    positions = "embeddings.position_embedding.weight"
    assert encoder[positions].shape == (17, 16)
    for name, value in vision.state_dict().items():
        assert name == positions or torch.equal(encoder[name], value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"decoder_sise": 16}}, "model.settings has no decoder_sise"),
        ({"settings": {"image_token_id": 5}}, "model.settings has no image_token_id"),
        ({"settings": {"decoder_upsampling": [1]}}, "decoder_upsampling holds 1"),
        ({"settings": {"llm_grid": [None]}}, "llm_grid is .None.; it must be"),
        ({"settings": {"decoder_heads": 0}}, "decoder_heads is 0; it must be at least 1"),
        ({"settings": {"decoder_size": "8"}}, "No model can be built .*settings under model"),
        (
            {"text": {"config": {"model_type": "llama", "num_key_value_heads": math.inf}}},
            "num_key_value_heads",
        ),
        ({"template": "chatty"}, "model.template"),
        ({"tokenizer": {"vocab_sise": 400}}, "model.tokenizer.vocab_sise"),
        ({"text": {"config": {"hidden_size": 8}}}, "model.text.config needs a model_type"),
        ({"vision": {"config": {}}}, "model.vision needs a source or a config"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(tiny_parts(**changes), tiny_texts())
