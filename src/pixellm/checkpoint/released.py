"""Released PixelLM weights to a pixellm checkpoint and back, by one table of names.

The table is our model's own names, each with the release's name for it: every tensor of the
source is used or dropped by name, every one of ours is filled, and shapes agree. Parts of the
release that nothing reads are left out. The whole model is in memory; pickled archives stay on
disk until a tensor of them is written.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock
from torch import Tensor
from transformers import CLIPVisionConfig, GenerationConfig

from pixellm.checkpoint.fingerprint import fingerprint_files
from pixellm.checkpoint.hub import fetch_directory
from pixellm.checkpoint.model_files import check_files, expected_shapes, read_json
from pixellm.checkpoint.pretrained import from_pretrained
from pixellm.checkpoint.released_config import (
    RELEASED_ARCHITECTURE,
    is_released,
    released_pixellm_config,
    released_processor,
    released_tower_config,
)
from pixellm.checkpoint.sentencepiece_tokenizer import build_fast_tokenizer
from pixellm.checkpoint.weights import (
    Progress,
    check_disk_space,
    first_names,
    read_weights,
    write_weights,
)
from pixellm.files import new_folder
from pixellm.model.config import PixelLMConfig
from pixellm.model.vision import resize_position_table

KEPT_DIR = "released"
"""Folder of a converted checkpoint with the small files of the release, for the way back."""

_KEPT_BYTES = 64 << 20
_WEIGHT_SUFFIXES = (".bin", ".safetensors", ".pt", ".pth", ".h5", ".msgpack")
_TOWER = "model.vision_tower.encoder."
_DECODER = r"model\.pixel_decoder\."
_BLOCK = _DECODER + r"blocks\.(\d+)\."
_LAYER = _BLOCK + r"layers\.(\d+)\."
_THEIR_BLOCK = r"model.mask_decoder.transformer.\1."
_THEIR_LAYER = _THEIR_BLOCK + r"layers.\2."
_HEAD = "model.mask_decoder.output_hypernetworks_mlps.0.layers."
_FREQUENCIES = "positional_encoding_gaussian_matrix"

_RULES = tuple(
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"lm_head\.", "lm_head."),
        (r"model\.language_model\.", "model."),
        (r"model\.image_projector\.projection\.", "model.mm_projector."),
        (r"model\.feature_projector\.projections\.0\.", "model.out_mm_projector."),
        (r"model\.feature_projector\.necks\.0\.", "model.image_feature_neck."),
        (r"model\.codebook\.text_projection\.", "model.text_hidden_fcs.0."),
        (_BLOCK + r"final_attn\.", _THEIR_BLOCK + "final_attn_token_to_image."),
        (_BLOCK + r"final_norm\.", _THEIR_BLOCK + "norm_final_attn."),
        (_LAYER + r"tokens_to_pixels\.", _THEIR_LAYER + "cross_attn_token_to_image."),
        (_LAYER + r"pixels_to_tokens\.", _THEIR_LAYER + "cross_attn_image_to_token."),
        (_LAYER + r"mlp\.0\.", _THEIR_LAYER + "mlp.lin1."),
        (_LAYER + r"mlp\.2\.", _THEIR_LAYER + "mlp.lin2."),
        (_LAYER, _THEIR_LAYER),
        (_DECODER + r"output_upsampler\.0\.", "model.mask_decoder.output_upscaling."),
        (_DECODER + r"mask_mlp\.0\.", _HEAD + "0."),
        (_DECODER + r"mask_mlp\.2\.", _HEAD + "1."),
        (_DECODER + r"mask_mlp\.4\.", _HEAD + "2."),
        (_DECODER + r"scale_embedding", "model.mask_decoder.level_embed.weight"),
        (_DECODER + r"feature_upsamplers\.1\.", "model.mask_decoder.upsample_2x."),
        (
            _DECODER + r"positions\.0\.frequencies",
            f"model.prompt_encoder.pe_layer.{_FREQUENCIES}",
        ),
        (
            _DECODER + r"positions\.(\d+)\.frequencies",
            rf"model.mask_decoder.pe\1.{_FREQUENCIES}",
        ),
    )
)
"""How the release calls what begins so in our models; the first rule that fits counts."""

_MASK_TOKEN, _CONTEXT_TOKENS, _PIXEL_EMBEDDING = (
    f"model.pixel_decoder.{name}" for name in ("mask_token", "context_tokens", "pixel_embedding")
)
_IOU_TOKEN = "model.mask_decoder.iou_token.weight"
_MASK_TOKENS = "model.mask_decoder.mask_tokens.weight"
_NO_MASK = "model.prompt_encoder.no_mask_embed.weight"

_DROPPED = re.compile(
    # Heads of the mask decoder that the release never reads: the IoU estimate and the masks 1..3.
    r"model\.mask_decoder\.iou_prediction_head\.layers\.\d+\.(weight|bias)"
    r"|model\.mask_decoder\.output_hypernetworks_mlps\.[1-9]\d*\.layers\.\d+\.(weight|bias)"
    # Parts of the prompt encoder for points, boxes and drawn masks.
    r"|model\.prompt_encoder\.point_embeddings\.\d+\.weight"
    r"|model\.prompt_encoder\.not_a_point_embed\.weight"
    r"|model\.prompt_encoder\.mask_downscaling\.\d+\.(weight|bias)"
    # Rotary frequencies, computed from the configuration.
    r"|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)
_TOWER_DROPPED = re.compile(
    r"(text_model\.|text_projection\.|visual_projection\.|logit_scale$"
    r"|vision_model\.embeddings\.position_ids$).*"
)
_POSITION_TABLE = "embeddings.position_embedding.weight"


def convert_released(
    source: str | Path,
    out: str | Path,
    vision_tower: str | Path | None = None,
    *,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Convert a released PixelLM into a pixellm checkpoint.

    Args:
        source: directory or hub id of the released model.
        out: directory to write; it must not exist or be empty, and appears only when complete.
        vision_tower: directory or hub id of its CLIP; the one that its configuration names where
            None.
        revision: commit, tag or branch of ``source`` on the hub.
        progress: told how many bytes of how many are written.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: a file, repository or revision is missing.
        PermissionError: a gated repository.
        ValueError: a damaged or hostile file, a tower of the wrong width, or tensors that do not
            fit the table.
        OSError: not enough room on the disk.
    """
    out = Path(out)
    directory = fetch_directory(source, revision)
    values = read_json(directory / "config.json")
    if not is_released(directory):
        raise ValueError(
            f"{directory} is no released PixelLM: its config.json does not name the architecture "
            f"{RELEASED_ARCHITECTURE}."
        )
    tower_dir = fetch_tower(values, vision_tower)
    tower = released_tower_config(read_json(tower_dir / "config.json"))
    tokenizer = build_fast_tokenizer(directory, ("<image>",))
    config = released_pixellm_config(values, tower, tokenizer, directory)
    shapes = expected_shapes(config)
    state = _read_tower(tower_dir, tower, shapes)
    state |= from_released(read_weights(directory), shapes, directory)
    check_disk_space(out, state)
    with new_folder(out) as partial:
        write_weights(state, partial / "model.safetensors", progress)
        (partial / KEPT_DIR).mkdir()
        for path in sorted(directory.iterdir()):
            if _is_kept(path):
                shutil.copyfile(path, partial / KEPT_DIR / path.name)
        config.save_pretrained(partial)
        ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id")}
        generation = GenerationConfig(**ids, pad_token_id=config.pad_token_id)
        generation.save_pretrained(partial)
        released_processor(tokenizer, config).save_pretrained(partial)
    return out


def convert_to_released(
    source: str | Path, out: str | Path, *, progress: Progress | None = None
) -> Path:
    """Write a converted checkpoint back in the released layout, its tensors as they are now.

    The vision tower is left out, as in the release, and so is what the release holds and never
    reads.

    Args:
        source: a checkpoint that :func:`convert_released` wrote, or one trained from it.
        out: directory to write; it must not exist or be empty.
        progress: told how many bytes of how many are written.

    Raises:
        FileNotFoundError: the checkpoint lacks its folder ``released``, or weights.
        ValueError: tensors that do not fit the table.
        OSError: not enough room on the disk.
    """
    directory, out = Path(source), Path(out)
    kept = directory / KEPT_DIR
    if not (kept / "config.json").is_file():
        raise FileNotFoundError(
            f"{directory} lacks the folder {KEPT_DIR!r} with the parts that only released models "
            "have; copy it from the checkpoint that the model was trained from."
        )
    check_files(directory)
    state = read_weights(directory)
    wrong = sorted(state.keys() ^ expected_shapes(from_pretrained(PixelLMConfig, directory)).keys())
    if wrong:
        raise ValueError(f"{directory} differs from its config.json in {first_names(wrong)}.")
    tensors = to_released(state)
    check_disk_space(out, tensors)
    with new_folder(out) as partial:
        for path in sorted(kept.iterdir()):
            if _is_kept(path):
                shutil.copyfile(path, partial / path.name)
        write_weights(tensors, partial / "pytorch_model.bin", progress)
    return out


def _is_kept(path: Path) -> bool:
    """Whether a file of a release is small and says nothing of how its weights are stored."""
    of_weights = path.suffix in _WEIGHT_SUFFIXES or ".index." in path.name
    small = path.is_file() and path.stat().st_size < _KEPT_BYTES
    return small and not of_weights


def released_name(name: str) -> str | None:
    """What the release calls a tensor of ours; None where it has none that is it alone."""
    for ours, theirs in _RULES:
        if ours.match(name):
            return ours.sub(theirs, name, count=1)
    return None


def from_released(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], source: Path
) -> dict[str, Tensor]:
    """Our tensors, the vision tower's left out, from those of a released model.

    Args:
        tensors: by released name.
        shapes: of ours, by name.
        source: where the tensors are from, for messages.
    """
    named = {theirs: ours for ours in shapes if (theirs := released_name(ours))}
    wanted = {*named, _IOU_TOKEN, _MASK_TOKENS, _NO_MASK}
    tied = () if "lm_head.weight" in shapes else ("lm_head.weight",)
    unknown = [n for n in tensors if not (n in wanted or n in tied or _DROPPED.fullmatch(n))]
    if unknown:
        raise ValueError(
            f"{source} holds tensors that no rule knows: {first_names(unknown)}; is it another "
            "kind of model?"
        )
    if missing := sorted(wanted - tensors.keys()):
        raise ValueError(
            f"{source} lacks the tensors {first_names(missing)}; the download is incomplete or "
            "config.json is of another model."
        )
    state = {ours: tensors[theirs] for theirs, ours in named.items()}
    masks = tensors[_MASK_TOKENS]
    state[_MASK_TOKEN] = masks[:1].clone()
    state[_CONTEXT_TOKENS] = torch.cat([tensors[_IOU_TOKEN], masks[1:]])
    state[_PIXEL_EMBEDDING] = tensors[_NO_MASK][0]
    _check_shapes(state, shapes, source)
    return state


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a released model, from all of ours."""
    special = (_MASK_TOKEN, _CONTEXT_TOKENS, _PIXEL_EMBEDDING)
    tensors: dict[str, Tensor] = {}
    for ours, value in state.items():
        theirs = released_name(ours)
        if theirs is not None:
            tensors[theirs] = value
        elif ours not in special and not ours.startswith(_TOWER):
            raise ValueError(f"No released model has {ours}; this one has other parts.")
    context = state[_CONTEXT_TOKENS]
    tensors[_IOU_TOKEN] = context[:1].clone()
    tensors[_MASK_TOKENS] = torch.cat([state[_MASK_TOKEN], context[1:]])
    tensors[_NO_MASK] = state[_PIXEL_EMBEDDING][None]
    return tensors


def _check_shapes(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], source: Path
) -> None:
    for name, value in state.items():
        if tuple(value.shape) != shapes[name]:
            raise ValueError(
                f"{source} gives {name} the shape {tuple(value.shape)}, but its configuration "
                f"makes it {shapes[name]}; config.json is of another model."
            )


def fetch_tower(values: dict[str, Any], vision_tower: str | Path | None) -> Path:
    """The directory of a released model's CLIP, which its own files leave out."""
    named = values.get("vision_tower") or values.get("mm_vision_tower")
    if vision_tower is None and named is None:
        raise FileNotFoundError("config.json names no vision tower; pass --vision-tower.")
    if vision_tower is not None:
        return fetch_directory(vision_tower)
    try:
        return fetch_directory(str(named))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The model's own vision tower is missing: {error} "
            "Or pass --vision-tower with a copy of it."
        ) from error


def _read_tower(
    directory: Path, tower: CLIPVisionConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The CLIP tower's tensors by our names; its position table is resized as the release does."""
    side = tower.image_size // tower.patch_size
    state: dict[str, Tensor] = {}
    for name, tensor in read_weights(directory).items():
        if _TOWER_DROPPED.fullmatch(name):
            continue
        own = _TOWER + name.removeprefix("vision_model.")
        if own not in shapes:
            raise ValueError(f"{directory} holds {name}, which no CLIP tower has.")
        if own.endswith(_POSITION_TABLE):
            # In float32: the release interpolates at run time and never rounds the result.
            tensor = resize_position_table(
                tensor.float(), (side, side), layout="class_last", mode="bilinear"
            )
        state[own] = tensor
    holes = [name for name in shapes if name.startswith(_TOWER) and name not in state]
    if holes:
        raise ValueError(f"The vision tower {directory} lacks {first_names(holes)}.")
    _check_shapes(state, shapes, directory)
    return state


# Released models that are used as they are: converted once into the cache, then reused.

_CONFIG_ONLY = ("config.json",)
_FORMAT = "pixellm-3"


def cache_dir() -> Path:
    """Where converted models lie, one folder each, named by what they were made from."""
    return Path(constants.HF_HOME) / "pixellm"


def usable_checkpoint(
    source: str, vision_tower: str | Path | None = None, revision: str | None = None
) -> str:
    """A checkpoint that loads: the source itself, or the conversion of a released model.

    Args:
        source: directory or hub id.
        vision_tower: CLIP of a released model; the one that it names where None.
        revision: commit, tag or branch on the hub.
    """
    probe = fetch_directory(source, revision, _CONFIG_ONLY)
    if not is_released(probe):
        return source
    directory = fetch_directory(source, revision)
    tower = fetch_tower(read_json(directory / "config.json"), vision_tower)
    out = cache_dir() / f"{directory.name[:40]}-{fingerprint_files(_FORMAT, directory, tower)}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(out.with_name(f".{out.name}.lock")):
        if not (out / "config.json").is_file():
            convert_released(directory, out, tower)
    return str(out)
