"""Integer products of weights in 8 bits are those of their floats within the rounding of states."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from pixellm.model import rounded_product as module
from pixellm.model.rounded_product import join_rounded, rounded_of, rounded_product
from pixellm.model.small_batch_linear import use_small_batch_kernels


@pytest.fixture(autouse=True)
def on_a_processor_that_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_multiplies_integers", lambda: True)


def in_8_bits(layer: nn.Linear) -> nn.Linear:
    whole = nn.ModuleList([copy.deepcopy(layer)])
    quantize_(whole, Int8WeightOnlyConfig())
    return whole[0]  # type: ignore[return-value]


def difference(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 6), (5, 40)])
@torch.inference_mode()
def test_a_layer_in_8_bits_gives_what_its_weights_give(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rounded = in_8_bits(nn.Linear(64, 96, bias=bias))
    use_small_batch_kernels(whole := nn.ModuleList([rounded]))
    states = torch.randn(*shape, 64)
    exact = nn.functional.linear(states, rounded.weight.dequantize(), rounded.bias)
    found = whole[0](states)
    assert found.shape == (*shape, 96)
    assert 0 < difference(found, exact) < 0.02


@torch.inference_mode()
def test_each_row_is_rounded_by_its_own_size() -> None:
    torch.manual_seed(0)
    weight = rounded_of(in_8_bits(nn.Linear(64, 96, bias=False)).weight)
    assert weight is not None
    states = torch.randn(3, 64) * torch.tensor([[1e-4], [1.0], [1e4]])
    exact = states @ (weight.integers * weight.scales[:, None]).T
    for found, wanted in zip(rounded_product(states, weight), exact, strict=True):
        assert difference(found, wanted) < 0.02
    assert torch.equal(rounded_product(torch.zeros(2, 64), weight), torch.zeros(2, 96))
    assert rounded_product(states.bfloat16(), weight).dtype is torch.bfloat16


@torch.inference_mode()
def test_joined_weights_give_what_each_gives() -> None:
    torch.manual_seed(0)
    weights = [rounded_of(in_8_bits(nn.Linear(64, size)).weight) for size in (32, 96)]
    known = [weight for weight in weights if weight is not None]
    states = torch.randn(2, 64)
    each = torch.cat([rounded_product(states, weight) for weight in known], -1)
    assert len(known) == 2
    assert torch.equal(rounded_product(states, join_rounded(known)), each)


def test_other_weights_are_not_taken_for_it() -> None:
    layer = nn.Linear(64, 96)
    assert rounded_of(layer.weight) is None
    assert rounded_of(nn.Linear(64, 96, device="meta").weight) is None


def test_where_integers_are_no_faster_floats_are_multiplied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounded = in_8_bits(nn.Linear(64, 96))
    monkeypatch.setattr(module, "_multiplies_integers", lambda: False)
    assert rounded_of(rounded.weight) is None
