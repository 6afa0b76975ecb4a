"""The published weights of YOLOX-nano, out of its ONNX file into our encoder.

Knows one kind of file and one architecture: the file's convolutions, batch norms folded in, lie in
the order in which they run, as do those of :class:`~pixellm.model.yolox.YoloxModel`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

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


@torch.no_grad()
def load_yolox(encoder: nn.Module, path: str | Path) -> None:
    """Fill a YOLOX encoder from the published ONNX file.

    The file's network reads blue, green, red; the encoder reads red, green, blue.

    Args:
        encoder: a :class:`~pixellm.model.yolox.YoloxModel` of the file's size.
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the package onnx, which reads it, is not installed.
        ValueError: another network than the encoder.
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
