"""Writes small models in the released layout, with random weights, for tests of the conversion."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.convert_slow_tokenizer import import_protobuf

from pixellm.checkpoint.model_files import expected_shapes
from pixellm.checkpoint.released import to_released
from pixellm.checkpoint.released_config import released_pixellm_config
from pixellm.checkpoint.sentencepiece_tokenizer import build_fast_tokenizer

SENTENCEPIECE_LETTERS = "▁abcdefghijklmnopqrstuvwxyz.,:'?ASTNIUERP"


def write_sentencepiece(path: Path) -> int:
    """Write a BPE model of letters and bytes; returns its number of pieces."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    pieces += [("▁a", 1), ("th", 1), ("▁th", 1), ("the", 1)]
    pieces += [(letter, 1) for letter in SENTENCEPIECE_LETTERS]
    model = import_protobuf().ModelProto()
    for rank, (text, kind) in enumerate(pieces):
        model.pieces.add(piece=text, score=-float(rank), type=kind)
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    path.write_bytes(model.SerializeToString())
    return len(pieces)


def write_tower(directory: Path, width: int = 16) -> Path:
    """Write a CLIP tower of 12 layers."""
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=12,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    torch.manual_seed(1)
    CLIPVisionModel(config).half().save_pretrained(directory)
    return directory


def write_released(
    directory: Path, tower: Path, *, shards: int = 2, codebook_size: int = 6, **changes: int
) -> Path:
    """Write a released PixelLM of sizes unlike any real one: grouped keys, 3 layers, width 24.

    ``changes`` are further values of its configuration, as the release names them.
    """
    directory.mkdir(parents=True)
    count = write_sentencepiece(directory / "tokenizer.model")
    added = [*(f"[SEG{i}]" for i in range(codebook_size)), "<im_start>", "<im_end>"]
    ids = {token: count + i for i, token in enumerate(added)}
    values = {
        "architectures": ["PixelLMForCausalLM"],
        "model_type": "llava",
        "vocab_size": count + len(ids),
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "mm_hidden_size": CLIPVisionConfig.from_pretrained(tower).hidden_size,
        "mm_projector_hidden_dim": 2,
        "mm_projector_out_dim": 1,
        "out_dim": 32,
        "resize_vision_tower_size": 56,
        "image_feature_scale_num": 2,
        "vision_tower": str(tower),
        **changes,
    }
    (directory / "added_tokens.json").write_text(json.dumps(ids))
    (directory / "config.json").write_text(json.dumps(values, indent=2))
    write_weights(directory, random_released_tensors(directory, tower), shards)
    return directory


def random_released_tensors(directory: Path, tower: Path) -> dict[str, torch.Tensor]:
    """Random values for every name that a released model of this configuration has."""
    values = json.loads((directory / "config.json").read_text())
    vision = CLIPVisionConfig.from_pretrained(tower)
    tokenizer = build_fast_tokenizer(directory, ("<image>",))
    config = released_pixellm_config(values, vision, tokenizer, directory)
    shapes = expected_shapes(config)
    generator = torch.Generator().manual_seed(0)
    ours = {n: torch.randn(s, generator=generator).half() * 0.1 for n, s in shapes.items()}
    tensors = to_released(ours)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3).half()
    tensors["model.mask_decoder.iou_prediction_head.layers.0.weight"] = torch.ones(4, 32).half()
    return tensors


def write_weights(directory: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """Write pickled shards with an index; one shard gets none."""
    for old in directory.glob("pytorch_model*"):
        old.unlink()
    if shards == 1:
        torch.save(tensors, directory / "pytorch_model.bin")
        return
    weight_map = {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {key: tensors[key] for key in list(tensors)[number::shards]}
        torch.save(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
