"""Names of models by what they consist of."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pixellm.checkpoint import fingerprint
from pixellm.checkpoint.fingerprint import fingerprint_model


def write_model(folder: Path, weights: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"embedding": 40_000, "decoder": 50, "bias": 3}
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}


@pytest.fixture(params=["whole", "in blocks"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are read whole; here also as the large ones are."""
    if request.param == "in blocks":
        monkeypatch.setattr(fingerprint, "WHOLE_BYTES", 0)
        monkeypatch.setattr(fingerprint, "_ARCHIVE_END", 0)


@pytest.mark.usefixtures("reading")
def test_a_copy_and_another_time_keep_the_name(tmp_path, weights):
    first = write_model(tmp_path / "a", weights)
    name = fingerprint_model(first)
    assert len(name) == 16
    copy = shutil.copytree(first, tmp_path / "runs" / "b" / "model", copy_function=shutil.copyfile)
    assert fingerprint_model(copy) == fingerprint_model(copy.parent) == name


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("tensor", ["embedding", "decoder", "bias"])
def test_every_tensor_counts_be_it_ever_so_small(tmp_path, weights, tensor):
    folder = write_model(tmp_path, weights)
    before = fingerprint_model(folder)
    weights[tensor] = weights[tensor] * np.float32(1.001)
    assert fingerprint_model(write_model(folder, weights)) != before


@pytest.mark.usefixtures("reading")
def test_shapes_and_settings_count(tmp_path, weights):
    folder = write_model(tmp_path, weights)
    names = {fingerprint_model(folder)}
    (folder / "config.json").write_text('{"alpha": 2}')
    names.add(fingerprint_model(folder))
    write_model(folder, {**weights, "decoder": weights["decoder"].reshape(5, 10)})
    names.add(fingerprint_model(folder))
    write_model(folder, {**weights, "decoder": weights["decoder"].reshape(10, 5)})
    names.add(fingerprint_model(folder))
    assert len(names) == 4


def test_large_pickles_are_seen_by_their_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE_BYTES", 1 << 10)
    monkeypatch.setattr(fingerprint, "_ARCHIVE_END", 1 << 10)
    (tmp_path / "config.json").write_text("{}")
    tensor, names = torch.zeros(4_000_000), set()
    for changed in (None, 1_234_567, 2_000_001):
        if changed is not None:
            tensor[changed] = 1.0
        torch.save({"w": tensor}, tmp_path / "pytorch_model.bin")
        names.add(fingerprint_model(tmp_path))
    assert len(names) == 3


def test_a_damaged_large_file_has_a_name_too(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE_BYTES", 0)
    monkeypatch.setattr(fingerprint, "_ARCHIVE_END", 10)
    (tmp_path / "config.json").write_text("{}")
    for content in (b"\xff" * 5000, (4).to_bytes(8, "little") + b"[{}]" + b"\0" * 5000):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert len(fingerprint_model(tmp_path)) == 16


def test_adapters_are_named_together_with_their_model(tiny_model_dir, tmp_path):
    from pixellm.checkpoint.adapters import Adapters, save_adapters

    names = []
    base = shutil.copytree(tiny_model_dir, tmp_path / "base")
    save_adapters(tmp_path / "adapters", Adapters(None, ()), str(base), {})
    names.append(fingerprint_model(tmp_path / "adapters"))
    weights = load_file(base / "model.safetensors")
    key = sorted(weights)[0]
    save_file({**weights, key: weights[key] + 1}, base / "model.safetensors", {"format": "pt"})
    names.append(fingerprint_model(tmp_path / "adapters"))
    assert len({*names, fingerprint_model(base)}) == 3
