"""Any causal language model of transformers: its parts, what it takes, its own way to logits.

Families differ in more than their layers. Heads have biases, logits are scaled or capped, some
layers see a window only, some models take no positions or no prepared attention mask. What can be
asked of the family's own class is asked there, so that nothing of it is lost. Shape legend: B rows,
T tokens, N positions, D text width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from pixellm.model.attention import packed_attention_mask
from pixellm.model.small_batch_linear import SmallBatchLinear

GROWING_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of caches that take several ids at a time, whatever was read before."""


class LanguageModelHead(SmallBatchLinear):
    """States of any floating type to the type of its weights, then through them."""

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) states to (..., V)."""
        return super().forward(states.to(self.weight.dtype))


class FamilyLogits:
    """How a family makes logits of its last states, besides multiplying them with its head.

    Its own ``forward`` does it, with the layers taken out: scales, caps and whatever else it does.

    Args:
        causal: the family's model for causal language modelling; its layers are taken out.
        layers: the name of the module that holds them.
    """

    def __init__(self, causal: Any, layers: str) -> None:
        setattr(causal, layers, _GivenStates())
        self._causal = causal

    def __call__(self, head: nn.Module, states: Tensor) -> Tensor:
        """(N, D) states after the final norm to (N, V) logits.

        Args:
            head: what stands for the family's head now, such as one under an adapter.
            states: of any floating type.
        """
        self._causal.set_output_embeddings(head)
        output = self._causal(inputs_embeds=states[None], use_cache=False, return_dict=True)
        logits: Tensor = output.logits[0]
        return logits


class _StatesAlone(BaseModelOutputWithPast):
    """Last states, and None for whatever else a family would hand on of its layers' output."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _GivenStates(nn.Module):
    """Stands where a language model's layers were, and hands on the states that it is given."""

    @property
    def decoder(self) -> _GivenStates:
        """Itself: OPT calls its layers by this name within another."""
        return self

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> BaseModelOutputWithPast:
        return _StatesAlone(last_hidden_state=inputs_embeds)


@dataclass(frozen=True)
class LanguageParts:
    """A causal language model taken apart.

    Attributes:
        layers: token table, layers and final norm.
        head: (V, D), with a bias where the family has one.
        logits: the family's own way from states and head to logits.
    """

    layers: nn.Module
    head: nn.Linear
    logits: FamilyLogits


def build_language_parts(config: PreTrainedConfig) -> LanguageParts:
    """Build a family's own causal language model, fresh, and take it apart."""
    kind = config.model_type
    if config.get_text_config() is not config:
        raise ValueError(
            f"A {kind} model is more than a language model; name its language model alone, of "
            f"type {config.get_text_config().model_type!r}."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"transformers has no causal language model of type {kind!r}; choose another."
        )
    causal: Any = AutoModelForCausalLM.from_config(config)
    head, name = causal.get_output_embeddings(), layers_name(causal)
    if name is None or not isinstance(head, nn.Linear):
        raise ValueError(f"A {kind} model has no token table and head of its own; choose another.")
    layers = getattr(causal, name)
    known = {id(p) for part in (layers, head) for p in part.parameters()}
    if any(id(p) not in known for p in causal.parameters()):
        raise ValueError(
            f"A {kind} model has weights between its last layer and its head, which PixelLM has "
            "no place for; choose another language model."
        )
    width = layers.get_input_embeddings().weight.shape[1]
    if not width == config.hidden_size == head.in_features:
        raise ValueError(
            f"This {kind} model's tokens are {width} wide and its states {config.hidden_size}; "
            "PixelLM needs them alike, so choose another size of it."
        )
    if type(head) is nn.Linear:
        head.__class__ = LanguageModelHead
    return LanguageParts(layers, head, FamilyLogits(causal, name))


def layers_name(causal: Any) -> str | None:
    """The name of the child of a family's causal language model that reads ids or embeddings."""
    for name, child in causal.named_children():
        takes = inspect.signature(child.forward).parameters
        if hasattr(child, "get_input_embeddings") and "inputs_embeds" in takes:
            return str(name)
    return None


@dataclass(frozen=True)
class ReadingRules:
    """What a family's layers take beside embeddings.

    Attributes:
        arguments: names of their forward's arguments.
        packs: whether several dialogues may lie in one row, kept apart by a prepared mask;
            otherwise each is read in a row of its own, which is slower and always right.
        caches: whether what was read may be kept in the family's own cache, and added to as one
            likes.
        windows: kind of layer, as the family names it, to the number of tokens up to and
            including its own that a token sees there; None for all.
    """

    arguments: frozenset[str]
    packs: bool
    caches: bool
    windows: Mapping[str, int | None]

    def select(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the arguments that the layers take by name."""
        return {name: value for name, value in arguments.items() if name in self.arguments}

    def packed_masks(
        self, attention_mask: Tensor, positions: Tensor, dialogue_ids: Tensor, dtype: torch.dtype
    ) -> Tensor | dict[str, Tensor]:
        """The additive (B, 1, T, T) mask of packed dialogues, or one for each kind of layer.

        Args:
            attention_mask: (B, T), see :func:`packed_attention_mask`.
            positions: (B, T) of each token in its dialogue.
            dialogue_ids: (B, T).
            dtype: floating type of the masks.
        """
        length = attention_mask.shape[1]
        short = {kind: w if w and w < length else None for kind, w in self.windows.items()}
        masks = {
            window: packed_attention_mask(attention_mask, dialogue_ids, dtype, positions, window)
            for window in set(short.values())
        }
        if len(masks) == 1:
            return next(iter(masks.values()))
        return {kind: masks[window] for kind, window in short.items()}


def reading_rules(layers: Any, config: PreTrainedConfig) -> ReadingRules:
    """What the layers of a language model take.

    Args:
        layers: of :class:`LanguageParts`.
        config: their configuration.
    """
    arguments = frozenset(inspect.signature(layers.forward).parameters)
    cached = DynamicCache(config=config).layers
    grows = bool(cached) and all(type(layer) in GROWING_LAYERS for layer in cached)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(cached)
    # A family that mixes in a bias of its own, or chunks, would spoil a prepared mask or ignore it.
    packs = (
        grows
        and "position_ids" in arguments
        and bool(getattr(layers, "_supports_attention_backend", False))
        and {*kinds} <= {"full_attention", "sliding_attention"}
    )
    windows = {
        kind: getattr(layer, "sliding_window", None)
        for kind, layer in zip(kinds, cached, strict=False)
    }
    return ReadingRules(arguments, packs, grows and "cache" in arguments, windows)
