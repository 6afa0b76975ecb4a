"""Steps of LLaMA's layers in few operations, for a handful of ids on a CPU.

The family's own layers take some forty small operations each, which for a step of one id cost a
small model more than its products. Here projections of the same states lie side by side, and a
layer takes about eighteen. Same weights, same numbers within rounding. Shape legend: B rows, F new
ids of a row, D text width, h heads, d head width, N positions seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel, LlamaRMSNorm

from pixellm.model.derived import Derived
from pixellm.model.rounded_product import Rounded, join_rounded, rounded_of, rounded_product
from pixellm.model.small_batch_linear import (
    MAX_ROWS,
    SmallBatchLinear,
    is_plain,
    small_batch_product,
)

Remember = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes a layer's number and its new keys and values (B, h, F, d); gives all, (B, h, N, d)."""

_LAID_TOGETHER_UP_TO = 32_000_000
"""Weights, in all layers, of which a copy is made to have them side by side."""

_PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class _Joined:
    """Linear layers of the same input: one weight where they were laid together."""

    weights: tuple[Tensor | Rounded, ...]
    biases: tuple[Tensor | None, ...]
    sizes: tuple[int, ...]

    def __call__(self, states: Tensor) -> Sequence[Tensor]:
        made = [_multiply(states, *one) for one in zip(self.weights, self.biases, strict=True)]
        return made[0].split(self.sizes, -1) if len(made) == 1 else made


class LlamaSteps(nn.Module):
    """Reads a few ids of each row behind what was read before.

    Args:
        language_model: one that :func:`can_step` holds for; its weights are read at each step.
    """

    def __init__(self, language_model: LlamaModel) -> None:
        super().__init__()
        config: Any = language_model.config
        self._whole = (language_model,)  # not a part of this module: it has no weights of its own
        self._heads = (config.num_attention_heads, config.num_key_value_heads)
        self._head_size = language_model.layers[0].self_attn.head_dim
        self._epsilon = config.rms_norm_eps
        self._layers: list[Any] = list(language_model.layers)
        self._inputs = [
            [layer.self_attn.get_submodule(name) for name in _PRODUCTS[:3]]
            + [layer.mlp.get_submodule(name) for name in _PRODUCTS[4:6]]
            for layer in self._layers
        ]
        self._read = [p for own in self._inputs for one in own for p in one.parameters()]
        self._joined: Derived[list[tuple[_Joined, _Joined]]] = Derived()

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, remember: Remember) -> Tensor:
        """Read ids.

        Args:
            ids: (B, F), at most as many as :data:`MAX_ROWS` together.
            positions: (B, F).
            mask: (B, 1, F, N) additive.
            remember: keeps keys and values.

        Returns:
            (B, F, D) states after the final norm.
        """
        (whole,) = self._whole
        states = whole.embed_tokens(ids)
        cosines, sines = (turn[:, None] for turn in whole.rotary_emb(states, positions))
        half = self._head_size // 2
        # The half that is swapped in front of the other changes its sign.
        sines = torch.cat([-sines[..., :half], sines[..., half:]], -1)
        num_queries, num_keys = self._heads
        width = states.shape[-1:]
        joined = self._joined.get(self._read, self._lay_together)
        for number, (layer, (attention, mlp)) in enumerate(zip(self._layers, joined, strict=True)):
            norm = layer.input_layernorm.weight
            query, key, value = attention(F.rms_norm(states, width, norm, self._epsilon))
            turned = self._split(torch.cat([query, key], -1), num_queries + num_keys)
            turned = torch.addcmul(turned * cosines, turned.roll(half, -1), sines)
            keys, values = remember(number, turned[:, num_queries:], self._split(value, num_keys))
            mixed = F.scaled_dot_product_attention(
                turned[:, :num_queries], keys, values, mask, enable_gqa=num_queries != num_keys
            )
            states = states + _apply(layer.self_attn.o_proj, mixed.transpose(1, 2).flatten(2))
            norm = layer.post_attention_layernorm.weight
            gate, up = mlp(F.rms_norm(states, width, norm, self._epsilon))
            states = states + _apply(layer.mlp.down_proj, F.silu(gate) * up)
        last: Tensor = whole.norm(states)
        return last

    def _split(self, states: Tensor, heads: int) -> Tensor:
        return states.unflatten(-1, (heads, self._head_size)).transpose(1, 2)

    def _lay_together(self) -> list[tuple[_Joined, _Joined]]:
        together = sum(weight.numel() for weight in self._read) <= _LAID_TOGETHER_UP_TO
        return [(_join(own[:3], together), _join(own[3:], together)) for own in self._inputs]


def can_step(language_model: Any) -> bool:
    """Whether the layers are LLaMA's own, whole, in main memory, in float32 or in 8 bits."""
    if type(language_model) is not LlamaModel or language_model.config.hidden_act != "silu":
        return False
    for layer in language_model.layers:
        for name in _PRODUCTS:
            part = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
            product = getattr(part, name)
            if type(product) not in (nn.Linear, SmallBatchLinear):
                return False
            if not is_plain(product.weight) and rounded_of(product.weight) is None:
                return False
        norms = (layer.input_layernorm, layer.post_attention_layernorm)
        if any(type(norm) is not LlamaRMSNorm for norm in norms):
            return False
    return type(language_model.embed_tokens) is nn.Embedding


def _join(layers: Sequence[nn.Linear], together: bool) -> _Joined:
    weights = tuple(rounded_of(layer.weight) or layer.weight for layer in layers)
    biases: tuple[Tensor | None, ...] = tuple(layer.bias for layer in layers)
    sizes = tuple(layer.out_features for layer in layers)
    rounded = [weight for weight in weights if isinstance(weight, Rounded)]
    if not together or 0 < len(rounded) < len(weights):
        return _Joined(weights, biases, sizes)
    given = [bias for bias in biases if bias is not None]
    whole = join_rounded(rounded) if rounded else torch.cat([layer.weight for layer in layers])
    return _Joined((whole,), (torch.cat(given) if given else None,), sizes)


def _apply(layer: nn.Linear, states: Tensor) -> Tensor:
    return _multiply(states, rounded_of(layer.weight) or layer.weight, layer.bias)


def _multiply(states: Tensor, weight: Tensor | Rounded, bias: Tensor | None) -> Tensor:
    product = rounded_product if isinstance(weight, Rounded) else small_batch_product
    return product(states, weight, bias)  # type: ignore[arg-type]


__all__ = ["MAX_ROWS", "LlamaSteps", "Remember", "can_step"]
