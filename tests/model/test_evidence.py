"""Evidence: which cells of a detecting encoder become entries, and in which order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pixellm.model.evidence import (
    BOX_CHANNELS,
    box_overlap,
    describe,
    familiarity,
    find_evidence,
    pack,
    rename,
)

CLASSES = 3


def cell_map(*instances: tuple[int, int, int, float, tuple[float, float, float, float]]) -> Tensor:
    """(1, 3 + 5 + 2, 4, 4) map: row, column, class, logit and box of each instance, else 0."""
    cells = torch.zeros(1, CLASSES + 7, 4, 4)
    cells[:, :CLASSES] = -20
    for row, column, label, logit, box in instances:
        cells[0, label, row, column] = logit
        cells[0, CLASSES, row, column] = 20  # sure that there is an instance
        cells[0, CLASSES + 1 : CLASSES + 5, row, column] = torch.tensor(box)
        cells[0, CLASSES + 5 :, row, column] = torch.tensor([row, column], dtype=torch.float32)
    return cells


def test_entries_go_from_left_to_right_and_empty_ones_come_last() -> None:
    right = (1, 3, 2, 3.0, (0.8, 0.5, 0.2, 0.2))
    left = (1, 0, 1, 0.0, (0.2, 0.5, 0.2, 0.4))
    found = find_evidence([cell_map(right, left)], CLASSES, 4)
    assert found.found.tolist() == [[True, True, False, False]]
    assert found.scores.argmax(-1)[0, :2].tolist() == [1, 2]
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor([0.1, 0.3, 0.3, 0.7]))
    assert found.states[0, 0].tolist() == [1, 0]
    assert found.boxes[0, 2:].abs().sum() == 0


def test_of_two_cells_that_show_one_thing_the_surer_is_kept() -> None:
    weak = (0, 0, 1, 1.0, (0.5, 0.5, 0.4, 0.4))
    sure = (0, 1, 1, 2.0, (0.51, 0.5, 0.4, 0.4))
    found = find_evidence([cell_map(weak), cell_map(sure)], CLASSES, 4)
    assert found.found.sum() == 1
    torch.testing.assert_close(found.strength[0, 0], torch.tensor(2.0).sigmoid())


def test_a_large_object_read_many_times_takes_no_small_ones_place() -> None:
    large = torch.zeros(1, CLASSES + 7, 16, 16)
    large[:, :CLASSES] = -20
    large[:, 0], large[:, CLASSES] = 3.0, 20.0  # 256 cells, all of them sure of one object
    large[:, CLASSES + 1 : CLASSES + 5] = torch.tensor([0.5, 0.5, 0.9, 0.9])[:, None, None]
    others = [cell_map((0, 0, 1, 0.0, (0.1, 0.1, 0.05, 0.05)))] * 2
    assert find_evidence([large[:, :, :8, :8], *others], CLASSES, 4).found.sum() == 2
    assert find_evidence([large[:, :, :8, :16], *others[:1]], CLASSES, 4).found.sum() == 1


def test_things_of_two_classes_in_one_place_both_stay() -> None:
    person = (0, 0, 0, 2.0, (0.5, 0.5, 0.4, 0.6))
    coat = (0, 1, 1, 1.0, (0.5, 0.55, 0.4, 0.5))
    assert find_evidence([cell_map(person, coat)], CLASSES, 4).found.sum() == 2


def test_more_entries_than_cells_are_refused() -> None:
    with pytest.raises(ValueError, match=r"evidence_tokens is 17, but the 16 cells"):
        find_evidence([cell_map()], CLASSES, 17)


def test_faint_cells_are_no_evidence() -> None:
    faint = (0, 0, 0, -5.0, (0.5, 0.5, 0.4, 0.6))
    found = find_evidence([cell_map(faint)], CLASSES, 4)
    assert not found.found.any()
    assert pack(found).abs().sum() == 0


def test_boxes_end_at_the_canvas() -> None:
    found = find_evidence([cell_map((0, 0, 0, 3.0, (0.1, 0.9, 0.4, 0.4)))], CLASSES, 1)
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor([0.0, 0.7, 0.3, 1.0]))


def test_a_description_tells_class_and_place_apart() -> None:
    first = (0, 0, 0, 3.0, (0.2, 0.5, 0.2, 0.2))
    second = (0, 3, 0, 3.0, (0.8, 0.5, 0.2, 0.2))
    third = (3, 3, 1, 3.0, (0.8, 0.9, 0.2, 0.2))
    found = find_evidence([cell_map(first, second, third)], CLASSES, 3)
    told = describe(found)
    assert pack(found).shape[-1] == BOX_CHANNELS + told.shape[-1]
    assert (told[0, 0] - told[0, 1]).abs().max() > 0.5
    assert (told[0, 1, :CLASSES] - told[0, 2, :CLASSES]).abs().max() > 0.9


def test_overlap_of_boxes() -> None:
    first = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    second = torch.tensor([[0.25, 0.0, 0.75, 0.5], [0.6, 0.6, 0.7, 0.7]])
    torch.testing.assert_close(box_overlap(first, second), torch.tensor([[1 / 3, 0.0]]))


def test_under_another_name_only_the_class_is_another() -> None:
    found = find_evidence([cell_map((1, 0, 1, 3.0, (0.2, 0.5, 0.2, 0.4)))], CLASSES, 2)
    other = rename(found, torch.tensor([[1, 0, 2]]))
    assert other.scores.argmax(-1)[0, 0] == 0
    torch.testing.assert_close(other.boxes, found.boxes)
    assert other.states.abs().sum() == 0  # they would tell the class by its own name
    same = rename(found, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(same.scores, found.scores)
    torch.testing.assert_close(same.states, found.states)


def test_what_is_far_from_all_that_is_known_is_less_familiar() -> None:
    sure = find_evidence([cell_map((0, 0, 0, 3.0, (0.5, 0.5, 0.4, 0.6)))], CLASSES, 4)
    faint = find_evidence([cell_map((0, 0, 0, -2.5, (0.5, 0.5, 0.4, 0.6)))], CLASSES, 4)
    nothing = find_evidence([cell_map()], CLASSES, 4)
    known = [float(familiarity(pack(one), CLASSES)[0]) for one in (sure, faint, nothing)]
    assert known[0] > 0.9 > 0.2 > known[1] > known[2] == 0
