"""YOLOX-nano's published file as an encoder's weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pixellm.checkpoint.encoder_weights import load_yolox
from pixellm.model.yolox import YoloxConfig, YoloxModel

onnx = pytest.importorskip("onnx")
PUBLISHED = Path(os.environ.get("PIXELLM_DETECTOR_DIR", ".")) / "yolox_nano.onnx"


def write_file(path: Path, model: YoloxModel) -> None:
    """A file with the model's convolutions, its first one for blue, green, red."""
    nodes, values, name = [], [], "pixels"
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for number, layer in enumerate(layers):
        kernel = layer.weight.detach()
        if number == 0:
            kernel = kernel.unflatten(1, (4, 3)).flip(2).flatten(1, 2)
        assert layer.bias is not None
        names = [f"kernel{number}", f"bias{number}"]
        for one, value in zip(names, (kernel, layer.bias.detach()), strict=True):
            values.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value.numpy()), one))
        nodes.append(onnx.helper.make_node("Conv", [name, *names], [f"maps{number}"]))
        name = f"maps{number}"
    graph = onnx.helper.make_graph(nodes, "detector", [], [], values)
    onnx.save(onnx.helper.make_model(graph), str(path))


def test_the_files_convolutions_fill_the_encoder(tmp_path: Path) -> None:
    config = YoloxConfig(base_channels=8, head_channels=8, num_classes=3)
    source, encoder = YoloxModel(config), YoloxModel(config)
    write_file(tmp_path / "detector.onnx", source)
    load_yolox(encoder, tmp_path / "detector.onnx")
    for name, value in source.state_dict().items():
        torch.testing.assert_close(encoder.state_dict()[name], value, msg=name)


def test_another_network_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "detector.onnx", YoloxModel(YoloxConfig(base_channels=16)))
    with pytest.raises(ValueError, match="not the encoder"):
        load_yolox(YoloxModel(YoloxConfig(base_channels=8)), tmp_path / "detector.onnx")


def test_a_missing_or_damaged_file_is_said_in_one_sentence(tmp_path: Path) -> None:
    encoder = YoloxModel(YoloxConfig(base_channels=8))
    with pytest.raises(FileNotFoundError, match="Apache"):
        load_yolox(encoder, tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match="no ONNX file"):
        load_yolox(encoder, tmp_path / "text.onnx")


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="PIXELLM_DETECTOR_DIR holds no yolox_nano.onnx")
def test_the_encoder_reads_what_the_published_network_reads() -> None:
    runtime = pytest.importorskip("onnxruntime")
    encoder = YoloxModel(YoloxConfig()).eval()
    load_yolox(encoder, PUBLISHED)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 3, 416, 416)).astype(np.float32)
    session = runtime.InferenceSession(str(PUBLISHED))
    blue_first = np.ascontiguousarray(pixels[:, ::-1])
    wanted = torch.tensor(session.run(None, {"images": blue_first})[0])[..., 4:]
    with torch.no_grad():
        maps = encoder(torch.tensor(pixels) - 114).hidden_states[8:]
    cells = torch.cat([one.flatten(2) for one in maps], 2).transpose(1, 2)
    read = torch.cat([cells[..., 80:81], cells[..., :80]], -1).sigmoid()
    torch.testing.assert_close(read, wanted, atol=1e-4, rtol=1e-3)
