"""8 and 4 bits: the masks stay, and so does the precision of all that they are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pixellm.checkpoint.io import load_model_and_processor
from pixellm.checkpoint.quantize import FULL_PRECISION, quantization_config, quantize_model
from pixellm.engine import Engine
from pixellm.image_files import load_image
from pixellm.model.codebook import find_groups
from pixellm.processing.prompts import dialogue_messages
from pixellm.types import SEG_MARK

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
NEEDED_IOU = {"int8": 0.95, "int4": 0.9}


def load_nano(bits: str | None) -> Engine:
    config = quantization_config(bits, CPU, torch.float32) if bits else None
    return Engine(*load_model_and_processor("nano-scenes", quantization_config=config))


@pytest.fixture(scope="module")
def nano() -> Engine:
    return load_nano(None)


@torch.inference_mode()
def masks_of_told_answer(engine: Engine, marked: str) -> np.ndarray:
    """(K, h, w) masks of the same words, whatever the model would have said itself."""
    question = (ROOT / "examples" / "scene_question.txt").read_text(encoding="utf-8").strip()
    messages = dialogue_messages(((question, marked),), question)[:2]
    image = load_image(ROOT / "examples" / "scene.png")
    batch = engine.processor.encode_batch([messages], [image], add_generation_prompt=False)
    model = engine.model
    output = model(batch["input_ids"], batch["pixel_values"], batch["pixel_mask"])
    encoded, _ = model.model.encode_images(batch["pixel_values"], batch["pixel_mask"])
    ids = torch.tensor(model.config.codebook_token_ids)
    rows, starts = find_groups(batch["input_ids"], ids)
    embeddings = model.target_embeddings(output.hidden_states, rows, starts)
    logits = model.decode_masks(embeddings, encoded.features, rows)
    return (logits > 0).numpy()


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_masks_of_nano_stay_the_same_and_are_not_blank(nano: Engine, bits: str) -> None:
    question = (ROOT / "examples" / "scene_question.txt").read_text(encoding="utf-8").strip()
    answer = nano.predict(ROOT / "examples" / "scene.png", question)
    marked = answer.info["marked_text"]
    assert marked.count(SEG_MARK) >= 2
    exact = masks_of_told_answer(nano, marked)
    rounded = masks_of_told_answer(load_nano(bits), marked)
    union = (exact | rounded).sum((1, 2))
    assert (rounded.sum((1, 2)) > 0).all()
    assert ((exact & rounded).sum((1, 2)) / union).min() >= NEEDED_IOU[bits]


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_only_linear_layers_of_the_language_model_are_rounded(nano: Engine, bits: str) -> None:
    exact = dict(nano.model.named_parameters())
    engine = load_nano(bits)
    rounded = {
        name
        for name, value in engine.model.named_parameters()
        if type(value.data) is not torch.Tensor and "torchao" in type(value.data).__module__
    }
    layers = {f"{n}.weight" for n, m in nano.model.named_modules() if is_inner_linear(n, m)}
    assert rounded == layers
    assert len(layers) == 7 * nano.model.config.text_config.num_hidden_layers
    for name, value in engine.model.named_parameters():
        if name not in rounded:
            assert torch.equal(value, exact[name]), name
    codebook = torch.tensor(engine.model.config.codebook_token_ids)
    for table in (engine.model.get_input_embeddings().weight, engine.model.lm_head.weight):
        assert torch.equal(table[codebook], nano.model.lm_head.weight[codebook])


def is_inner_linear(name: str, module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) and name.startswith("model.language_model.")


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_rounding_in_memory_equals_rounding_while_reading(bits: str) -> None:
    read, changed = load_nano(bits).model, load_nano(None).model
    quantize_model(changed, bits)
    inputs = torch.randn(1, 3, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        layers = [m.model.language_model.layers[0].mlp.gate_proj for m in (read, changed)]
        assert torch.equal(layers[0](inputs), layers[1](inputs))


def test_every_part_that_keeps_its_precision_exists_and_is_left_out_by_transformers(
    nano: Engine,
) -> None:
    """Which quantizes what QLoRA trains on, and in 8 and 4 bits what is read."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    modules = dict(nano.model.named_modules())
    assert modules.keys() >= {*FULL_PRECISION}
    linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    rounded = {name for name in linear if should_convert_module(name, list(FULL_PRECISION))}
    assert rounded == {name for name in linear if is_inner_linear(name, modules[name])}


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="int8, int4 or nf4, not 'int3'"):
        quantization_config("int3", CPU, torch.float32)
    with pytest.raises(ValueError, match="bfloat16"):
        quantization_config("int4", torch.device("cuda"), torch.float16)
