"""Losses of the instances found: objects and entries are matched, and training moves both ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conftest import tiny_evidence_config
from pixellm.model.evidence import BOX_CHANNELS
from pixellm.model.regions import RegionDecoder
from pixellm.training.evidence_losses import (
    choice_loss_sum,
    mask_boxes,
    objects_of_targets,
    region_loss,
)

GRID = 32


def rectangle(left: int, top: int, right: int, bottom: int) -> Tensor:
    mask = torch.zeros(GRID, GRID, dtype=torch.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def test_boxes_of_masks() -> None:
    boxes = mask_boxes(
        torch.stack([rectangle(4, 8, 16, 32), torch.zeros_like(rectangle(0, 0, 1, 1))])
    )
    torch.testing.assert_close(boxes[0], torch.tensor([4.0, 8, 16, 32]) / GRID)
    assert boxes[1].tolist() == [0, 0, 0, 0]


def test_what_lies_upon_an_object_of_the_target_is_not_the_target() -> None:
    person, tie, dog = rectangle(0, 0, 16, 32), rectangle(6, 8, 8, 20), rectangle(20, 20, 30, 30)
    objects = torch.stack([person, tie, dog]).flatten(1).float()
    both = (person | dog).flatten()[None].float()
    assert objects_of_targets(both, objects).tolist() == [[True, False, True]]
    assert objects_of_targets(objects[1:2], objects).tolist() == [[False, True, False]]


def a_batch() -> tuple[Tensor, dict[str, Tensor]]:
    masks = torch.stack([rectangle(0, 0, 16, 32), rectangle(20, 20, 30, 30)])
    entries = torch.zeros(1, 4, BOX_CHANNELS + 2)
    entries[0, :3, 4] = 1
    entries[0, 0, :4] = torch.tensor([0, 0, 0.5, 1])
    entries[0, 1, :4] = torch.tensor([20, 20, 30, 30]) / GRID
    entries[0, 2, :4] = torch.tensor([20, 17, 30, 30]) / GRID  # sure enough the second one too
    batch = {
        "target_shapes": masks[:1],
        "target_rows": torch.zeros(1, dtype=torch.long),
        "object_shapes": masks,
        "object_rows": torch.zeros(2, dtype=torch.long),
    }
    return entries, batch


class GivenChoice:
    """A decoder whose choice among the entries of all rows, and their classes, are given."""

    def __init__(self, choice: Tensor, scores: Tensor, one: Tensor | None = None) -> None:
        self.choice, self.scores, self.one = choice, scores, one
        self.tells_one = one is not None

    def choose_among_all(self, target_embeddings: Tensor, entries: Tensor) -> Tensor:
        return self.choice

    def class_scores(self, entries: Tensor) -> Tensor:
        return self.scores

    def is_one(self, target_embeddings: Tensor) -> Tensor:
        assert self.one is not None
        return self.one

    def kinds(self, target_embeddings: Tensor) -> Tensor:
        return 20.0 * torch.eye(3)[self.scores[0, 0].argmax()][None]


def choice_loss(
    choice: Tensor, entries: Tensor, batch: dict[str, Tensor], scores: Tensor
) -> Tensor:
    return choice_loss_sum(GivenChoice(choice, scores), torch.zeros(1, 2, 4), entries, batch)


def test_the_right_choice_costs_nothing_and_a_wrong_one_much() -> None:
    entries, batch = a_batch()
    scores = torch.zeros(1, 4, 3)
    right = torch.tensor([[[20.0, -20, -20, 0]]])
    wrong = torch.tensor([[[-20.0, 20, -20, 0]]])
    assert choice_loss(right, entries, batch, scores) < 1e-3
    assert choice_loss(wrong, entries, batch, scores) > 30


def test_an_empty_entry_teaches_nothing() -> None:
    entries, batch = a_batch()
    choice = torch.zeros(1, 1, 4, requires_grad=True)
    choice_loss(choice, entries, batch, torch.zeros(1, 4, 3)).backward()
    assert choice.grad is not None
    assert (choice.grad[0, 0] != 0).tolist() == [True, True, True, False]


def test_things_of_other_images_are_chosen_only_if_they_are_of_the_targets_class() -> None:
    own, batch = a_batch()
    entries = torch.cat([own, own])
    scores = torch.zeros(2, 4, 3)
    scores[0, 0, 1] = 0.9  # what the target shows
    scores[1, 0, 1] = 0.5  # one of its class in the other image
    scores[1, 1, 2] = 0.5  # and one of another
    choice = torch.zeros(1, 2, 4, requires_grad=True)
    choice_loss(choice, entries, batch, scores).backward()
    assert choice.grad is not None
    assert choice.grad[0, 1, 0] == 0
    assert choice.grad[0, 1, 1] > 0


def test_drawing_is_learnt() -> None:
    torch.manual_seed(0)
    decoder = RegionDecoder(tiny_evidence_config())
    found, batch = a_batch()
    entries = torch.zeros(1, 4, BOX_CHANNELS + decoder.key[0].in_features)
    entries[..., : found.shape[-1]] = found
    shapes = torch.nn.functional.avg_pool2d(batch["object_shapes"][:, None].float(), 2)
    fine = torch.cat([shapes.amax(0)[None], torch.zeros(1, 15, 16, 16)], 1)
    features = [torch.zeros(1, 16, 4, 4), fine, entries]
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = region_loss(decoder, features, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_one_of_several_is_told_from_all_and_the_only_one_teaches_neither() -> None:
    entries, batch = a_batch()
    scores = torch.zeros(1, 4, 3)
    scores[0, :2, 0] = 0.9  # both objects are of a class
    all_shapes = batch["object_shapes"].amax(0, keepdim=True)

    def slope(wanted: Tensor, likely: Tensor) -> float:
        one = torch.zeros(1, requires_grad=True)
        decoder = GivenChoice(torch.zeros(1, 1, 4), likely, one)
        told = batch | {"target_shapes": wanted}
        loss = choice_loss_sum(decoder, torch.zeros(1, 2, 4), entries, told)
        (grad,) = torch.autograd.grad(loss, one, allow_unused=True)
        return float(grad[0])

    assert slope(batch["target_shapes"], scores) < 0
    assert slope(all_shapes, scores) > 0
    other = scores.clone()
    other[0, 1] = torch.tensor([0, 0.9, 0])  # the other object is of another class
    assert slope(batch["target_shapes"], other) == 0


def test_a_target_of_one_object_competes_for_the_likeliest_entry() -> None:
    entries, batch = a_batch()
    scores = torch.zeros(1, 4, 3)

    def loss(first: float, second: float) -> float:
        choice = torch.tensor([[[first, second, -20, 0]]])
        decoder = GivenChoice(choice, scores, torch.zeros(1))
        plain = choice_loss(choice, entries, batch, scores)
        return float(choice_loss_sum(decoder, torch.zeros(1, 2, 4), entries, batch) - plain)

    assert loss(3, -3) < 0.1 < loss(0, 0) < loss(-3, 3)


def test_the_class_of_a_target_is_the_one_that_its_name_tells() -> None:
    entries, batch = a_batch()
    scores = torch.zeros(1, 4, 3)
    scores[0, 0, 1] = 0.9  # the encoder takes the target for another class

    def of_its_name(kind: int) -> float:
        named = batch | {"target_kinds": torch.tensor([kind])}
        return float(choice_loss(torch.zeros(1, 1, 4), entries, named, scores))

    unnamed = float(choice_loss(torch.zeros(1, 1, 4), entries, batch, scores))
    told = int(scores[0, 0].argmax())  # GivenChoice tells the class of its likeliest entry
    assert of_its_name(told) == of_its_name(-100) == unnamed
    assert of_its_name(2) == pytest.approx(unnamed + 20, abs=1e-3)
