"""Scripts around the photo model: classes, worth, limits, cut-outs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import calibrate_scores
import photo_baselines
from pixellm.checkpoint.io import load_model_and_processor


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("the hot dog", "hot dog"),
        ("the dogs on the left", "dog"),
        ("the tv remotes", "remote"),
        ("the tv", "tv"),
        ("a hotdogger", None),
    ],
)
def test_the_longest_noun_of_a_phrase_names_its_class(phrase: str, name: str | None) -> None:
    names = ["dog", "hot dog", "tv", "remote"]
    nouns = calibrate_scores.nouns_of(names)
    found = next((names[index] for noun, index in nouns if noun.search(phrase)), None)
    assert found == name


def test_classes_and_numbers_are_read_from_embeddings() -> None:
    torch.manual_seed(1)
    middles = torch.randn(5, 12)
    classes = torch.arange(5).repeat(600)
    embeddings = middles[classes] + 0.2 * torch.randn(3000, 12)

    def fitted(outputs: int, truth: Tensor) -> Tensor:
        inner, last = nn.Linear(12, 12), nn.Linear(12, outputs)
        readout = nn.Sequential(nn.LayerNorm(12), inner, nn.GELU(), last)
        calibrate_scores.fit_readout(readout, embeddings, truth)
        return readout(middles)

    assert fitted(5, classes).softmax(1).diagonal().min() > 0.9
    is_one = fitted(1, classes > 2)[:, 0].sigmoid()  # one of several, not all of a kind
    assert is_one[:3].max() < 0.1
    assert is_one[3:].min() > 0.9


def test_words_can_be_lifted_without_another_change() -> None:
    model, _ = load_model_and_processor("nano")
    projector = model.model.image_projector
    before = projector.evidence_projection.weight.clone()
    calibrate_scores.lift(projector, 0.5)
    changed = projector.evidence_projection.weight - before
    count = projector.num_classes
    assert torch.allclose(changed[:, count : 2 * count], 0.5 * before[:, :count], atol=1e-6)
    assert not changed[:, :count].any() and not changed[:, 2 * count :].any()


def test_worth_follows_the_shares_that_signs_tell() -> None:
    torch.manual_seed(1)
    signs = torch.randn(3000, 2)
    shares = (2 * signs[:, 0] - 1).sigmoid()
    weight, bias = calibrate_scores.fit(signs, shares)
    assert torch.allclose(weight, torch.tensor([2.0, 0.0]), atol=0.05)
    assert float(bias) == pytest.approx(-1, abs=0.05)


def test_limits_are_weighed_by_the_worth_they_keep_and_the_absent_they_deny() -> None:
    scores, ious = torch.tensor([0.9, 0.4]), torch.tensor([0.6, 0.2])
    limits, kept, denied = calibrate_scores.weigh_limits(scores, ious, torch.tensor([0.0, 0.5]))
    at = {round(float(limit), 2): place for place, limit in enumerate(limits)}
    assert kept[at[0.3]] == 1 and kept[at[0.5]] == pytest.approx(0.75)
    assert denied[at[0.3]] == 0.5 and denied[at[0.6]] == 1


def test_a_cut_out_keeps_to_the_object_in_its_box() -> None:
    image = np.full((40, 60, 3), 30, np.uint8)
    image += np.random.default_rng(0).integers(0, 10, image.shape, dtype=np.uint8)
    image[12:28, 20:40] = (0, 0, 220)
    box = (14, 6, 46, 34)
    cut = photo_baselines.cut_out(image, box)
    truth = photo_baselines.fill_box((40, 60), (20, 12, 40, 28))
    assert (cut & truth).sum() / (cut | truth).sum() > 0.9
    assert photo_baselines.fill_box((40, 60), box).sum() == 32 * 28
