"""Steps with few operations say what the family's own layers say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import LlamaConfig
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import LlamaModel

from pixellm.model import llama_steps, rounded_product
from pixellm.model.llama_steps import LlamaSteps, can_step


def tiny_llama(**changes: Any) -> LlamaModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 50}
    return LlamaModel(LlamaConfig(**{**sizes, **heads, **changes})).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"attention_bias": True},
        {"head_dim": 16},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
)
@pytest.mark.parametrize("together", [True, False])
@torch.no_grad()
def test_steps_give_the_familys_own_states(
    changes: dict[str, Any], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not together:
        monkeypatch.setattr(llama_steps, "_LAID_TOGETHER_UP_TO", 0)
    model = tiny_llama(**changes)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert can_step(model)
    steps, ids = LlamaSteps(model), torch.randint(50, (2, 9))
    whole = model(ids).last_hidden_state
    cache = DynamicCache(config=model.config)
    for start, end in ((0, 4), (4, 5), (5, 9)):
        count = end - start
        seen = torch.arange(end) <= torch.arange(start, end)[:, None]
        mask = torch.zeros(2, 1, count, end).masked_fill(~seen, torch.finfo(torch.float32).min)
        positions = torch.arange(start, end).expand(2, -1)
        states = steps(
            ids[:, start:end], positions, mask, lambda layer, k, v: cache.update(k, v, layer)
        )
        torch.testing.assert_close(states, whole[:, start:end], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("together", [True, False])
@torch.no_grad()
def test_steps_of_a_model_in_8_bits_multiply_its_integers(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounded_product, "_multiplies_integers", lambda: True)
    if not together:
        monkeypatch.setattr(llama_steps, "_LAID_TOGETHER_UP_TO", 0)
    model = tiny_llama(attention_bias=True)
    exact = copy.deepcopy(model)
    quantize_(model, Int8WeightOnlyConfig())
    assert can_step(model)
    ids = torch.tensor([[3], [7]])
    inputs = ids, torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1, 1, 1)
    states = LlamaSteps(model)(*inputs, lambda layer, k, v: (k, v))
    wanted = exact(ids).last_hidden_state
    assert 0 < float((states - wanted).norm() / wanted.norm()) < 0.03


@torch.no_grad()
def test_steps_follow_weights_that_change() -> None:
    model = tiny_llama()
    steps, ids = LlamaSteps(model), torch.tensor([[3]])
    inputs = ids, torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 1, 1)
    before = steps(*inputs, lambda layer, k, v: (k, v))
    model.layers[1].mlp.gate_proj.weight.mul_(2)
    after = steps(*inputs, lambda layer, k, v: (k, v))
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, model(ids).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_other_layers_are_left_to_their_family() -> None:
    assert not can_step(tiny_llama(hidden_act="gelu"))
    assert not can_step(tiny_llama().to(torch.bfloat16))
    adapted = tiny_llama()
    adapted.layers[0].self_attn.q_proj = torch.nn.Sequential(adapted.layers[0].self_attn.q_proj)
    assert not can_step(adapted)
    assert not can_step(torch.nn.Linear(2, 2))
