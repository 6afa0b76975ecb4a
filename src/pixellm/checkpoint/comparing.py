"""A layer in front of a small language model that compares names with what an encoder found.

"No, there is no zebra" takes a comparison of the name with the classes of up to 40 findings.
Training alone does not find it in a small model: it learns which kinds are mostly there. Here the
layer has it before anything is learnt. Every class has a code. The token of a finding holds the
codes of its classes, each as long as the class is likely, in directions that the embeddings of text
hardly use. Queries turn a name into the code of its class; keys and values read the codes of
findings.
Shape legend: D text width, H heads, E width of a head, k numbers of a code in each head, c classes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.model.projection import ImageProjector
from pixellm.scenes.photo_knowledge import knowledge_of_categories

_PAIRS = 10
"""Rotary pairs of each head that hold codes: the slowest, so that places matter least."""

_CODE_LENGTH = 12.0
"""Length of the code, in each head, of a class that is certain; the other numbers of a finding's
token are about as long."""

_UNSURE = 0.4
"""Of a code's full length, what a finding holds of its likeliest class, however unlikely."""

_NORM_SCALE = 2 / 3
"""How much shorter the layer's own norm makes a finding's token, and its codes with it."""

_LOGIT = 30.0
"""Attention logit of a name and a finding that is certainly of its class."""

_RIDGE = 0.01
"""Weight of the ridge with which queries are fitted: more names than one end in the same token."""

_SPREAD = 12.0
"""How much more the nearest two codes count than others, while codes are moved apart."""


@torch.no_grad()
def insert_comparing_layer(
    model: PixelLMForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Set up a layer in front of a model's language model that compares names with findings.

    The other layers keep their weights. Nothing is drawn from torch's own random numbers.

    Args:
        model: with evidence and classes that have names; its configuration gains the layer.
        tokenizer: the model's.

    Raises:
        ValueError: the encoder tells no classes, or the language model isn't of LLaMA's
            architecture with as many keys as queries, or too narrow for the codes.
    """
    config, language = model.config, model.model.language_model
    text: Any = config.text_config
    class_names = tuple(getattr(config.vision_config, "class_names", None) or ())
    heads, width = text.num_attention_heads, text.hidden_size
    size = 2 * _PAIRS
    if not config.evidence_tokens or not class_names:
        raise ValueError("A comparing layer needs an encoder that tells classes by name.")
    if text.model_type != "llama" or text.num_key_value_heads != heads:
        raise ValueError("A comparing layer needs LLaMA's architecture, each query with its key.")
    if language.layers[0].self_attn.head_dim < size or width < 2 * heads * size:
        raise ValueError(f"A language model {width} wide is too narrow for a comparing layer.")
    generator = torch.Generator().manual_seed(0)
    codes = spread_codes(len(class_names), heads, size, generator)
    table = model.get_input_embeddings().get_parameter("weight").float()
    names, classes = _last_tokens(tokenizer, class_names)
    unused = _unused_directions(_normed(table), heads * size)
    _write_codes(model.model.image_projector, codes, unused)
    layer = copy.deepcopy(language.layers[0])
    _randomise(layer, text.initializer_range, generator)
    _set_attention(
        layer.self_attn,
        codes,
        unused,
        names=_normed(table[names]),
        classes=classes,
        generator=generator,
    )
    language.layers = nn.ModuleList([layer, *language.layers])
    for index, one in enumerate(language.layers):
        one.self_attn.layer_idx = index
    text.num_hidden_layers = language.config.num_hidden_layers = len(language.layers)


def spread_codes(classes: int, heads: int, size: int, generator: torch.Generator) -> Tensor:
    """Codes (H, c, k) of length 1 of which no two are close in any head."""
    with torch.enable_grad():
        free = torch.randn(heads, classes, size, generator=generator).requires_grad_()
        optimizer = torch.optim.Adam([free], lr=0.02)
        for _ in range(1500):
            codes = F.normalize(free, dim=-1)
            likeness = codes @ codes.mT - torch.eye(classes)
            optimizer.zero_grad()
            (likeness.clamp_min(0) * _SPREAD).exp().mean().backward()
            optimizer.step()
    return F.normalize(free.detach(), dim=-1)


def _last_tokens(
    tokenizer: PreTrainedTokenizerBase, class_names: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """(N,) the last token of each name of each class, and (N,) the class."""
    knowledge, keys = knowledge_of_categories(class_names)
    ends = {
        (tokenizer(f" {phrase}", add_special_tokens=False)["input_ids"][-1], index)
        for index, name in enumerate(class_names)
        for phrase in knowledge.concepts[keys[name]].phrases
    }
    tokens, classes = torch.tensor(sorted(ends)).T
    return tokens, classes


def _normed(states: Tensor) -> Tensor:
    return F.rms_norm(states, states.shape[-1:], eps=1e-5)


def _unused_directions(words: Tensor, count: int) -> Tensor:
    """Orthonormal directions (count, D) that (N, D) words use least."""
    return torch.linalg.svd(words, full_matrices=False).Vh[-count:]


def _write_codes(projector: ImageProjector, codes: Tensor, unused: Tensor) -> None:
    """Let tokens of findings hold the codes of their classes, in directions left free for them."""
    heads, classes, size = codes.shape
    last: Any = projector.projection
    if isinstance(last, nn.Sequential):
        last = last[-1]
    written: list[Any] = [layer.weight.T for layer in (last, projector.evidence_projection)]
    written += [last.bias, projector.evidence_projection.bias, projector.nothing]
    if hasattr(projector, "positions"):
        written.append(projector.positions)
    for values in written:
        values -= values @ unused.T @ unused
    whole = codes.transpose(0, 1).reshape(classes, heads * size)
    sure = _CODE_LENGTH * unused.T @ whole.T
    likely, shares = projector.evidence_projection.weight[:, : 2 * classes].chunk(2, 1)
    likely += sure
    shares += _UNSURE * sure


def _randomise(layer: Any, spread: float, generator: torch.Generator) -> None:
    """A fresh layer that passes its input on."""
    for name, weight in layer.named_parameters():
        if weight.ndim > 1:
            weight.normal_(std=spread, generator=generator)
        else:
            weight.fill_(0 if name.endswith("bias") else 1)  # scales of norms
    layer.mlp.down_proj.weight.zero_()


def _set_attention(
    attention: Any,
    codes: Tensor,
    unused: Tensor,
    *,
    names: Tensor,
    classes: Tensor,
    generator: torch.Generator,
) -> None:
    """Let queries of names match keys of findings, and values hand on the codes that matched.

    Args:
        attention: LLaMA's.
        codes: (H, c, k).
        unused: (H * k, D).
        names: (N, D) normed embeddings that queries are fitted to.
        classes: (N,) of the names.
        generator: of the directions that what is read is written to.
    """
    heads, _, size = codes.shape
    width, inner = attention.head_dim, unused.shape[1]
    slow = _slow_dimensions(width)
    gram = names.T @ names + _RIDGE * torch.eye(inner)
    for product in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        product.weight.zero_()
    for head in range(heads):
        start = head * width
        wanted = codes[head][classes]
        query = torch.linalg.solve(gram, names.T @ wanted)
        reached = (names @ query * wanted).sum(1).mean()
        scale = (_LOGIT * width**0.5 / (reached * _NORM_SCALE * _CODE_LENGTH)).sqrt()
        own = unused[head * size : (head + 1) * size]
        for index, place in enumerate(slow):
            attention.q_proj.weight[start + place] = query[:, index] * scale
            attention.k_proj.weight[start + place] = own[index] * scale
        attention.v_proj.weight[start : start + size] = own / 2
        written = torch.randn(inner, size, generator=generator)
        attention.o_proj.weight[:, start : start + size] = F.normalize(written, dim=0)


def _slow_dimensions(width: int) -> list[int]:
    """Numbers of a head that turn with the slowest pairs; a pair is (i, i + width / 2)."""
    half = width // 2
    return [*range(half - _PAIRS, half), *range(width - _PAIRS, width)]
