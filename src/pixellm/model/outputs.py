"""What the model's parts hand on: encoded images, and all that a forward pass gives.

Plain holders of tensors, documented with their shapes; nothing is computed here. Shape legend:
B rows, T tokens, D text width, S image tokens, C decoder width, V vocabulary, L scales,
M targets, h w a grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class EncodedImages:
    """What an image is to the rest of the model; reused over questions and turns.

    Attributes:
        tokens: (B, S, D) inputs of the language model.
        features: per scale (B, C, h_l, w_l) inputs of the pixel decoder.
    """

    tokens: Tensor
    features: list[Tensor]

    @property
    def num_bytes(self) -> int:
        """What all of it takes in memory."""
        return sum(part.nbytes for part in (self.tokens, *self.features))

    def select(self, rows: Tensor) -> EncodedImages:
        """The images of ``rows`` (R,), in that order, repeats allowed."""
        return EncodedImages(self.tokens[rows], [f[rows] for f in self.features])


@dataclass
class PixelLMOutput(ModelOutput):
    """Output of :class:`PixelLMForConditionalGeneration`.

    Attributes:
        loss: weighted sum of the parts below, where labels are given.
        text_loss: summed cross-entropy over the number of labelled tokens.
        mask_loss: target refinement loss over the number of targets.
        dice_loss: DICE over the number of targets.
        logits: (B, T, V); None while training, where only labelled positions are needed.
        hidden_states: (B, T, D) after the final norm; with ``output_hidden_states`` a tuple of
            them instead, the embeddings first, as the language model gives it.
        attentions: with ``output_attentions`` (B, heads, T, T) per layer of the language model.
        mask_logits: (M, h, w) in the canvas frame, where ``target_rows`` are given.
        feature_maps: per scale the encoder's (B, C_l, h_l, w_l) maps.
        decoder_features: per scale the decoder's (B, C, h_l, w_l) inputs, while training.
        target_embeddings: (M, L, C), while training.
        cache: the language model's.
    """

    loss: Tensor | None = None
    text_loss: Tensor | None = None
    mask_loss: Tensor | None = None
    dice_loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Tensor | tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    mask_logits: Tensor | None = None
    feature_maps: list[Tensor] | None = None
    decoder_features: list[Tensor] | None = None
    target_embeddings: Tensor | None = None
    cache: Any = None
