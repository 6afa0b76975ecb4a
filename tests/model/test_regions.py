"""The decoder over evidence: windows, the choice among entries, and their union."""

from __future__ import annotations

import torch
from torch import Tensor

from conftest import tiny_evidence_config
from pixellm.model.evidence import BOX_CHANNELS
from pixellm.model.regions import CellAttention, RegionDecoder, cut_windows, paste_windows

CANVAS = 32


def disc(x: float, y: float, radius: float) -> Tensor:
    line = (torch.arange(CANVAS) + 0.5) / CANVAS
    return ((line[None] - x) ** 2 + (line[:, None] - y) ** 2 < radius**2).float()


def a_decoder(**settings: bool | int) -> RegionDecoder:
    torch.manual_seed(0)
    config = tiny_evidence_config()
    for name, value in settings.items():
        setattr(config, name, value)
    return RegionDecoder(config).eval()


def entries_of(decoder: RegionDecoder, *boxes: tuple[float, float, float, float]) -> Tensor:
    about = decoder.key[0].in_features
    entries = torch.zeros(1, 4, BOX_CHANNELS + about)
    for place, box in enumerate(boxes):
        entries[0, place, :4] = torch.tensor(box)
        entries[0, place, 4] = 1
        entries[0, place, BOX_CHANNELS:] = torch.randn(about)
        entries[0, place, BOX_CHANNELS : BOX_CHANNELS + 3] = torch.rand(3)  # class probabilities
    return entries


def an_image(decoder: RegionDecoder, entries: Tensor) -> list[Tensor]:
    return [torch.randn(1, 16, 4, 4), torch.randn(1, 16, 16, 16), entries]


def test_what_is_cut_out_and_pasted_back_is_the_same() -> None:
    shape = disc(0.4, 0.6, 0.2)
    window = torch.tensor([[0.1, 0.3, 0.7, 0.9]])
    cut = cut_windows(shape[None, None], window, torch.zeros(1, dtype=torch.long), 28)
    back = paste_windows((cut[:, 0] - 0.5) * 10, window, CANVAS)[0] > 0
    overlap = (back & (shape > 0)).sum() / (back | (shape > 0)).sum()
    assert overlap > 0.9


def test_a_window_far_smaller_than_a_cell_keeps_its_value() -> None:
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    window = torch.tensor([[0.62, 0.62, 0.63, 0.63]])
    cut = cut_windows(maps, window, torch.zeros(1, dtype=torch.long), 2)
    torch.testing.assert_close(cut, torch.full((1, 1, 2, 2), 10.0), atol=0.7, rtol=0)


def test_windows_come_from_the_map_of_their_row() -> None:
    maps = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    windows = torch.tensor([[0.1, 0.1, 0.5, 0.5]] * 3)
    cut = cut_windows(maps, windows, torch.tensor([0, 1, 1]), 4)
    assert cut.mean((1, 2, 3)).tolist() == [0, 1, 1]


def test_a_target_is_drawn_inside_of_its_entries_windows_only() -> None:
    decoder = a_decoder()
    decoder.draw.bias.data.fill_(20)  # everything inside of a window is drawn
    decoder.choice_bias.data.fill_(20)  # and every entry is chosen
    entries = entries_of(decoder, (0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.9, 0.9))
    masks = decoder(torch.randn(1, 2, 16), an_image(decoder, entries), torch.zeros(1).long()) > 0
    assert masks.shape == (1, CANVAS, CANVAS)
    assert masks[0, 6, 6] and masks[0, 24, 24]
    assert not masks[0, 6, 24] and not masks[0, 16, 16]


def test_entries_that_are_not_chosen_leave_the_mask_empty() -> None:
    decoder = a_decoder()
    decoder.choice_bias.data.fill_(-20)
    entries = entries_of(decoder, (0.1, 0.1, 0.3, 0.3))
    logits = decoder(torch.randn(2, 2, 16), an_image(decoder, entries), torch.zeros(2).long())
    assert logits.max() < -5
    assert torch.isfinite(logits).all()


def test_an_image_without_things_has_empty_masks() -> None:
    decoder = a_decoder()
    logits = decoder(
        torch.randn(1, 2, 16), an_image(decoder, entries_of(decoder)), torch.zeros(1).long()
    )
    assert logits.max() < -5


def test_the_mask_teaches_the_choice() -> None:
    decoder = a_decoder()
    decoder.choice_bias.data.fill_(0)
    entries = entries_of(decoder, (0.1, 0.1, 0.5, 0.5), (0.5, 0.5, 0.9, 0.9))
    targets = torch.randn(1, 2, 16, requires_grad=True)
    decoder(targets, an_image(decoder, entries), torch.zeros(1).long()).sum().backward()
    assert targets.grad is not None and targets.grad[0, 0].abs().sum() > 0


def test_targets_of_two_images_are_drawn_from_their_own() -> None:
    decoder = a_decoder()
    decoder.choice_bias.data.fill_(20)
    images = [
        an_image(decoder, entries_of(decoder, (0.1, 0.1, 0.5, 0.5))),
        an_image(decoder, entries_of(decoder, (0.4, 0.4, 0.9, 0.9))),
    ]
    targets = torch.randn(2, 2, 16)
    both = [torch.cat(maps) for maps in zip(*images, strict=True)]
    together = decoder(targets, both, torch.tensor([1, 0]))
    for row, image in ((0, 1), (1, 0)):
        alone = decoder(targets[row : row + 1], images[image], torch.zeros(1).long())
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)


TWO_BOXES = ((0.1, 0.1, 0.4, 0.4), (0.6, 0.6, 0.9, 0.9))


def test_every_thing_that_is_chosen_is_a_mask_of_its_own() -> None:
    decoder = a_decoder(masks_per_thing=True)
    decoder.draw.bias.data.fill_(20)
    decoder.choice_bias.data.fill_(20)
    decoder.lone[-1].bias.data.fill_(-20)
    image = an_image(decoder, entries_of(decoder, *TWO_BOXES))
    instances = decoder.instances(torch.randn(1, 2, 16), image, torch.zeros(1).long())
    assert instances.targets.tolist() == [0, 0]
    first, second = instances.logits > 0
    assert first[8, 8] and not first[24, 24]
    assert second[24, 24] and not second[8, 8]
    assert ((instances.scores > 0) & (instances.scores < 1)).all()


def test_one_of_several_is_the_likeliest_alone() -> None:
    decoder = a_decoder(masks_per_thing=True)
    decoder.choice_bias.data.fill_(20)
    decoder.lone[-1].bias.data.fill_(20)
    image = an_image(decoder, entries_of(decoder, *TWO_BOXES))
    targets, rows = torch.randn(3, 2, 16), torch.zeros(3).long()
    instances = decoder.instances(targets, image, rows)
    assert instances.targets.tolist() == [0, 1, 2]
    best = decoder.choose(targets, image[-1], rows).argmax(1)
    for logits, place in zip(instances.logits, best.tolist(), strict=True):
        windows, _ = decoder.draw_entries(image, image[-1][:, place], torch.zeros(1).long())
        outside = torch.ones(CANVAS, CANVAS, dtype=torch.bool)
        left, top, right, bottom = (windows[0] * CANVAS).round().int().tolist()
        outside[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
        assert (logits[outside] < -5).all()


def test_what_is_not_chosen_has_its_likeliest_thing_all_the_same_but_an_empty_image_none() -> None:
    decoder = a_decoder(masks_per_thing=True)
    decoder.choice_bias.data.fill_(-5)
    targets, rows = torch.randn(1, 2, 16), torch.zeros(1).long()
    found = an_image(decoder, entries_of(decoder, *TWO_BOXES))
    assert decoder.instances(targets, found, rows).targets.tolist() == [0]
    nothing = decoder.instances(targets, an_image(decoder, entries_of(decoder)), rows)
    assert nothing.logits.shape == (0, CANVAS, CANVAS)


def test_of_two_masks_of_a_target_that_are_nearly_the_same_the_better_is_left() -> None:
    decoder = a_decoder(masks_per_thing=True)
    decoder.draw.bias.data.fill_(20)
    decoder.choice_bias.data.fill_(20)
    decoder.lone[-1].bias.data.fill_(-20)
    boxes = ((0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.52, 0.5), (0.6, 0.6, 0.9, 0.9))
    image = an_image(decoder, entries_of(decoder, *boxes))
    instances = decoder.instances(torch.randn(2, 2, 16), image, torch.zeros(2).long())
    assert instances.targets.tolist() == [0, 0, 1, 1]
    assert instances.places[instances.targets == 0].tolist()[1] == 2
    targets, rows = torch.randn(1, 2, 16), torch.zeros(1).long()
    choice = decoder.choose(targets, image[-1], rows)[0]
    entries = image[-1][0, :2]
    logits = decoder._draw(
        targets, image, torch.zeros(2).long(), torch.zeros(2).long(), torch.tensor([0, 1])
    )
    kinds = decoder.kinds(targets).softmax(-1)
    match = (kinds * decoder.class_scores(entries)).sum(1)
    worth = decoder.worth(decoder.signs(choice[:2], match, entries, logits))[:, 0]
    assert decoder.instances(targets, image, rows).places[0] == worth.argmax()


def test_a_cell_of_a_window_takes_in_what_looks_alike_wherever_it_is() -> None:
    torch.manual_seed(0)
    attention = CellAttention(8, heads=2)
    maps = torch.randn(1, 8, 6, 6)
    moved = maps.clone()
    moved[..., -1, -1] += 5
    change = (attention(moved) - attention(maps)).abs().sum(1)[0]
    assert change.shape == (6, 6)
    assert change[0, 0] > 0


def test_a_decoder_with_attention_draws_windows_of_the_same_size() -> None:
    decoder = a_decoder(decoder_region_attention=4)
    entries = entries_of(decoder, *TWO_BOXES)
    masks = decoder(torch.randn(1, 2, 16), an_image(decoder, entries), torch.zeros(1).long())
    assert masks.shape == (1, CANVAS, CANVAS)
