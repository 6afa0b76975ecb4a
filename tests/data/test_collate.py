"""Batches of the tiny model: every field where it belongs, and what does not fit left out whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import square_image, square_sample
from pixellm.data.collate import IGNORED, Collator
from pixellm.engine import Engine
from pixellm.masks import encode_mask
from pixellm.model.codebook import find_groups
from pixellm.model.pixel_masks import unpack_masks
from pixellm.processing.processor import PixelLMProcessor
from pixellm.types import Sample, Target, Turn

GRID = 16


@pytest.fixture
def processor(tiny_engine: Engine) -> PixelLMProcessor:
    return tiny_engine.processor


def box_target(name: str, size: tuple[int, int], box: tuple[int, int, int, int]) -> Target:
    mask = np.zeros(size, bool)
    x, y, width, height = box
    mask[y : y + height, x : x + width] = True
    return Target(name, encode_mask(mask))


def test_a_batch_is_flat_and_of_the_shapes_told(processor: PixelLMProcessor) -> None:
    first, second = square_sample(), square_sample((4, 10))
    collate = Collator(processor, GRID, ("red square",), class_map_size=8)
    batch = collate([[first, second], [first]])
    length = batch["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask", "position_ids", "dialogue_ids", "labels"):
        assert batch[name].shape == (2, length) and batch[name].dtype == torch.long, name
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["pixel_mask"].shape == (2, 32, 32)
    assert batch["target_sizes"].tolist() == [[GRID, 12]] * 6
    assert batch["target_masks"].shape == (6 * GRID * 12 // 8,)
    assert batch["target_masks"].dtype == torch.uint8
    assert batch["target_rows"].tolist() == [0, 0, 0, 0, 1, 1]
    assert batch["target_answers"].tolist() == [0, 0, 2, 2, 4, 4]
    assert batch["patch_classes"].shape == (2, 8, 8)
    assert batch["sample_ids"] == ["squares"] * 3


def test_targets_stand_in_the_order_of_the_groups(processor: PixelLMProcessor) -> None:
    size = (32, 32)
    boxes = [(0, 0, 8, 8), (16, 0, 8, 8), (0, 16, 8, 8), (16, 16, 8, 8)]
    targets = [box_target(str(n), size, box) for n, box in enumerate(boxes)]
    image = np.zeros((*size, 3), np.uint8)
    turns = (
        Turn("One?", "It {seg} and that {seg}.", (targets[2], targets[0])),
        Turn("None?", "No."),
        Turn("More?", "Here {seg}.", (targets[3],)),
    )
    dialogue = Sample(image, size, turns)
    other = Sample(image, size, (Turn("Last?", "There {seg}.", (targets[1],)),))
    batch = Collator(processor, GRID)([[dialogue, other], [other]])
    rows, starts = find_groups(batch["input_ids"], torch.tensor(processor.codec.codebook_ids))
    assert rows.tolist() == batch["target_rows"].tolist() == [0, 0, 0, 0, 1]
    assert starts.tolist()[:4] == sorted(starts.tolist()[:4])
    masks = unpack_masks(batch["target_masks"].view(5, -1), (GRID, GRID))
    corners = [mask.nonzero()[0].tolist() for mask in masks]
    assert corners == [[8, 0], [0, 0], [8, 8], [0, 8], [0, 8]]
    assert batch["target_answers"].tolist() == [0, 0, 2, 3, 4]


def test_dialogues_share_a_prefix_and_their_positions_start_behind_it(
    processor: PixelLMProcessor,
) -> None:
    single = replace(square_sample(), turns=square_sample().turns[1:])
    batch = Collator(processor, GRID)([[single, single]])
    dialogue_ids, positions = batch["dialogue_ids"][0], batch["position_ids"][0]
    prefix = int((dialogue_ids == 0).sum())
    assert prefix == 4  # the four image tokens of the compact template
    assert dialogue_ids.tolist() == sorted(dialogue_ids.tolist())
    for number in (1, 2):
        own = positions[dialogue_ids == number]
        assert own.tolist() == list(range(prefix, prefix + len(own)))
    one, two = (batch["input_ids"][0, dialogue_ids == number] for number in (1, 2))
    assert torch.equal(one, two)


def test_labels_are_the_answers_and_padding_is_ignored(processor: PixelLMProcessor) -> None:
    sample = square_sample()
    short = replace(sample, turns=sample.turns[1:])
    batch = Collator(processor, GRID)([[sample], [short]])
    written = batch["labels"][1][batch["labels"][1] != IGNORED]
    assert written[-1] == processor.tokenizer.eos_token_id
    assert processor.codec.decode_answer(written[:-1].tolist()).text == "No, there is none."
    padding = batch["attention_mask"][1] == 0
    padding[:4] = False
    assert padding.any() and bool((batch["labels"][1][padding] == IGNORED).all())
    # An image of 32 x 24 covers both columns of the 2 x 2 grid; one of 32 x 16 covers one.
    assert batch["attention_mask"][0, :4].tolist() == [1, 1, 1, 1]
    narrow = Sample(square_image((2, 3), (32, 16)), (32, 16), sample.turns[1:], "narrow")
    assert Collator(processor, GRID)([[narrow]])["attention_mask"][0, :4].tolist() == [1, 0, 1, 0]


def test_turns_that_do_not_fit_are_left_out_whole_and_counted(processor: PixelLMProcessor) -> None:
    sample = square_sample()
    whole = Collator(processor, GRID)([[sample, sample]])
    assert "num_dropped_turns" not in whole
    longest = whole["input_ids"].shape[1]
    codebook = torch.tensor(processor.codec.codebook_ids)
    seen = set()
    for limit in range(len(Collator(processor, GRID).prefix) + 1, longest + 1):
        batch = Collator(processor, GRID, max_length=limit)([[sample, sample]])
        ids = batch["input_ids"]
        assert ids.shape[1] <= limit
        rows, _ = find_groups(ids, codebook)
        assert len(rows) == len(batch["target_sizes"])
        assert int(torch.isin(ids, codebook).sum()) == len(rows) * len(codebook)
        num_answers = int((batch["labels"] == processor.tokenizer.eos_token_id).sum())
        dropped = batch.get("num_dropped_turns", 0)
        assert num_answers + dropped == 4
        assert batch.get("num_dropped_rows", 0) == (num_answers == 0)
        seen.add(dropped)
    assert seen == {0, 1, 2, 3, 4}


def test_a_row_whose_first_turn_is_too_long_is_left_out_and_its_neighbours_stay(
    processor: PixelLMProcessor,
) -> None:
    short, other = square_sample(), square_sample((4, 10))
    long = replace(short, turns=(Turn("Why? " * 200, "So."), *short.turns), id="long")
    names = ("red square", "blue square")
    collate = Collator(processor, GRID, names, max_length=200)
    expected = collate([[short], [other]])
    batch = collate([[short], [long], [other]])
    assert batch.pop("num_dropped_turns") == 1 + len(short.turns)
    assert batch.pop("num_dropped_rows") == 1
    assert batch.pop("sample_ids") == ["squares", "long", "squares"]
    assert set(batch) == set(expected) - {"sample_ids"}
    for name, value in batch.items():
        assert torch.equal(value, expected[name]), name
    second = collate([[long, short]])
    assert second["num_dropped_rows"] == 0
    assert set(second["dialogue_ids"][0].tolist()) == {0, 2}


def test_a_batch_of_which_nothing_fits_keeps_an_image_that_teaches_nothing(
    processor: PixelLMProcessor,
) -> None:
    short = square_sample()
    long = replace(short, turns=(Turn("Why? " * 200, "So {seg}.", short.turns[0].targets[:1]),))
    collate = Collator(processor, GRID, ("red square",), max_length=200)
    batch = collate([[long], [long, long]])
    assert (batch["num_dropped_rows"], batch["num_dropped_turns"]) == (2, 3)
    assert batch["pixel_values"].shape[0] == batch["input_ids"].shape[0] == 1
    assert bool((batch["labels"] == IGNORED).all() and (batch["patch_classes"] == IGNORED).all())
    assert len(batch["target_masks"]) == len(batch["target_sizes"]) == 0
    assert len(batch["target_rows"]) == 0


def test_a_dialogue_has_a_limit_of_its_own(processor: PixelLMProcessor) -> None:
    """Tokens of text, the image not counted; the other dialogues of the row stay."""
    with pytest.raises(ValueError, match=r"takes \d+ tokens of a row of 4; raise collate.max_len"):
        Collator(processor, GRID, max_length=4)
    sample = square_sample()
    whole = Collator(processor, GRID)([[sample, sample]])
    longest = int((whole["dialogue_ids"][0] == 1).sum())
    fits = Collator(processor, GRID, max_text_length=longest)([[sample, sample]])
    assert "num_dropped_turns" not in fits
    cut = Collator(processor, GRID, max_text_length=longest - 1)([[sample, sample]])
    assert (cut["num_dropped_turns"], cut["num_dropped_rows"]) == (2, 0)
    assert set(cut["dialogue_ids"][0].tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("mask_size", "size"), [(GRID, (8, 16)), (8, (4, 8)), (32, (16, 32)), ("original", (10, 20))]
)
def test_masks_are_those_of_the_image_at_the_size_asked_for(
    processor: PixelLMProcessor, mask_size: int | Literal["original"], size: tuple[int, int]
) -> None:
    original = (10, 20)
    right, top = (10, 0, 10, 10), (0, 0, 20, 5)
    targets = (box_target("right", original, right), box_target("top", original, top))
    turn = Turn("It?", "It {seg} and {seg}.", targets)
    sample = Sample(np.zeros((*original, 3), np.uint8), original, (turn,))
    batch = Collator(processor, mask_size)([[sample]])
    assert batch["target_sizes"].tolist() == [list(size)] * 2
    expected = torch.zeros(2, *size, dtype=torch.bool)
    expected[0, :, size[1] // 2 :] = True
    expected[1, : size[0] // 2] = True
    assert torch.equal(unpack_masks(batch["target_masks"].view(2, -1), size), expected)


def test_the_class_map_knows_background_padding_and_what_lies_on_top(
    processor: PixelLMProcessor,
) -> None:
    size = (8, 16)
    objects = (
        box_target("cup", size, (0, 0, 8, 8)),
        box_target("pen", size, (4, 0, 4, 8)),
        box_target("unknown", size, (12, 0, 4, 8)),
    )
    sample = Sample(
        np.zeros((*size, 3), np.uint8), size, (Turn("What?", "Things."),), objects=objects
    )
    batch = Collator(processor, 448, ("cup", "pen"), class_map_size=GRID)([[sample]])
    classes, boxes = batch["patch_classes"][0], batch["patch_boxes"][0]
    assert classes[:8, :4].unique().tolist() == [1]
    assert classes[:8, 4:8].unique().tolist() == [2]
    assert classes[:8, 8:].unique().tolist() == [0]
    assert classes[8:].unique().tolist() == [IGNORED]
    assert boxes[:8, :4].unique(dim=0).unique(dim=1).tolist() == [[[0.0, 0.0, 0.5, 0.5]]]
    assert boxes[:8, 4:8].unique(dim=0).unique(dim=1).tolist() == [[[0.25, 0.0, 0.5, 0.5]]]
    assert (boxes[:8, 8:] == -1).all() and (boxes[8:] == -1).all()
    assert "patch_classes" not in Collator(processor, GRID)([[sample]])


def test_an_image_that_does_not_tell_its_objects_teaches_no_background(
    processor: PixelLMProcessor,
) -> None:
    told, untold = square_sample(), replace(square_sample(), objects=())
    both = Collator(processor, GRID, ("red square", "blue square"))([[told], [untold]])
    assert (both["patch_classes"][0] == 0).any()
    assert (both["patch_classes"][1] == -100).all()
    assert (both["patch_boxes"][0] >= 0).any() and (both["patch_boxes"][1] == -1).all()


def test_an_image_of_another_size_than_its_sample_says_is_refused_by_name(
    processor: PixelLMProcessor, tmp_path: Path
) -> None:
    right = square_sample()
    path = tmp_path / "turned.png"
    Image.fromarray(square_image((2, 3), (24, 32))).save(path)
    turned = replace(right, image=path, id="photo-7")
    with pytest.raises(
        ValueError, match=r"'photo-7'.*turned\.png: The image is \(24, 32\), .*32, 24"
    ):
        Collator(processor, GRID)([[right], [turned]])
    other = replace(right, size=(32, 16), turns=right.turns[1:], objects=(), id="packed")
    with pytest.raises(ValueError, match=r"'packed'.*\(32, 24\).*\(32, 16\)"):
        Collator(processor, GRID)([[right, other]])
