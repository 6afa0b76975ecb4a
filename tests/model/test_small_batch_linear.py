"""The product of a few rows in the other order equals the usual one, and stands back elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pixellm.model.small_batch_linear import MAX_ROWS, SmallBatchLinear, use_small_batch_kernels


def pair_of_layers(bias: bool) -> tuple[nn.Linear, nn.Linear]:
    """The same weights in a plain layer and in a fast one."""
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias)
    fast = nn.ModuleList([copy.deepcopy(plain)])
    use_small_batch_kernels(fast)
    return plain, fast[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (3, 6), (MAX_ROWS, 1), (5, 40), (0, 3)])
@torch.inference_mode()
def test_equals_the_plain_layer(bias: bool, shape: tuple[int, ...]) -> None:
    plain, fast = pair_of_layers(bias)
    assert isinstance(fast, SmallBatchLinear)
    states = torch.randn(*shape, 24)
    found = fast(states)
    assert found.shape == (*shape, 40)
    assert found.is_contiguous()
    torch.testing.assert_close(found, plain(states), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])  # 3 leaves a row of the 40 over
@torch.inference_mode()
def test_threads_share_the_weights_that_a_single_row_meets(
    bias: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, fast = pair_of_layers(bias)
    monkeypatch.setattr("pixellm.model.small_batch_linear._SHARED_FROM", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    states = torch.randn(1, 1, 24)
    torch.testing.assert_close(fast(states), plain(states), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_single_row_is_compiled_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = pair_of_layers(False)
    monkeypatch.setattr("pixellm.model.small_batch_linear._SHARED_FROM", 1)
    states = torch.randn(1, 1, 24)
    whole = torch.compile(fast, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(states), plain(states), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_other_floating_types_keep_torchs_product() -> None:
    plain, fast = pair_of_layers(False)
    states = torch.randn(2, 24, dtype=torch.bfloat16)
    assert torch.equal(fast.bfloat16()(states), plain.bfloat16()(states))


def test_layers_of_other_classes_are_left_alone() -> None:
    class Adapted(nn.Linear):
        """Stands for a quantised or adapted layer of another library."""

    module = nn.ModuleList([Adapted(4, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 4)])
    use_small_batch_kernels(module)
    assert [type(layer) for layer in module] == [Adapted, nn.Conv1d, SmallBatchLinear]
