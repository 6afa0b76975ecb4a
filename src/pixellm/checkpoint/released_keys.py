"""The rename table of released weights, as data: which tensor of theirs is which of ours.

Four lists of rules, read by both directions of the conversion. It knows names only: no files, no
tensors, no values. ``{i}``, ``{j}`` and ``{k}`` count layers, scales and parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Change = Literal["same", "squeeze_first", "split_mask_tokens"]


@dataclass(frozen=True, slots=True)
class Move:
    """One entry of the expanded table.

    Attributes:
        sources: names in the released file.
        targets: names in a pixellm checkpoint.
        change: "same" keeps the values and the shape; "squeeze_first" drops the leading 1 of the
            shape; "split_mask_tokens" turns (IoU token, mask tokens) into (mask token 0, IoU
            token and the other mask tokens).
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    change: Change = "same"


@dataclass(frozen=True, slots=True)
class TableSizes:
    """How often the numbered parts of the table repeat."""

    text_layers: int
    scales: int
    decoder_layers: int
    upsampled_scales: tuple[int, ...]


_BOTH = ("weight", "bias")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")

_LANGUAGE_MODEL = {
    "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "model.norm.weight": "model.language_model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_LANGUAGE_LAYER = (
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
_LINEAR_PAIRS = {
    "model.mm_projector.0": "model.image_projector.projection.0",
    "model.mm_projector.2": "model.image_projector.projection.2",
    "model.out_mm_projector.0": "model.feature_projector.projections.0.0",
    "model.out_mm_projector.2": "model.feature_projector.projections.0.2",
    "model.image_feature_neck.1": "model.feature_projector.necks.0.1",
    "model.image_feature_neck.3": "model.feature_projector.necks.0.3",
    "model.text_hidden_fcs.0.0": "model.codebook.text_projection.0",
    "model.text_hidden_fcs.0.2": "model.codebook.text_projection.2",
    "model.mask_decoder.output_upscaling.0": "model.pixel_decoder.output_upsampler.0.0",
    "model.mask_decoder.output_upscaling.1": "model.pixel_decoder.output_upsampler.0.1",
    "model.mask_decoder.output_hypernetworks_mlps.0.layers.0": "model.pixel_decoder.mask_mlp.0",
    "model.mask_decoder.output_hypernetworks_mlps.0.layers.1": "model.pixel_decoder.mask_mlp.2",
    "model.mask_decoder.output_hypernetworks_mlps.0.layers.2": "model.pixel_decoder.mask_mlp.4",
}
_SINGLE = {
    "model.image_feature_neck.0.weight": "model.feature_projector.necks.0.0.weight",
    "model.image_feature_neck.2.weight": "model.feature_projector.necks.0.2.weight",
    "model.mask_decoder.level_embed.weight": "model.pixel_decoder.scale_embedding",
}
_BLOCK = {
    "final_attn_token_to_image": "final_attn",
    "norm_final_attn": "final_norm",
}
_BLOCK_LAYER = {
    "self_attn": "self_attn",
    "cross_attn_token_to_image": "tokens_to_pixels",
    "cross_attn_image_to_token": "pixels_to_tokens",
    "mlp.lin1": "mlp.0",
    "mlp.lin2": "mlp.2",
    "norm1": "norm1",
    "norm2": "norm2",
    "norm3": "norm3",
    "norm4": "norm4",
}

DROPPED = (
    # Heads of the mask decoder that the release never reads: the IoU estimate and the masks 1..3.
    r"model\.mask_decoder\.iou_prediction_head\.layers\.\d+\.(weight|bias)",
    r"model\.mask_decoder\.output_hypernetworks_mlps\.[1-9]\d*\.layers\.\d+\.(weight|bias)",
    # Parts of the prompt encoder for points, boxes and drawn masks.
    r"model\.prompt_encoder\.point_embeddings\.\d+\.weight",
    r"model\.prompt_encoder\.not_a_point_embed\.weight",
    r"model\.prompt_encoder\.mask_downscaling\.\d+\.(weight|bias)",
    # Rotary frequencies, computed from the configuration.
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)
"""Patterns of released names that a conversion leaves out of the model on purpose."""


def released_table(sizes: TableSizes) -> list[Move]:
    """Expand the rules for a model of the given sizes; every name occurs once."""
    moves = [Move((s,), (t,)) for s, t in {**_LANGUAGE_MODEL, **_SINGLE}.items()]
    moves += _pairs(_LINEAR_PAIRS)
    moves += language_layers(sizes.text_layers, "model.")
    for scale in range(sizes.scales):
        moves += _block(scale, sizes.decoder_layers)
    moves += [_positions(scale) for scale in range(sizes.scales)]
    for scale in sizes.upsampled_scales:
        ours = f"model.pixel_decoder.feature_upsamplers.{scale}"
        moves += _pairs({f"model.mask_decoder.upsample_2x.{i}": f"{ours}.{i}" for i in (0, 1)})
    moves.append(
        Move(
            ("model.prompt_encoder.no_mask_embed.weight",),
            ("model.pixel_decoder.pixel_embedding",),
            "squeeze_first",
        )
    )
    moves.append(
        Move(
            ("model.mask_decoder.iou_token.weight", "model.mask_decoder.mask_tokens.weight"),
            ("model.pixel_decoder.mask_token", "model.pixel_decoder.context_tokens"),
            "split_mask_tokens",
        )
    )
    return moves


def language_layers(count: int, prefix: str) -> list[Move]:
    """Moves of a LLaMA's layers whose names start with ``prefix``, such as ``model.``."""
    return [
        Move((f"{prefix}layers.{i}.{name}",), (f"model.language_model.layers.{i}.{name}",))
        for i in range(count)
        for name in _LANGUAGE_LAYER
    ]


def _pairs(names: dict[str, str]) -> list[Move]:
    return [Move((f"{s}.{end}",), (f"{t}.{end}",)) for s, t in names.items() for end in _BOTH]


def _block(scale: int, decoder_layers: int) -> list[Move]:
    theirs = f"model.mask_decoder.transformer.{scale}"
    ours = f"model.pixel_decoder.blocks.{scale}"
    parts = {f"{theirs}.{s}": f"{ours}.{t}" for s, t in _BLOCK.items()}
    for layer in range(decoder_layers):
        parts |= {
            f"{theirs}.layers.{layer}.{s}": f"{ours}.layers.{layer}.{t}"
            for s, t in _BLOCK_LAYER.items()
        }
    names: dict[str, str] = {}
    for source, target in parts.items():
        ends = [f".{p}" for p in _ATTENTION] if "attn" in source.rsplit(".", 1)[-1] else [""]
        ends = [""] if "norm" in source.rsplit(".", 1)[-1] else ends
        names |= {source + end: target + end for end in ends}
    return _pairs(names)


def _positions(scale: int) -> Move:
    home = "prompt_encoder.pe_layer" if scale == 0 else f"mask_decoder.pe{scale}"
    source = f"model.{home}.positional_encoding_gaussian_matrix"
    return Move((source,), (f"model.pixel_decoder.positions.{scale}.frequencies",))
