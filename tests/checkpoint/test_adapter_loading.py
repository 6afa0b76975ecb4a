"""Adapters are loaded with the options of the model that they belong to, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pixellm.checkpoint import io
from pixellm.checkpoint.adapters import Adapters, attach_adapters, save_adapters
from pixellm.checkpoint.io import load_model_and_processor
from pixellm.engine import load, model_dtype


@pytest.fixture
def adapters(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A folder with token rows that are twice those of the tiny model."""
    model, _ = load_model_and_processor(tiny_model_dir)
    ids = tuple(model.config.codebook_token_ids)
    rows = model.get_input_embeddings().weight.detach()[list(ids)].clone() * 2
    attach_adapters(model, Adapters(None, ids))
    names = [name for name, _ in model.named_parameters() if name.endswith(".rows")]
    folder = tmp_path / "adapters"
    save_adapters(
        folder, Adapters(None, ids), str(tiny_model_dir), {n: rows.clone() for n in names}
    )
    return folder


def test_revision_and_vision_tower_are_those_of_the_model_under_the_adapters(
    adapters: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
) -> None:
    asked: list[Any] = []

    def find(source: str, vision_tower: Any, revision: Any) -> str:
        asked.append((vision_tower, revision))
        return str(tiny_model_dir)

    monkeypatch.setattr(io, "_own_checkpoint", find)
    load_model_and_processor(adapters, revision="v2", vision_tower="clip")
    assert asked == [("clip", "v2")]


def test_the_precision_on_a_gpu_is_that_of_the_model_under_the_adapters(
    adapters: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, tmp_path: Path
) -> None:
    gpu = torch.device("cuda")
    assert model_dtype(adapters, gpu) is torch.bfloat16
    half = shutil.copytree(tiny_model_dir, tmp_path / "half")
    values = json.loads((half / "config.json").read_text()) | {"gpu_dtype": "float16"}
    (half / "config.json").write_text(json.dumps(values))
    monkeypatch.setattr(io, "_own_checkpoint", lambda *_: str(half))
    assert model_dtype(adapters, gpu) is torch.float16


@pytest.mark.parametrize("option", ["quantization_config", "offload_folder"])
def test_what_needs_weights_as_they_are_read_is_refused_with_a_way_out(
    adapters: Path, tmp_path: Path, option: str
) -> None:
    with pytest.raises(ValueError, match="pixellm merge") as caught:
        load_model_and_processor(adapters, **{option: tmp_path / "offload"})
    assert str(adapters) in str(caught.value)


def test_a_limit_of_memory_without_a_place_to_spread_to_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ValueError, match="offload_folder"):
        load_model_and_processor(tiny_model_dir, max_memory={"cpu": 1})


def test_an_engine_rounds_after_the_adapters_are_in_the_weights(
    adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded: list[Any] = []
    monkeypatch.setattr("pixellm.engine.loading.quantization_config", lambda *options: object())
    monkeypatch.setattr(
        "pixellm.engine.loading.quantize_model", lambda *options: rounded.append(options)
    )
    engine = load(adapters, device="cpu", quantize="int8")
    assert rounded == [(engine.model, "int8")]
    base, _ = load_model_and_processor(json.loads((adapters / "adapter.json").read_text())["base"])
    ids = base.config.codebook_token_ids
    tables = [model.get_input_embeddings().weight[ids] for model in (engine.model, base)]
    assert torch.equal(tables[0], 2 * tables[1])
