"""From a name to an engine on its device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pixellm.checkpoint.io import load_config, load_model_and_processor
from pixellm.checkpoint.quantize import quantization_config, quantize_model
from pixellm.checkpoint.sources import is_adapter_folder, resolve_source
from pixellm.engine.engine import Engine
from pixellm.threads import choose_threads


def load(
    source: str | Path = "nano",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    vision_tower: str | Path | None = None,
    quantize: str | None = None,
    offload_folder: str | Path | None = None,
    max_memory: dict[int | str, int | str] | None = None,
    threads: int | None = None,
    **options: Any,
) -> Engine:
    """Load a model, ready to answer.

    Args:
        source: "nano", a directory, a run's folder, or a hub id; a released PixelLM is converted
            once into the Hugging Face cache.
        device: "auto" takes a GPU where there is one.
        dtype: "auto" is the type of :func:`model_dtype`.
        revision: commit, tag or branch on the hub.
        vision_tower: CLIP of a released PixelLM; the one that it names where None.
        quantize: "int8", "int4" or "nf4" rounds the language model's weights (extra ``quant``);
            masks keep their precision, see :mod:`pixellm.checkpoint.quantize`.
        offload_folder: for models that do not fit: weights are spread over GPUs, main memory and
            this folder, new or empty at first (needs accelerate).
        max_memory: what may be used of each device, with ``offload_folder``.
        threads: of a CPU, for all that torch does in this process; 0 leaves torch's own. None
            takes as many as pay for the model's size, of those that the process may use, unless
            OMP_NUM_THREADS is set or torch was imported before pixellm.
        **options: arguments of :class:`Engine`.

    Raises:
        FileNotFoundError, ValueError: as :func:`pixellm.checkpoint.io.load_model_and_processor`.
        OccupiedError: ``offload_folder`` holds something else.
    """
    chosen = pick_device(device)
    floating = model_dtype(
        source,
        chosen,
        dtype,
        revision=revision,
        vision_tower=vision_tower,
        quantize=quantize,
    )
    # Adapters are folded into weights that are whole; the sums are rounded afterwards.
    folds = is_adapter_folder(Path(resolve_source(source)))
    rounding = None if quantize is None else quantization_config(quantize, chosen, floating)
    model, processor = load_model_and_processor(
        source,
        dtype=floating,
        device=chosen,
        revision=revision,
        vision_tower=vision_tower,
        quantization_config=None if folds else rounding,
        offload_folder=offload_folder,
        max_memory=max_memory,
    )
    if quantize is not None and folds:
        quantize_model(model, quantize)
    size = sum(weight.numel() for weight in model.parameters())
    if chosen.type == "cpu" and (count := choose_threads(size, threads)):
        torch.set_num_threads(count)
    return Engine(model, processor, **options)


def pick_device(name: str | torch.device) -> torch.device:
    """A device by name; "auto" is the first GPU, else the CPU."""
    if str(name) != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"There is no device {str(name)!r}; try cpu or cuda.") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def model_dtype(
    source: str | Path,
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    *,
    revision: str | None = None,
    vision_tower: str | Path | None = None,
    quantize: str | None = None,
) -> torch.dtype:
    """The floating type that :func:`load` would take; its arguments, with a device found.

    "auto" is float32 but on a GPU, and there what the model's configuration names: float16 for
    converted released weights, bfloat16 for others. 4 bits have products in bfloat16 alone there.
    """
    on_gpu = "bfloat16"
    if dtype == "auto" and device.type == "cuda" and quantize not in ("int4", "nf4"):
        on_gpu = load_config(source, revision=revision, vision_tower=vision_tower).gpu_dtype
    return pick_dtype(dtype, device, on_gpu)


def pick_dtype(
    name: str | torch.dtype, device: torch.device, on_gpu: str = "bfloat16"
) -> torch.dtype:
    """A floating type by name; "auto" is float32, on a GPU the one given for that."""
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        name = on_gpu if device.type == "cuda" else "float32"
    found: Callable[..., Any] | torch.dtype | None = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"There is no floating type {name!r}; try float32, bfloat16 or float16.")
    return found
