"""Untrained PixelLM models from LLaVA in both layouts, and from plain parts."""

import json

import numpy as np
import pytest
import torch
from released_models import write_sentencepiece, write_tower
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from pixellm.checkpoint.convert_llava import init_from_llava
from pixellm.checkpoint.io import load_model_and_processor
from pixellm.checkpoint.sentencepiece_tokenizer import build_fast_tokenizer
from pixellm.engine import Engine


@pytest.fixture
def tower(tmp_path):
    return write_tower(tmp_path / "tower")


def text_config(vocab_size):
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=600,
    )


TWO_LAYERS = {"0.weight": (24, 16), "0.bias": (24,), "2.weight": (24, 24), "2.bias": (24,)}
ONE_LAYER = {"weight": (24, 16), "bias": (24,)}


def write_original_llava(directory, tower, projector=TWO_LAYERS):
    directory.mkdir()
    count = write_sentencepiece(directory / "tokenizer.model")
    torch.manual_seed(0)
    language_model = LlamaForCausalLM(text_config(count))
    state = {name: value.half() for name, value in language_model.state_dict().items()}
    for name, shape in projector.items():
        state[f"model.mm_projector.{name}"] = torch.randn(shape).half()
    torch.save(state, directory / "pytorch_model.bin")
    values = language_model.config.to_dict() | {
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": str(tower),
    }
    (directory / "config.json").write_text(json.dumps(values, default=str))
    return state


def write_transformers_llava(directory, tower):
    directory.mkdir()
    count = write_sentencepiece(directory / "tokenizer.model")
    tokenizer = build_fast_tokenizer(directory, ("<image>",))
    config = LlavaConfig(
        vision_config=CLIPVisionConfig.from_pretrained(tower),
        text_config=text_config(count + 1),
        image_token_index=count,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).half()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


def assert_answers(out):
    model, processor = load_model_and_processor(out)
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    engine = Engine(model, processor, max_new_tokens=3)
    assert engine.predict(image, "what is this?").size == (20, 30)
    return model


def test_an_original_llava_fills_the_language_model_and_its_projection(tmp_path, tower):
    state = write_original_llava(tmp_path / "llava", tower)
    model = assert_answers(init_from_llava(tmp_path / "llava", tmp_path / "out"))
    rows = state["model.embed_tokens.weight"].float()
    found = model.get_input_embeddings().weight
    assert torch.equal(found[: len(rows)], rows)
    assert torch.allclose(found[len(rows) :], rows.mean(0), atol=1e-3)
    query = model.model.language_model.layers[1].self_attn.q_proj.weight
    assert torch.equal(query, state["model.layers.1.self_attn.q_proj.weight"].float())
    projected = model.model.image_projector.projection[2].weight
    assert torch.equal(projected, state["model.mm_projector.2.weight"].float())


def test_the_single_projection_of_the_first_llavas_is_taken_over(tmp_path, tower):
    """Of LLaVA-Lightning-7B-v1-1 and llava-llama-2-13b-chat-lightning-preview."""
    state = write_original_llava(tmp_path / "llava", tower, ONE_LAYER)
    model = assert_answers(init_from_llava(tmp_path / "llava", tmp_path / "out"))
    assert model.config.llm_projector_size == 0
    projected = model.model.image_projector.projection.weight
    assert torch.equal(projected, state["model.mm_projector.weight"].float())


def test_a_llava_of_transformers_fills_the_same_parts(tmp_path, tower):
    llava = write_transformers_llava(tmp_path / "llava", tower)
    model = assert_answers(init_from_llava(tmp_path / "llava", tmp_path / "out"))
    tokens = load_model_and_processor(tmp_path / "out")[1].tokenizer.added_tokens_decoder
    (image,) = (token for token in tokens.values() if token.content == "<image>")
    assert image.lstrip and image.rstrip, "as its tokenizer reads it"
    wanted = llava.model.multi_modal_projector.linear_1.weight.float()
    assert torch.equal(model.model.image_projector.projection[0].weight, wanted)
    norm = model.model.vision_tower.encoder.post_layernorm.weight
    assert torch.isfinite(norm).all()


def test_another_model_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert' model, not a LLaVA"):
        init_from_llava(tmp_path, tmp_path / "out")
