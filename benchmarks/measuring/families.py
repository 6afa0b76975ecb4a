"""What holds for a family of language models or vision encoders, tried on a tiny random one.

Each family goes the way that a user goes: its own class writes a folder, `pixellm init` makes a
model of it, which is compared with the family's own, trained, saved, loaded, asked and merged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from measuring.family_configs import TEXT_FAMILIES, VISION_FAMILIES
from measuring.generation import generate_answers
from pixellm.checkpoint.adapters import Adapters, attach_adapters, fold_adapters
from pixellm.checkpoint.build import train_tokenizer
from pixellm.checkpoint.init_parts import init_from_parts
from pixellm.checkpoint.io import load_model_and_processor, save_model
from pixellm.checkpoint.parts import LoraShape
from pixellm.data.collate import Collator
from pixellm.masks import encode_mask
from pixellm.model.codebook import find_groups
from pixellm.processing.prompts import dialogue_messages
from pixellm.types import Sample, Target, Turn

SIDE = 32
SMALL = {
    "llm_grid": [4, 4],
    "decoder_size": 16,
    "decoder_heads": 2,
    "decoder_mlp_size": 32,
    "decoder_mask_size": 8,
}
REFUSALS = (ValueError, OSError)
"""What the command line shows as one sentence."""
TEXTS = [
    "Which squares are there? There is a red square and a blue square.",
    "Is there a green one? No, there is none in this image.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGE_SETTINGS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 3}


@dataclass
class Outcome:
    """What was found of one family.

    Attributes:
        family: its model type.
        findings: largest differences, and what works or not, by column; a sentence where a part
            of it is refused.
        refusal: the sentence that it is refused with; "" where it is not.
        failure: what went wrong, as nothing should.
    """

    family: str
    findings: dict[str, float | bool | str] = field(default_factory=dict)
    refusal: str = ""
    failure: str = ""


def try_family(check: Callable[[str, Path, dict[str, Any]], None], name: str, at: Path) -> Outcome:
    """Run the checks of a family; what it can't do is told, not raised."""
    outcome = Outcome(name)
    torch.manual_seed(0)
    try:
        check(name, at, outcome.findings)
    except REFUSALS as error:
        outcome.refusal = " ".join(str(error).split())
    except Exception as error:  # the table says so, and the command fails
        outcome.failure = " ".join(f"{type(error).__name__}: {error}".split())
    return outcome


def check_text_family(name: str, folder: Path, found: dict[str, Any]) -> None:
    """Fill in what holds for a family of language models."""
    text, vision = folder / "text", folder / "vision"
    write_text_part(name, text)
    write_vision_part("clip_vision_model", vision)
    model, processor = _initialised(text, vision, folder / "start")
    own = AutoModelForCausalLM.from_pretrained(text).eval()
    vocabulary = own.config.vocab_size
    ids = torch.randint(20, vocabulary - 20, (2, 24))
    with torch.no_grad():
        ours = model(ids).logits[..., :vocabulary]
        found["logits"] = _difference(ours, own(ids).logits)
    found["packed"] = _packing(model, processor)
    _shared_checks(model, processor, folder, found)
    try:
        found["LoRA attached"], found["LoRA merged"] = _adapters(model, ids)
    except ValueError as error:
        found["LoRA attached"] = str(error)


def check_vision_family(name: str, folder: Path, found: dict[str, Any]) -> None:
    """Fill in what holds for a family of vision encoders."""
    text, vision = folder / "text", folder / "vision"
    write_text_part("llama", text)
    write_vision_part(name, vision)
    model, processor = _initialised(text, vision, folder / "start")
    own = AutoModel.from_pretrained(vision).eval()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    tower = model.model.vision_tower
    with torch.no_grad():
        maps, states = tower(pixels), _own_states(own, pixels)
    found["features"] = max(
        _difference(ours.flatten(2).transpose(1, 2), states[depth])
        for ours, depth in zip(maps, tower.depths, strict=True)
    )
    images = processor.image_processor
    found["normalised"] = images.image_mean == IMAGE_SETTINGS["image_mean"] and (
        images.image_std == IMAGE_SETTINGS["image_std"] and images.resample == "bicubic"
    )
    if tower.mask_padding:
        found["padding"] = _padding(tower, pixels)
    _shared_checks(model, processor, folder, found)


def write_text_part(name: str, folder: Path) -> None:
    """A tiny random language model of a family, with tokenizer and chat template, as published."""
    tokenizer = train_tokenizer(TEXTS * 4, 340, ["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    values = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(name, **TEXT_FAMILIES[name], **values)
    _save_moved(AutoModelForCausalLM.from_config(config), folder)
    tokenizer.save_pretrained(folder)


def write_vision_part(name: str, folder: Path) -> None:
    """A tiny random encoder of a family, with the numbers that its images are normalised with."""
    config = AutoConfig.for_model(name, **VISION_FAMILIES[name])
    if hasattr(config, "image_size"):
        config.image_size = SIDE
    _save_moved(AutoModel.from_config(config), folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE_SETTINGS), "utf-8")


def _save_moved(model: Any, folder: Path) -> None:
    """Save a model, every weight moved from where its family starts it (biases at zero ...)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)


def _initialised(text: Path, vision: Path, out: Path) -> tuple[Any, Any]:
    init_from_parts(str(text), str(vision), out, image_size=SIDE, settings=SMALL)
    return load_model_and_processor(out)


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def _own_states(encoder: Any, pixels: Tensor) -> list[Tensor]:
    """(B, cells, C) of each depth, row by row, as the family's own class gives them."""
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if encoder.config.model_type == "siglip2_vision_model":
        size = encoder.config.patch_size
        grid, count = SIDE // size, (SIDE // size) ** 2
        columns = torch.nn.functional.unfold(pixels, size, stride=size)
        patches = columns.unflatten(1, (3, size, size)).permute(0, 4, 2, 3, 1).flatten(2)
        inputs = {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(len(pixels), count, dtype=torch.long),
            "spatial_shapes": torch.tensor([[grid, grid]] * len(pixels)),
        }
    states = encoder(**inputs, output_hidden_states=True).hidden_states
    if states[-1].ndim == 4:
        return [state.flatten(2).transpose(1, 2) for state in states]
    embeddings = getattr(encoder, "embeddings", None)
    names = ("class_embedding", "cls_token", "distillation_token", "register_tokens")
    parts = [getattr(embeddings, name, None) for name in names]
    prefix = sum(p.shape[1] if p.ndim == 3 else 1 for p in parts if p is not None)
    return [state[:, prefix:] for state in states]


def _padding(tower: Any, pixels: Tensor) -> float:
    """How much visible features change with what lies in the padding."""
    mask = torch.zeros(len(pixels), SIDE, SIDE, dtype=torch.bool)
    mask[:, : SIDE // 2] = True
    other = pixels.clone()
    other[:, :, SIDE // 2 :] = 3.0
    with torch.no_grad():
        pairs = zip(tower(pixels, mask), tower(other, mask), strict=True)
        return max(
            _difference(a[:, :, : a.shape[2] // 2], b[:, :, : b.shape[2] // 2]) for a, b in pairs
        )


def _shared_checks(model: Any, processor: Any, folder: Path, found: dict[str, Any]) -> None:
    """What holds of any model: it trains, is saved and loaded, and answers with masks."""
    batch = _batch(processor, [[_sample(2)], [_sample(4)]])
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found["trains"] = bool(np.isfinite(losses).all() and losses[-1] < losses[0])
    model.eval()
    save_model(folder / "saved", model, processor)
    again, _ = load_model_and_processor(folder / "saved")
    with torch.no_grad():
        one, other = model(**batch), again(**batch)
    found["loaded"] = max(
        _difference(one.mask_logits, other.mask_logits),
        abs(one.loss.item() - other.loss.item()),
    )
    found["masks"] = _generation(model, processor)


def _sample(red: int, *, turns: int = 2) -> Sample:
    pixels = np.full((32, 24, 3), 200, np.uint8)
    pixels[red : red + 8, red : red + 8] = (255, 0, 0)
    mask = np.zeros((32, 24), bool)
    mask[red : red + 8, red : red + 8] = True
    asked = (
        Turn(
            "Which squares are there?",
            "There is a red square {seg}.",
            (Target("red square", encode_mask(mask)),),
        ),
        Turn("Is there a green one?", "No, there is none."),
    )
    return Sample(pixels, (32, 24), asked[:turns], f"red {red}")


def _batch(processor: Any, rows: Sequence[Sequence[Sample]]) -> dict[str, Any]:
    batch = Collator(processor, mask_size=16)(rows)
    del batch["sample_ids"]
    return batch


@torch.no_grad()
def _packing(model: Any, processor: Any) -> float:
    """How far states in a packed row differ from those of a dialogue read alone."""
    dialogues = [_sample(2, turns=count) for count in (2, 1)]
    packed, alone = _batch(processor, [dialogues]), _batch(processor, [[d] for d in dialogues])
    together, single = model(**packed).hidden_states, model(**alone).hidden_states
    differences = []
    for number in range(len(dialogues)):
        here = packed["dialogue_ids"][0] == number + 1
        there = alone["dialogue_ids"][number] == 1
        differences.append(_difference(together[0, here], single[number, there]))
    return max(differences)


@torch.no_grad()
def _generation(model: Any, processor: Any) -> float:
    """How far masks of a written answer differ from those of one pass over all of it."""
    config, codec = model.config, processor.codec
    images = [_sample(2).image, _sample(6).image]
    questions = ["What?", "Which squares are there on the left?"]
    prompts = processor.encode_batch([dialogue_messages((), q) for q in questions], images)
    encoded, _ = model.model.encode_images(prompts["pixel_values"], prompts["pixel_mask"])
    end, first = processor.tokenizer.eos_token_id, config.codebook_token_ids[0]
    told = [[20, first, 21, first, end], [22, 23, first, end]]
    answers = generate_answers(
        model,
        prompts["input_ids"],
        prompts["attention_mask"],
        encoded,
        eos_ids=frozenset([end]),
        max_new_tokens=32,
        choose=lambda logits, rows: [told[row.index].pop(0) for row in rows],
    )
    differences = []
    for row, answer in enumerate(answers):
        start = int(prompts["attention_mask"][row].argmax())
        ids = torch.cat([prompts["input_ids"][row, start:], torch.tensor(answer.ids)])[None]
        mask = torch.ones_like(ids)
        mask[0, : -len(answer.ids)] = prompts["attention_mask"][row, start:]
        image = encoded.select(torch.tensor([row]))
        hidden = model.model(ids, image.tokens, mask, use_cache=False).last_hidden_state
        rows, starts = find_groups(ids, torch.tensor(codec.codebook_ids))
        whole = model.decode_masks(
            model.target_embeddings(hidden, rows, starts), image.features, rows
        )
        written = model.model.codebook(torch.stack(answer.group_states))
        masks = model.decode_masks(written, image.features, rows)
        differences.append(_difference(masks, whole))
    return max(differences)


@torch.no_grad()
def _adapters(model: Any, ids: Tensor) -> tuple[float, float]:
    """How much attaching fresh adapters changes logits, and merging trained ones."""
    before = model(ids).logits
    rows = tuple(sorted({*model.config.codebook_token_ids, *range(20, 40)}))
    attach_adapters(
        model,
        Adapters(LoraShape(rank=2, alpha=8.0, dropout=0.0, target_modules=("all-linear",)), rows),
    )
    attached = _difference(model(ids).logits, before)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name or name.endswith(".rows"):
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    trained = model(ids).logits
    fold_adapters(model)
    return attached, _difference(model(ids).logits, trained)
