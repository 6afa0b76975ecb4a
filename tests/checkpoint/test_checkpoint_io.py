from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import tiny_parts, tiny_texts
from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.io import load_model_and_processor, save_model
from pixellm.checkpoint.sources import resolve_source


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def test_a_model_is_saved_and_loaded_to_the_bit(tiny_model_dir: Path, tmp_path: Path) -> None:
    model, processor = load_model_and_processor(tiny_model_dir)
    assert not model.training and model.dtype == torch.float32
    save_model(tmp_path / "again", model, processor)
    original = (tiny_model_dir / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == original
    again, _ = load_model_and_processor(tmp_path / "again")
    settings, kept = model.config.to_dict(), again.config.to_dict()
    assert {**kept, "_name_or_path": None} == {**settings, "_name_or_path": None}
    assert not list((tmp_path / "again").glob("*.bin"))


def test_weights_can_be_kept_at_half_precision(tiny_model_dir: Path, tmp_path: Path) -> None:
    model, processor = load_model_and_processor(tiny_model_dir)
    save_model(tmp_path / "half", model, processor, dtype=torch.float16)
    saved = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in saved.values() if value.is_floating_point()} == {torch.float16}
    again, _ = load_model_and_processor(tmp_path / "half")
    assert again.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float()), name


def test_a_sharded_model_loads_and_a_missing_shard_is_named(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model, processor = load_model_and_processor(tiny_model_dir)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    processor.save_pretrained(tmp_path)
    again, _ = load_model_and_processor(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        load_model_and_processor(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ValueError, match="names no weight files"):
        load_model_and_processor(tmp_path)


def without(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content) and None


def cut_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def only_pickles(directory: Path) -> None:
    weights = directory / "model.safetensors"
    torch.save(load_file(weights), directory / "pytorch_model.bin")
    weights.unlink()


def with_weight(name: str, value: torch.Tensor | None) -> Callable[[Path], None]:
    """Another value for a weight; None removes it."""

    def change(directory: Path) -> None:
        state = load_file(directory / "model.safetensors")
        state.pop(f"model.pixel_decoder.{name}", None)
        if value is not None:
            state[f"model.pixel_decoder.{name}"] = value
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})

    return change


def change_config(**values: object) -> Callable[[Path], None]:
    """Other settings; those of a part beside the ones it has."""

    def change(directory: Path) -> None:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        for name, value in values.items():
            both = isinstance(value, dict) and isinstance(config.get(name), dict)
            config[name] = config[name] | value if both else value
        path.write_text(json.dumps(config))

    return change


OUTSIDE = b'{"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}'
DAMAGES = [
    (written("model.safetensors.index.json", OUTSIDE), ValueError, "no file beside it"),
    (change_config(text_config={"hidden_size": 20_000_000}), ValueError, "hidden_size = 20000000"),
    (change_config(text_config={"vocab_size": 3_000}), ValueError, "asks for .3000"),
    (
        change_config(text_config={"num_hidden_layers": 10**7}),
        ValueError,
        "num_hidden_layers = 1000",
    ),
    (
        change_config(vision_config={"num_hidden_layers": 500}),
        ValueError,
        "num_hidden_layers = 500",
    ),
    (change_config(decoder_mlp_size=10**9), ValueError, "decoder_mlp_size = 1000000000, more"),
    (change_config(image_size=10**6), ValueError, "image_size = 1000000, more"),
    (cut_weights, ValueError, "damaged or cut short"),
    (written("model.safetensors", b""), ValueError, "damaged or cut short"),
    (without("model.safetensors"), FileNotFoundError, "model.safetensors"),
    (only_pickles, ValueError, "pickled weights only; convert it with"),
    (with_weight("mask_token", None), ValueError, "missing_keys.*mask_token"),
    (with_weight("extra", torch.zeros(2)), ValueError, "unexpected_keys.*extra"),
    (with_weight("mask_token", torch.zeros(1, 17)), ValueError, "mask_token"),
    *(
        (
            with_weight("mask_token", torch.full((1, 16), value)),
            ValueError,
            "mask_token holds NaN or infinity",
        )
        for value in (float("nan"), float("-inf"))
    ),
    (change_config(decoder_sise=16), ValueError, "unknown settings: decoder_sise"),
    (change_config(text_config={"hidden_sise": 32}), ValueError, "hidden_sise; mend it to hidden_"),
    (change_config(vision_config={"patchsize": 8}), ValueError, "text|vision_config.*patchsize"),
    (change_config(text_config="llama"), ValueError, "text_config .* must be a JSON object"),
    (change_config(model_type="llava"), ValueError, "a 'llava' model, not a pixellm one"),
    (change_config(num_scales=3), ValueError, "num_scales|scales"),
    (written("config.json", b'{"model_type": "pixellm",'), ValueError, "is not valid JSON"),
    (written("config.json", b"[]"), ValueError, "must hold a JSON object"),
    (without("tokenizer.json"), FileNotFoundError, "lacks tokenizer.json"),
]


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    DAMAGES,
    ids=[f"{n}-{message.split()[0]}" for n, (_, _, message) in enumerate(DAMAGES)],
)
def test_a_damaged_model_is_refused_in_one_sentence(
    copy: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    damage(copy)
    with pytest.raises(error, match=message) as caught:
        load_model_and_processor(copy)
    text = str(caught.value)
    assert str(copy) in text or "num_scales" in text
    assert "\n" not in text.strip()


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 10000.0, "torch_dtype": "float32", "is_llama_config": True},
        {"transformers_version": "4.31.0", "tie_encoder_decoder": False},
        {"attention_heads_of_a_later_version": 2},
    ],
    ids=["other makers", "older version", "later version"],
)
def test_settings_that_transformers_or_other_makers_write_are_let_through(
    copy: Path, values: dict[str, object]
) -> None:
    seen = {"projection_dim": 512, "dropout": 0.0, "top_k": 50}
    change_config(text_config=values, vision_config=seen)(copy)
    load_model_and_processor(copy)


def test_running_statistics_that_are_no_numbers_are_refused_too(tmp_path: Path) -> None:
    parts = tiny_parts(settings={"vision_depths": [4, 2], "mask_padding": False})
    parts["vision"] = {"config": {"model_type": "mobilenet_v2", "depth_multiplier": 0.25}}
    model, processor = build_model(parts, tiny_texts())
    name = next(name for name, _ in model.named_buffers() if name.endswith("running_var"))
    model.get_buffer(name).view(-1)[0] = float("nan")
    save_model(tmp_path / "model", model.eval(), processor)
    with pytest.raises(ValueError, match=r"running_var holds NaN or infinity"):
        load_model_and_processor(tmp_path / "model")


def test_names_resolve_to_directories_and_hub_ids(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert resolve_source(tiny_model_dir) == str(tiny_model_dir)
    run = tmp_path / "run"
    shutil.copytree(tiny_model_dir, run / "model")
    assert resolve_source(run) == str(run / "model")
    assert resolve_source("somebody/some-model") == "somebody/some-model"


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    for name in ("nanno", str(tmp_path / "nowhere"), "./a/b", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"There is no model .*did you mean"):
            resolve_source(name)
    with pytest.raises(ValueError, match="holds no model"):
        resolve_source(tmp_path)


def test_a_run_that_is_not_at_its_end_names_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in ("step_00000200", "step_00000400"):
        (tmp_path / "checkpoints" / step / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match="step_00000400 is its newest checkpoint"):
        resolve_source(tmp_path)


def test_a_hub_id_that_cannot_be_reached_is_refused_in_one_sentence() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-model") as caught:
        load_model_and_processor("nobody/no-such-model")
    assert "\n" not in str(caught.value)
