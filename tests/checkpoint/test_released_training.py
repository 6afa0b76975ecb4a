"""A training step computes what the released code computed, number by number.

From the processor through the collator and the model's forward to its losses, and target
refinement by itself. ``python benchmarks/released_differences.py`` makes a table of it.
"""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
import torch
from released_numbers import OFFICIAL, PARITY, convert_original, share_off
from safetensors.torch import load_file

from pixellm.checkpoint.io import load_model_and_processor
from pixellm.data.collate import Collator
from pixellm.masks import encode_mask
from pixellm.model import supervision
from pixellm.model.losses import count_claims, target_refinement_loss
from pixellm.model.pixel_masks import restore_masks
from pixellm.model.supervision import Targets, mask_losses
from pixellm.types import Sample, Target, Turn

FORCED = PARITY / "official_a_forced"
GROUP = re.compile(r"\[SEG0\](?: \[SEG\d+\])+")
LIMIT = 1e-4

QUANTITIES = {
    "ce_loss": "loss of a batch: text, absolute",
    "mask_bce_loss": "loss of a batch: BCE, absolute",
    "mask_dice_loss": "loss of a batch: DICE, absolute",
    "loss": "loss of a batch: whole, absolute",
    "bce of each mask": "BCE of each mask, of the largest",
    "dice of each mask": "DICE of each mask, of the largest",
    "target_embeddings": "target embeddings, of the largest",
    "low_res_masks": "low-resolution mask logits, of the largest",
    "mask_logits_sub4": "mask logits at the image's size, of the largest",
}
"""What is measured -> what the table calls it."""

pytestmark = pytest.mark.skipif(not FORCED.is_dir(), reason=f"the parity data is not at {FORCED}")


@cache
def golden():
    return json.loads((FORCED / "golden.json").read_text())


@cache
def golden_tensors():
    return load_file(FORCED / "golden.safetensors")


def batches():
    return range(len(golden()["training"])) if FORCED.is_dir() else ()


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    out = convert_original(OFFICIAL, tmp_path_factory.mktemp("released") / "model")
    model, processor = load_model_and_processor(out)
    return model.train(), processor


def conversations(number):
    """The samples of a batch of the released training step, with the image of each."""
    facts = golden()["training"][number]
    masks = [
        list(golden_tensors()[f"train{number}.picture{p}.gt_masks"].numpy())
        for p in range(len(facts["pictures"]))
    ]
    samples = []
    for conversation in facts["conversations"]:
        picture = conversation["picture"]
        turns = []
        for spoken in conversation["rounds"]:
            answer = GROUP.sub("{seg}", spoken["answer"])
            own = [masks[picture].pop(0) for _ in range(answer.count("{seg}"))]
            targets = tuple(Target("target", encode_mask(mask)) for mask in own)
            turns.append(Turn(spoken["question"], answer, targets))
        shown = facts["pictures"][picture]
        path, size = OFFICIAL / shown["image"], tuple(shown["original_hw"])
        samples.append((picture, Sample(path, size, tuple(turns), f"{number}")))
    assert not any(masks)
    return samples


def collated(number, processor, *, packed, mask_size="original"):
    """One row a conversation, or one an image."""
    rows: dict[int, list[Sample]] = {}
    for index, (picture, sample) in enumerate(conversations(number)):
        rows.setdefault(picture if packed else index, []).append(sample)
    return Collator(processor, mask_size)(list(rows.values()))


def measure(number, model, batch):
    """Differences of all numbers of one batch to those of the released code."""
    facts, tensors = golden()["training"][number], golden_tensors()
    batch = {name: value for name, value in batch.items() if name != "sample_ids"}
    output = model(**batch)
    config, wanted = model.config, facts["losses"]
    losses = {
        "ce_loss": config.text_loss_weight * output.text_loss,
        "mask_bce_loss": config.mask_loss_weight * output.mask_loss,
        "mask_dice_loss": config.dice_loss_weight * output.dice_loss,
        "loss": output.loss,
    }
    found = {name: abs(value.item() - wanted[name]) for name, value in losses.items()}
    masks, sizes, rows = (batch[f"target_{name}"] for name in ("masks", "sizes", "rows"))
    truth = Targets(batch["labels"], masks, sizes, rows, batch["target_answers"], None, None)
    each = mask_losses(output.mask_logits, truth, batch["pixel_mask"], config.image_size, alpha=1.0)
    for name, values in zip(("bce", "dice"), each, strict=True):
        found[f"{name} of each mask"] = share_off(values, torch.tensor(facts["per_mask"][name]))
    owners = torch.tensor(facts["per_mask"]["picture"])
    for picture, shown in enumerate(facts["pictures"]):
        own = owners == picture
        low = output.mask_logits[own].detach()
        frame = (tuple(shown["resized_hw"]), tuple(shown["original_hw"]), config.image_size)
        compared = {
            "target_embeddings": output.target_embeddings[own],
            "low_res_masks": low,
            "mask_logits_sub4": restore_masks(low, *frame)[:, ::4, ::4],
        }
        for name, value in compared.items():
            off = share_off(value, tensors[f"train{number}.picture{picture}.{name}"])
            found[name] = max(off, found.get(name, 0.0))
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["a row each", "packed by picture"])
@pytest.mark.parametrize("number", batches())
def test_a_training_step_has_the_released_losses_masks_and_embeddings(
    number, packed, released, note_difference
):
    model, processor = released
    found = measure(number, model, collated(number, processor, packed=packed))
    for name, value in found.items():
        note_difference("training", QUANTITIES[name], value, LIMIT)
    assert {name: value for name, value in found.items() if not value <= LIMIT} == {}


@pytest.mark.parametrize("number", batches())
def test_conversations_and_labels_are_those_of_the_released_collate_function(number, released):
    codec = released[1].codec
    batch = collated(number, released[1], packed=False)
    for row, wanted in enumerate(golden()["training"][number]["conversations"]):
        length = int(batch["position_ids"][row].max()) + 1
        ids = batch["input_ids"][row, :length].tolist()
        labels = batch["labels"][row, :length].tolist()
        image = [i for i, token in enumerate(ids) if token == codec.image_id]
        keep = [i for i in range(length) if i not in image[1:]]
        collapsed = [-200 if ids[i] == codec.image_id else ids[i] for i in keep]
        assert collapsed == wanted["conversation_ids"]
        assert [labels[i] for i in keep] == wanted["labels"]


def test_losses_in_portions_are_those_of_the_whole(released, monkeypatch):
    """Values and gradients, with contested pixels across portions."""
    model, processor = released
    batch = collated(0, processor, packed=True)
    logits = golden_tensors()["train0.picture0.low_res_masks"]
    masks, sizes, rows = (batch[f"target_{name}"] for name in ("masks", "sizes", "rows"))
    truth = Targets(batch["labels"], masks, sizes, rows, batch["target_answers"], None, None)
    results = []
    for pixels in (1 << 30, 1):
        monkeypatch.setattr(supervision, "PIXELS_AT_ONCE", pixels)
        leaf = logits.clone().requires_grad_()
        losses = mask_losses(leaf, truth, batch["pixel_mask"], model.config.image_size, alpha=3.0)
        (losses[0].sum() + losses[1].sum()).backward()
        results.append((*losses, leaf.grad))
    for whole, portioned in zip(*results, strict=True):
        torch.testing.assert_close(whole, portioned, atol=1e-7, rtol=1e-5)
    plain = mask_losses(logits, truth, batch["pixel_mask"], model.config.image_size, alpha=1.0)
    assert bool((results[0][0] > plain[0]).any()), "some pixels are contested"


def test_target_refinement_is_the_released_overlap_loss_added_to_plain_bce(note_difference):
    """Weights, value and gradient; with alpha 2 contested pixels count once more."""
    tensors, cases = golden_tensors(), golden()["overlap"]
    assert cases
    for case in cases:
        name = f"overlap{case['case']}"
        logits = tensors[f"{name}.logits"].flatten(1).requires_grad_()
        targets = tensors[f"{name}.targets"].flatten(1).float()
        wanted = tensors[f"{name}.weights"].flatten(1)
        counts = torch.tensor(case["counts"])
        answers = torch.repeat_interleave(torch.arange(len(counts)), counts)
        contested = count_claims(logits, answers, len(counts))[answers] >= 2
        assert torch.equal(contested, wanted.bool()), name
        plain = target_refinement_loss(logits, targets, None, 2.0).mean()
        overlap = target_refinement_loss(logits, targets, contested, 2.0).mean() - plain
        assert plain.item() == pytest.approx(case["plain_bce"], abs=1e-5)
        assert overlap.item() == pytest.approx(case["loss"], abs=1e-5)
        (gradient,) = torch.autograd.grad(overlap, logits)
        off = share_off(gradient, tensors[f"{name}.grad"].flatten(1))
        note_difference(
            "training",
            "target refinement: value, absolute",
            abs(overlap.item() - case["loss"]),
            1e-5,
        )
        note_difference("training", "target refinement: gradient, of the largest", off, LIMIT)
        assert off <= LIMIT
