"""Conversion of released models: there and back, and every way in which a source can be wrong."""

import json
import os
import pickle
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from released_models import write_released, write_tower, write_weights

from pixellm.checkpoint import released as conversion
from pixellm.checkpoint import weights
from pixellm.checkpoint.io import load_model_and_processor
from pixellm.checkpoint.released import (
    cache_dir,
    convert_released,
    convert_to_released,
    usable_checkpoint,
)
from pixellm.engine import model_dtype
from pixellm.model.codebook import find_groups
from pixellm.processing.prompts import dialogue_messages


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    tower = write_tower(root / "tower")
    return write_released(root / "released", tower), tower


@pytest.fixture
def released(originals, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(originals[0], copy)
    return copy


@pytest.fixture
def tower(originals):
    return originals[1]


@pytest.fixture(scope="module")
def converted(originals, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "model"
    return convert_released(originals[0], out, originals[1])


def load_all(directory):
    tensors = {}
    for path in sorted(directory.glob("pytorch_model*.bin")):
        tensors |= torch.load(path, weights_only=True)
    return tensors


def test_a_model_of_other_sizes_converts_and_loads(converted):
    model, processor = load_model_and_processor(converted)
    assert model.config.text_config.num_key_value_heads == 2
    assert model.config.codebook_states == "predicting"
    assert processor.codec.codebook_ids == tuple(model.config.codebook_token_ids)
    assert processor.reasoning_suffix == "Please output segmentation mask."
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert not hasattr(model.model.pixel_decoder, "scale_logits")


def test_released_weights_are_run_in_float16_on_a_gpu(
    converted, released, tower, tmp_path, monkeypatch
):
    """Their masks move further from float32 in bfloat16."""
    monkeypatch.setattr("pixellm.checkpoint.released.constants.HF_HOME", str(tmp_path / "hf"))
    gpu = torch.device("cuda")
    assert model_dtype(converted, gpu) is torch.float16
    assert model_dtype(released, gpu, vision_tower=tower) is torch.float16
    assert model_dtype(converted, gpu, "bfloat16") is torch.bfloat16
    assert model_dtype(converted, torch.device("cpu")) is torch.float32


def assert_identical(original, back):
    """All that the release reads."""
    before, after = load_all(original), load_all(back)
    unread = {name for name in before if "inv_freq" in name or "iou_prediction" in name}
    before = {name: value for name, value in before.items() if name not in unread}
    assert len(unread) == 2 and before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert torch.equal(value, after[name]), name
    for path in original.glob("[!p]*.[jm]*"):
        assert path.read_bytes() == (back / path.name).read_bytes()


def test_there_and_back_is_identical_to_the_bit(originals, converted, tmp_path):
    assert_identical(originals[0], convert_to_released(converted, tmp_path / "back"))


OTHER_SIZES = {
    "one scale": {"image_feature_scale_num": 1, "codebook_size": 4, "shards": 1},
    "long groups, other widths": {
        "codebook_size": 10,
        "hidden_size": 32,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_key_value_heads": 4,
        "mm_projector_hidden_dim": 3,
        "mm_projector_out_dim": 2,
        "out_dim": 64,
        "resize_vision_tower_size": 84,
        "shards": 3,
    },
}


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_other_sizes_go_there_and_back_and_compute_masks_in_every_precision(name, tmp_path):
    sizes = OTHER_SIZES[name]
    tower = write_tower(tmp_path / "tower", width=32 if "hidden_size" in sizes else 16)
    original = write_released(tmp_path / "released", tower, **sizes)
    converted = convert_released(original, tmp_path / "model", tower)
    assert_identical(original, convert_to_released(converted, tmp_path / "back"))
    side = sizes.get("resize_vision_tower_size", 56)
    image = np.random.default_rng(0).integers(0, 255, (side, side // 2, 3), dtype=np.uint8)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model, processor = load_model_and_processor(converted, dtype=dtype)
        assert model.config.group_size == sizes["codebook_size"]
        ids = processor.codec.encode(dialogue_messages([("what is this?", "the {seg} thing.")])).ids
        images = processor.image_processor([image])
        rows, starts = find_groups(
            torch.tensor([ids]), torch.tensor(model.config.codebook_token_ids)
        )
        with torch.inference_mode():
            encoded, _ = model.model.encode_images(images["pixel_values"], images["pixel_mask"])
            hidden = model.model(torch.tensor([ids]), encoded.tokens).last_hidden_state
            embeddings = model.target_embeddings(hidden, rows, starts)
            masks = model.decode_masks(embeddings, encoded.features, rows)
        assert len(masks) == 1
        assert masks.dtype == torch.float32
        assert torch.isfinite(masks).all()


def test_shards_are_written_with_an_index_and_told_one_by_one(
    originals, converted, tmp_path, monkeypatch
):
    monkeypatch.setattr(weights, "_SHARD_SIZE", "200KB")
    seen = []
    ours = convert_released(*map(str, (originals[0], tmp_path / "model", originals[1])))
    back = convert_to_released(ours, tmp_path / "back", progress=lambda *a: seen.append(a))
    assert len(list(ours.glob("model-*.safetensors"))) > 2
    assert seen == sorted(seen) and len(seen) > 2 and seen[-1][0] == seen[-1][1]
    assert_identical(originals[0], back)
    model, expected = (load_model_and_processor(one)[0].state_dict() for one in (ours, converted))
    assert all(torch.equal(value, expected[name]) for name, value in model.items())


def assert_refused(source, tower, tmp_path, error, *words):
    out = tmp_path / "out"
    with pytest.raises(error) as caught:
        convert_released(source, out, tower)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not out.exists()
    assert not list(tmp_path.glob(".*.partial"))


def cut_shard(released):
    path = released / "pytorch_model-00002-of-00002.bin"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_tensors(shards, **changes):
    """Another value for tensors of a model; None removes one."""

    def change(released):
        tensors = {**load_all(released), **{k.replace("__", "."): v for k, v in changes.items()}}
        write_weights(released, {k: v for k, v in tensors.items() if v is not None}, shards)

    return change


def remove(name):
    return lambda released: (released / name).unlink()


def point_outside(released):
    path = released / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "../elsewhere.bin"
    path.write_text(json.dumps(index))


def ask_for_three_scales(released):
    path = released / "config.json"
    path.write_text(path.read_text().replace('scale_num": 2', 'scale_num": 3'))


TOO_MANY, TOO_FEW = {"model__surprise__weight": torch.zeros(2)}, {"model__norm__weight": None}
SHARD = "pytorch_model-0000{}-of-00002.bin"
DAMAGES = {
    "cut shard": (cut_shard, ValueError, SHARD.format(2), "cut short"),
    "no index": (remove("pytorch_model.bin.index.json"), FileNotFoundError, "no index"),
    "no shard": (remove(SHARD.format(1)), FileNotFoundError, "00001-of-00002"),
    "one more": (change_tensors(1, **TOO_MANY), ValueError, "model.surprise.weight"),
    "one more of two": (change_tensors(2, **TOO_MANY), ValueError, "model.surprise.weight"),
    "one less": (change_tensors(1, **TOO_FEW), ValueError, "lacks", "model.norm.weight"),
    "one less of two": (change_tensors(2, **TOO_FEW), ValueError, "lacks", "model.norm.weight"),
    "another shape": (
        change_tensors(2, model__norm__weight=torch.zeros(25)),
        ValueError,
        *("language_model.norm.weight", "(25,)", "(24,)"),
    ),
    "index leads outside": (point_outside, ValueError, "../elsewhere.bin"),
    "three scales": (ask_for_three_scales, ValueError, "3 scales", "config.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_source_is_refused_in_one_sentence(name, released, tower, tmp_path):
    damage, error, *words = DAMAGES[name]
    damage(released)
    assert_refused(released, tower, tmp_path, error, *words)


class _Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "plain pickle"])
def test_a_pickle_that_runs_code_is_refused_and_nothing_ran(released, tower, tmp_path, archive):
    marker = tmp_path / "ran"
    write_weights(released, load_all(released), 1)
    path = released / "pytorch_model.bin"
    hostile = {"model.norm.weight": _Hostile(marker)}
    if archive:
        torch.save(hostile, path)
    else:
        path.write_bytes(pickle.dumps(hostile))
    assert_refused(released, tower, tmp_path, ValueError, "refused", path.name)
    assert not marker.exists()
    pickle.loads(pickle.dumps(hostile))
    assert marker.is_dir(), "the pickle of this test must be one that runs code"


def test_a_tower_of_the_wrong_width_is_refused(released, tmp_path):
    other = write_tower(tmp_path / "other", width=32)
    assert_refused(released, other, tmp_path, ValueError, "32 wide", "width 16")


def test_a_full_disk_is_noticed_before_anything_is_written(released, tower, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 10, 10)
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: usage)
    assert_refused(released, tower, tmp_path, OSError, "free")


def test_the_way_back_needs_what_the_conversion_kept(converted, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(converted, bare, ignore=shutil.ignore_patterns("released"))
    with pytest.raises(FileNotFoundError, match="lacks the folder 'released'"):
        convert_to_released(bare, tmp_path / "back")


def test_released_models_are_converted_into_the_cache_once(released, tower, tmp_path, monkeypatch):
    monkeypatch.setattr("pixellm.checkpoint.released.constants.HF_HOME", str(tmp_path / "hf"))
    first = usable_checkpoint(str(released), tower)
    assert Path(first).parent == cache_dir() == tmp_path / "hf" / "pixellm"
    monkeypatch.setattr(conversion, "read_weights", None)
    assert usable_checkpoint(str(released), tower) == first
    assert usable_checkpoint(first) == first
