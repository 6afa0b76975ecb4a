"""How much memory a run takes on each GPU, estimated on tensors without storage.

Weights, gradients and optimizer are counted; activations are what autograd keeps of the real
modules, run on meta tensors.
What the CUDA context and the allocator's gaps add is not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pixellm.model.supervision import PIXELS_AT_ONCE
from pixellm.training.config import RunConfig, Stage

Strategy = Literal["DDP", "FSDP2"]

TARGETS_PER_IMAGE = 6
"""Masks that an image is taken to ask for."""

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Per weight: 4 bits, an 8-bit scale per 64 weights, a float32 scale per 256 of these."""

_LOGIT_BYTES = 14
"""Per logit at the peak: 16 bits, float32, its softmax and its gradient."""

_MASK_PIXEL_BYTES = 40
"""Per pixel of masks whose losses are computed together: logits, truth and what comes of them."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on each GPU.

    Attributes:
        strategy: how the processes share the work; on one GPU, "DDP" is plain training.
        weights: of the model, gathered layers and float32 copies included.
        optimizer: moments, and the average where the recipe keeps one.
        activations: at the peak, for rows of the greatest length.
    """

    strategy: Strategy
    num_gpus: int
    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(
    model: Any, trained: set[str], config: RunConfig, stage: Stage, num_gpus: int
) -> list[MemoryEstimate]:
    """One estimate for each strategy that the number of GPUs allows.

    The model lies on meta tensors, its adapters attached; ``trained`` names what trains.
    """
    activations = count_activations(model, config, stage)
    mixed = config.precision == "bf16"
    compute_bytes, frozen_bytes = 2 if mixed else 4, 2 if mixed and config.lora is not None else 4
    layers = _layers(model)
    in_layers = {id(p) for layer in layers for p in layer.parameters() if p.ndim == 2}
    weights, moving = 0.0, 0
    for name, parameter in model.named_parameters():
        quantized = config.quantize == "nf4" and id(parameter) in in_layers
        small = _NF4_BYTES if quantized else frozen_bytes
        weights += parameter.numel() * (4 if name in trained else small)
        moving += parameter.numel() * (name in trained)
    gradients, moments = 4.0 * moving, 8.0 * moving
    # Autocast keeps a 16-bit copy of every matrix that trains until the backward pass.
    casts = moving * 2 if mixed else 0
    # Buckets of gradients lie beside the gradients themselves.
    buckets = gradients if num_gpus > 1 else 0.0
    average = 4 * moving if config.ema_decay > 0 else 0
    whole = MemoryEstimate(
        "DDP", num_gpus, weights + casts, gradients + buckets, moments + average, activations
    )
    if num_gpus == 1:
        return [whole]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    root = sum(p.numel() for p in model.parameters()) - sum(sizes)
    gathered = (root + 2 * max(sizes, default=0)) * compute_bytes
    parts = (weights / num_gpus + gathered, gradients / num_gpus, moments / num_gpus)
    return [whole, MemoryEstimate("FSDP2", num_gpus, *parts, activations)]


def _layers(model: Any) -> list[nn.Module]:
    """The layers that are sharded or recomputed one by one."""
    names = set(getattr(model.model.language_model, "_no_split_modules", None) or ())
    return [m for m in model.model.language_model.modules() if type(m).__name__ in names]


def count_activations(model: Any, config: RunConfig, stage: Stage) -> float:
    """Bytes that one micro-batch keeps for its backward pass, at the peak.

    The model lies on meta tensors; its language model is left in the type that it computes in.
    """
    rows, length = stage.batch_size, config.collate.max_length
    sizes = model.config
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    total = 0.0
    if not stage.loss.encoder_only:
        total += _language_model_bytes(model, rows, length, dtype)
        answers = max(1, length - sizes.num_image_tokens) * rows
        total += answers * sizes.text_config.vocab_size * _LOGIT_BYTES
        looks = 2 if stage.loss.absent > 0 else 1  # that loss decodes each target once more
        total += looks * _decoder_bytes(model, rows) + PIXELS_AT_ONCE * _MASK_PIXEL_BYTES
    if any(p.requires_grad for p in model.model.vision_tower.parameters()):
        total += _vision_bytes(model, rows)
    return total


def _language_model_bytes(model: Any, rows: int, length: int, dtype: torch.dtype) -> float:
    """Kept by the language model; where layers are recomputed, their inputs and one layer."""
    language_model = model.model.language_model.to(dtype).train()
    layers = max(1, len(_layers(model)))
    states = torch.empty(rows, length, model.config.text_config.hidden_size, device="meta")

    # As in training: the mask that keeps packed dialogues apart, whole, where the family takes one.
    mask = torch.empty(rows, length, device="meta")
    if model.model.reading.packs:
        mask = torch.empty(rows, 1, length, length, device="meta", dtype=dtype)

    def run() -> Any:
        inputs = states.to(dtype).requires_grad_()
        output = language_model(inputs_embeds=inputs, attention_mask=mask, use_cache=False)
        return output.last_hidden_state

    kept = mask.nbytes + kept_bytes(run, language_model, square=length)
    if getattr(language_model, "is_gradient_checkpointing", False):  # `kept` are the inputs alone
        language_model.gradient_checkpointing_disable()
        kept += kept_bytes(run, language_model, square=length) / layers
        language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return kept


def _decoder_bytes(model: Any, rows: int) -> float:
    """Kept by codebook, neck and decoder, in float32."""
    config, inner = model.config, model.model
    count = rows * TARGETS_PER_IMAGE
    parts = (inner.codebook, inner.feature_projector, inner.pixel_decoder, inner.vision_tower)
    for part in parts:
        part.float()
    with torch.no_grad():
        side = config.image_size
        maps = inner.vision_tower(torch.empty(rows, 3, side, side, device="meta"))
    width = config.text_config.hidden_size
    states = torch.empty(count, config.group_size, width, device="meta")
    owners = torch.zeros(count, dtype=torch.long, device="meta")

    def run() -> Any:
        features = inner.decoder_features(maps)
        if config.evidence_tokens:  # which instances are drawn only their data tell: one a target
            return [*features, inner.codebook(states), inner.pixel_decoder.draw_blank(count)]
        return inner.pixel_decoder(inner.codebook(states), features, owners)

    return kept_bytes(run, inner)


def _vision_bytes(model: Any, rows: int) -> float:
    """Kept by an encoder that trains, in float32."""
    tower, side = model.model.vision_tower.float(), model.config.image_size
    pixels = torch.empty(rows, 3, side, side, device="meta")
    return kept_bytes(lambda: tower(pixels), tower)


def kept_bytes(run: Callable[[], Any], module: nn.Module, square: int = 0) -> float:
    """Bytes of the tensors that autograd keeps while ``run`` runs, each storage once.

    Parameters and buffers of the module are not counted, nor are tensors of ``square`` x ``square``
    entries: fused attention keeps no probabilities, while on meta tensors they would be made.
    """
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        attention = square > 0 and tensor.ndim >= 3 and tensor.shape[-2:] == (square, square)
        if key not in own and not attention:
            kept[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return float(total)
