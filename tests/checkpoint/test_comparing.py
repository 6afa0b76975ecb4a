"""The layer that compares names with what an encoder found, before anything is learnt."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from conftest import tiny_parts, tiny_texts
from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.comparing import insert_comparing_layer, spread_codes
from pixellm.checkpoint.io import load_model_and_processor
from pixellm.checkpoint.sources import EMBEDDED_DIR
from pixellm.model.config import PixelLMConfig
from pixellm.model.evidence import Evidence, pack
from pixellm.scenes.photo_knowledge import knowledge_of_categories
from pixellm.training.plan import model_shape_from_parts


def parts_of_nano(text: dict[str, Any]) -> dict[str, Any]:
    """A recipe's parts around nano's encoder, with random weights there."""
    nano = PixelLMConfig.from_pretrained(EMBEDDED_DIR / "nano")
    settings = {"image_size": 640, "num_scales": 2, "tokens_per_scale": 2, "vision_depths": [5, 1]}
    evidence = {"evidence_depths": [8, 9, 10], "evidence_tokens": 40, "llm_grid": [4, 4]}
    decoder = {"decoder_region_cells": 28, "decoder_region_size": 48, "masks_per_thing": True}
    form = {"llm_projector_size": 0, "llm_positions": True, "llm_normalise": True}
    return {
        "vision": {"config": nano.vision_config.to_dict()},
        "text": text,
        "tokenizer": {"source": "nano-scenes"},
        "template": "compact",
        "comparing_layer": True,
        "settings": {**settings, **evidence, **decoder, **form, "decoder_size": 48},
    }


@pytest.fixture(scope="module")
def comparing() -> tuple[Any, Any]:
    """The language model of nano-scenes behind a comparing layer, as nano's recipe begins."""
    torch.manual_seed(0)
    parts = parts_of_nano({"source": "nano-scenes"})
    shape, _ = model_shape_from_parts(parts)
    model, processor = build_model(parts)
    assert shape is not None
    assert shape.text_config.num_hidden_layers == model.config.text_config.num_hidden_layers
    return model, processor


def _one_of_each(model: Any) -> Tensor:
    """Tokens (c, D) of one finding of each class, half as likely of the class as can be."""
    count, size = model.config.vision_config.num_classes, model.config.vision_config.state_size
    boxes = torch.tensor([0.2, 0.2, 0.8, 0.8]).expand(1, count, 4)
    found = torch.ones(1, count, dtype=torch.bool)
    evidence = Evidence(0.5 * torch.eye(count)[None], boxes, torch.zeros(1, count, size), found)
    channels = model.model.image_projector.projection.in_features
    tokens = model.model.image_projector(torch.zeros(1, channels, 4, 4), pack(evidence))
    return tokens[0, 16:]


@torch.inference_mode()
def test_a_name_looks_at_the_findings_of_its_class(comparing: tuple[Any, Any]) -> None:
    model, processor = comparing
    layer = model.model.language_model.layers[0]
    names = tuple(model.config.vision_config.class_names)
    knowledge, keys = knowledge_of_categories(names)
    ends = [
        processor.tokenizer(f" {knowledge.concepts[keys[name]].name}")["input_ids"][-1]
        for name in names
    ]
    asked = model.get_input_embeddings()(torch.tensor(ends))
    states = torch.cat([_one_of_each(model), asked])[None]
    normed = layer.input_layernorm(states)
    attention = layer.self_attn
    query, key = (
        part(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for part in (attention.q_proj, attention.k_proj)
    )
    places = torch.arange(states.shape[1])[None]
    angles = model.model.language_model.rotary_emb(states, places)
    query, key = apply_rotary_pos_emb(query, key, *angles)
    logits = (query[0, :, len(names) :] @ key[0, :, : len(names)].mT).mean(0)
    own = logits.argmax(1) == torch.arange(len(names))
    # "hot dog" and "dog" can't be told apart by the last token.
    distinct = torch.tensor([ends.count(end) == 1 for end in ends])
    assert distinct.float().mean() > 0.8
    assert own[distinct].float().mean() > 0.95


@torch.inference_mode()
def test_the_layers_behind_keep_their_weights(comparing: tuple[Any, Any]) -> None:
    model, _ = comparing
    scenes, _ = load_model_and_processor("nano-scenes")
    layers = model.model.language_model.layers
    assert len(layers) == 1 + len(scenes.model.language_model.layers)
    assert [one.self_attn.layer_idx for one in layers] == list(range(len(layers)))
    for own, given in zip(layers[1:], scenes.model.language_model.layers, strict=True):
        values = given.state_dict()
        assert all(torch.equal(one, values[name]) for name, one in own.state_dict().items())


def test_biases_begin_at_zero() -> None:
    values = PixelLMConfig.from_pretrained(EMBEDDED_DIR / "nano-scenes").text_config.to_dict()
    text = {**values, "num_hidden_layers": 1, "attention_bias": True, "mlp_bias": True}
    model, _ = build_model(parts_of_nano({"config": text}))
    layer = model.model.language_model.layers[0]
    biases = [one for name, one in layer.named_parameters() if name.endswith("bias")]
    assert len(biases) == 7
    assert not any(one.any() for one in biases)


def test_codes_lie_apart() -> None:
    codes = spread_codes(80, 2, 20, torch.Generator().manual_seed(0))
    likeness = codes @ codes.mT - torch.eye(80)
    assert likeness.max() < 0.25


def test_a_model_without_findings_has_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="tells classes by name"):
        build_model({**tiny_parts(), "comparing_layer": True}, tiny_texts())


def test_a_narrow_language_model_is_refused() -> None:
    model, processor = load_model_and_processor("nano")
    model.config.text_config.hidden_size = 128
    with pytest.raises(ValueError, match="too narrow"):
        insert_comparing_layer(model, processor.tokenizer)
