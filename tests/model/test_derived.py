"""Values made from weights follow them, and cost nothing of what they stand for."""

from __future__ import annotations

import copy

import torch
from torch import nn

from measuring.flops import pixellm_flops
from measuring.workload import random_config
from pixellm.model.derived import Derived
from pixellm.model.projection import FeatureProjector


def test_a_value_is_made_again_only_when_its_weights_change() -> None:
    layer, made = nn.Linear(2, 2), []
    derived = Derived[torch.Tensor]()

    def make() -> torch.Tensor:
        made.append(1)
        return layer.weight * 2

    with torch.inference_mode():
        first = derived.get([layer.weight], make)
        assert derived.get([layer.weight], make) is first
    assert not first.is_inference()
    with torch.no_grad():
        layer.weight.add_(1)
    assert torch.equal(derived.get([layer.weight], make), layer.weight * 2)
    layer.weight.data = torch.zeros(2, 2)
    assert not derived.get([layer.weight], make).any()
    assert len(made) == 3
    copied = copy.deepcopy(derived)
    assert copied.get([layer.weight], make) is not derived.get([layer.weight], make)


def test_the_folded_projector_equals_the_one_that_trains() -> None:
    torch.manual_seed(0)
    projector = FeatureProjector(random_config("tiny"), [32, 32]).eval()
    maps = [torch.randn(2, 32, 8, 8) for _ in range(2)]
    trained = projector(maps)
    with torch.inference_mode():
        folded = projector(maps)
    for one, other in zip(trained, folded, strict=True):
        assert one.requires_grad and not other.requires_grad
        torch.testing.assert_close(one.detach(), other, rtol=1e-4, atol=1e-5)
    names = set(projector.state_dict())
    with torch.no_grad():
        projector.projections[0][2].weight.mul_(-1.5)  # type: ignore[index]
        changed = projector(maps)
    torch.testing.assert_close(projector(maps)[0].detach(), changed[0], rtol=1e-4, atol=1e-5)
    assert set(projector.state_dict()) == names


def test_masks_take_little_of_an_answer_of_the_papers_model() -> None:
    config = random_config("7b")
    layers, counted = config.text_config.num_hidden_layers, []
    for few in (1, 2):
        config.text_config.num_hidden_layers = few
        counted.append(pixellm_flops(config, 64, 64, 6))
    one, two = counted
    total = one.total + (layers - 1) * (two.total - one.total)
    assert one.masks == two.masks < 0.012 * total
