"""The shape of a PixelLM model, as a transformers configuration.

One class describes the 5 M-parameter embedded model and the 13 B one; what the released weights do
differently from the paper is a named value here, never a branch on where weights came from.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar, Literal, get_args

from transformers import AutoConfig, PreTrainedConfig

from pixellm.model import yolox_config as yolox_config  # makes this encoder's type known
from pixellm.model.evidence import CANDIDATES

TokenFusion = Literal["linear", "mean", "first", "fixed"]
CodebookStates = Literal["own", "predicting"]
HalfPrecision = Literal["bfloat16", "float16"]

_LEAST = {
    "image_size": 1,
    "image_token_id": 0,
    "num_scales": 1,
    "tokens_per_scale": 1,
    "evidence_tokens": 0,
    "llm_projector_size": 0,
    "decoder_size": 1,
    "decoder_layers": 0,
    "decoder_heads": 1,
    "decoder_mlp_size": 1,
    "decoder_context_tokens": 0,
    "decoder_mask_size": 1,
    "decoder_output_upsampling": 1,
    "decoder_region_cells": 1,
    "decoder_region_size": 1,
    "decoder_region_attention": 0,
    "decoder_detail_size": 1,
}
"""The least value of each size."""


def _as_config(value: PreTrainedConfig | dict[str, Any] | None, default: str) -> Any:
    # By name, not by class: transformers may be in the middle of importing that very class when
    # it first asks for this module.
    if value is None:
        return AutoConfig.for_model(default)
    if isinstance(value, dict):
        values = dict(value)
        if "model_type" not in values:
            raise ValueError("vision_config and text_config need a model_type each.")
        return AutoConfig.for_model(values.pop("model_type"), **values)
    return value


class PixelLMConfig(PreTrainedConfig):
    """Configuration of :class:`PixelLMForConditionalGeneration`.

    Scales are ordered coarse to fine: scale 0 is the paper's scale ``L``, decoded first.

    Attributes:
        vision_config: any transformers vision encoder whose hidden states are patch grids or
            feature maps. CLIP by default.
        text_config: any Hugging Face causal language model. LLaMA by default.
        image_size: side of the square canvas in pixels.
        image_token_id: id of the image placeholder; one placeholder per image token.
        codebook_token_ids: the ``num_scales * tokens_per_scale`` ids, scale by scale.
        num_scales: ``L`` of the paper.
        tokens_per_scale: ``N`` of the paper.
        vision_depths: index into the encoder's hidden states for each scale; entry 0 also feeds
            the language model.
        vision_channels: depth, as text, to the channels of the encoder's features there; filled in
            when a model is built, so that loading it again needs no trial run of the encoder.
        evidence_depths: hidden states of the encoder that tell, cell by cell, which instances are
            there (a detector's readings, see :mod:`pixellm.model.evidence`); empty for encoders
            that tell none. With them masks are drawn by :mod:`pixellm.model.regions`.
        evidence_tokens: most instances found that the language model and the decoder read; each is
            an image token behind those of the grid.
        mask_padding: leave patches of padding out of the encoder's attention keys (needs a ViT
            that takes an attention mask; convolutional encoders have no keys to leave out).
        freeze_batch_norm: keep the encoder's batch norms in evaluation mode while training.
        llm_grid: (height, width) of the grid of image tokens in the language model.
        llm_projector_size: inner width of the projection into the language model; 0 makes it a
            single linear layer.
        llm_positions: add a learned position to each image token; neighbours start alike.
        llm_normalise: normalise the features of each cell before the projection into the language
            model, and start positions at the same scale, so that neither drowns the other.
        shared_projector: one projection into the decoder for all scales, as in the release;
            otherwise one per scale, needed where scales differ in width.
        decoder_projector_sizes: [inner, output] widths of the projection into the decoder before
            the neck; empty where the neck reads the encoder's features directly.
        neck_top_down: add the upsampled coarser scale to each finer one in the neck, before its
            3 x 3 convolution, which then adds to the sum.
        decoder_size: width ``C`` of the pixel decoder.
        decoder_layers: two-way layers per attention block.
        decoder_heads: attention heads.
        decoder_mlp_size: inner width of the blocks' perceptron.
        decoder_context_tokens: learned query tokens beside the mask token and the target.
        decoder_upsampling: per scale, by what factor (1 or 2) features grow before attention.
        decoder_mask_size: channels of the map that the mask is read from.
        decoder_output_upsampling: number of x2 steps from a block's grid to its mask logits.
        decoder_similarity: add the direct similarity of embedding and features, both normalised,
            to each block; absent in converted released models.
        decoder_region_cells: cells along a side of the window in which an instance found is drawn;
            its mask has twice as many.
        decoder_region_size: channels of these windows.
        masks_per_thing: a phrase may stand for several instances, each with a mask of its own; with
            evidence alone.
        decoder_region_attention: heads with which the cells of a window look at each other; 0 for
            none.
        decoder_detail_depth: hidden state of the encoder whose fine map sharpens the masks in the
            windows; None for none.
        decoder_detail_size: its channels.
        scale_weights: "learned" keeps gamma on the simplex and trains it, "fixed" keeps the
            uniform ``1 / L``.
        token_fusion: "linear" is the paper's phi, "mean" and "first" are baselines, "fixed"
            multiplies the sum of a scale's tokens by ``fusion_constant``.
        fusion_constant: see above; the release uses 1/6.
        codebook_states: "own" reads a codebook token's own hidden state, "predicting" the state
            of the position before it, as the release does.
        min_mask_score: an engine filters masks whose score, the mean probability over their
            pixels, is lower; 0 shows all, as the paper does.
        gpu_dtype: floating type that the model is run in on a GPU where no other is asked for.
        target_refinement_alpha: alpha of the target refinement loss; 1 switches it off.
        text_loss_weight: weight of the text cross-entropy.
        mask_loss_weight: lambda_ref.
        dice_loss_weight: lambda_dice.
    """

    model_type = "pixellm"
    sub_configs: ClassVar[dict[str, Any]] = {
        "vision_config": AutoConfig,
        "text_config": AutoConfig,
    }

    vision_config: Any = None
    text_config: Any = None
    image_size: int = 448
    image_token_id: int = 32000
    codebook_token_ids: list[int] = field(default_factory=list)
    num_scales: int = 2
    tokens_per_scale: int = 3
    vision_depths: list[int] = field(default_factory=list)
    vision_channels: dict[str, int] = field(default_factory=dict)
    evidence_depths: list[int] = field(default_factory=list)
    evidence_tokens: int = 0
    mask_padding: bool = True
    freeze_batch_norm: bool = True
    llm_grid: list[int] = field(default_factory=list)
    llm_projector_size: int = 8192
    llm_positions: bool = False
    llm_normalise: bool = False
    shared_projector: bool = False
    decoder_projector_sizes: list[int] = field(default_factory=list)
    neck_top_down: bool = False
    decoder_size: int = 256
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_mlp_size: int = 2048
    decoder_context_tokens: int = 4
    decoder_upsampling: list[int] = field(default_factory=list)
    decoder_mask_size: int = 32
    decoder_output_upsampling: int = 1
    decoder_similarity: bool = False
    decoder_region_cells: int = 28
    decoder_region_size: int = 32
    decoder_region_attention: int = 0
    masks_per_thing: bool = False
    decoder_detail_depth: int | None = None
    decoder_detail_size: int = 16
    scale_weights: Literal["learned", "fixed"] = "learned"
    token_fusion: TokenFusion = "linear"
    fusion_constant: float = 1.0
    codebook_states: CodebookStates = "own"
    min_mask_score: float = 0.0
    gpu_dtype: HalfPrecision = "bfloat16"
    target_refinement_alpha: float = 2.0
    text_loss_weight: float = 1.0
    mask_loss_weight: float = 2.0
    dice_loss_weight: float = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from other settings, and check all."""
        self.vision_config = _as_config(self.vision_config, "clip_vision_model")
        self.text_config = _as_config(self.text_config, "llama")
        first, scales = self.image_token_id + 1, self.num_scales
        ids = self.codebook_token_ids or range(first, first + self.group_size)
        self.codebook_token_ids = list(ids)
        self.vision_depths = list(self.vision_depths or [-2, -11][:scales])
        self.vision_channels = dict(self.vision_channels or {})
        self.evidence_depths = list(self.evidence_depths or ())
        self.llm_grid = list(self.llm_grid or (16, 16))
        self.decoder_projector_sizes = list(self.decoder_projector_sizes or ())
        self.decoder_upsampling = list(self.decoder_upsampling or [1, 2, 2, 2][:scales])
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)
        self._check()

    @property
    def group_size(self) -> int:
        """Tokens of one codebook group, ``L * N``."""
        return self.num_scales * self.tokens_per_scale

    @property
    def num_image_tokens(self) -> int:
        """Placeholders that one image takes in the language model."""
        return self.llm_grid[0] * self.llm_grid[1] + self.evidence_tokens

    @property
    def read_depths(self) -> list[int]:
        """Hidden states of the encoder that are read: the scales', the evidence's, the detail."""
        detail = () if self.decoder_detail_depth is None else (self.decoder_detail_depth,)
        return [*self.vision_depths, *self.evidence_depths, *detail]

    def _check(self) -> None:
        """Refuse shapes that cannot work, one sentence a rule."""
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        candidates = CANDIDATES * len(self.evidence_depths)
        rules = {
            f"codebook_token_ids holds {len(self.codebook_token_ids)} ids, but num_scales x "
            f"tokens_per_scale is {self.group_size}.": len(self.codebook_token_ids)
            == self.group_size,
            "codebook_token_ids repeats an id.": len(set(self.codebook_token_ids))
            == len(self.codebook_token_ids),
            f"vision_depths holds {len(self.vision_depths)} entries for {self.num_scales} "
            "scales.": len(self.vision_depths) == self.num_scales,
            f"decoder_upsampling holds {len(self.decoder_upsampling)} entries for "
            f"{self.num_scales} scales.": len(self.decoder_upsampling) == self.num_scales,
            f"llm_grid is {self.llm_grid}; it must be [height, width].": len(self.llm_grid) == 2
            and all(isinstance(side, int) and side > 0 for side in self.llm_grid),
            "decoder_upsampling entries must be 1 or 2.": set(self.decoder_upsampling) <= {1, 2},
            "decoder_projector_sizes must be empty or [inner, output].": len(
                self.decoder_projector_sizes
            )
            in (0, 2),
            f"decoder_size {self.decoder_size} must be a multiple of 2 x decoder_heads "
            f"({self.decoder_heads}).": self.decoder_size % (2 * self.decoder_heads) == 0,
            "evidence_depths and evidence_tokens need each other.": bool(self.evidence_depths)
            == (self.evidence_tokens > 0),
            "masks_per_thing and decoder_region_attention need evidence_tokens.": (
                self.evidence_tokens > 0
                or not (self.masks_per_thing or self.decoder_region_attention)
            ),
            f"decoder_region_attention is {self.decoder_region_attention}; it must divide "
            f"decoder_region_size, {self.decoder_region_size}.": (
                self.decoder_region_size % max(1, self.decoder_region_attention) == 0
            ),
            f"evidence_tokens is {self.evidence_tokens}; it must be at most {candidates}, "
            f"{CANDIDATES} for each entry of evidence_depths.": (
                self.evidence_tokens <= candidates or not self.evidence_depths
            ),
            f"target_refinement_alpha is {self.target_refinement_alpha}; it must be at least 1.": (
                self.target_refinement_alpha >= 1
            ),
            f"min_mask_score is {self.min_mask_score}; it must lie in 0 to 1.": (
                0 <= self.min_mask_score <= 1
            ),
            f"gpu_dtype is {self.gpu_dtype!r}; it must be bfloat16 or float16.": self.gpu_dtype
            in get_args(HalfPrecision),
        }
        for message, holds in rules.items():
            if not holds:
                raise ValueError(message)


AutoConfig.register(PixelLMConfig.model_type, PixelLMConfig, exist_ok=True)
