"""Adapters and their model as one whole model on disk, as ``pixellm merge`` writes it.

Knows model folders; it knows no run, no recipe and no training state.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pixellm.checkpoint.adapters import read_adapter_config
from pixellm.checkpoint.io import load_model_and_processor, save_model
from pixellm.checkpoint.sources import is_adapter_folder, resolve_source
from pixellm.files import new_folder

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge_adapters(source: str | Path, out: str | Path, *, dtype: str = "auto") -> Path:
    """Fold adapters into the weights of the model that they belong to.

    The sums are made in float32, whatever the type that is written.

    Args:
        source: a run's folder, one of its checkpoints, or a folder with adapters.
        out: directory to write; it must not exist or be empty.
        dtype: floating type on disk; "auto" is that of the model under the adapters.

    Raises:
        FileNotFoundError: no such folder, or the model under the adapters is not there.
        ValueError: the folder holds a whole model already, or an unknown type.
    """
    found = Path(resolve_source(source))
    if not is_adapter_folder(found):
        raise ValueError(f"{found} holds a whole model already; there is nothing to merge.")
    if dtype != "auto" and dtype not in _TYPES:
        raise ValueError(f"There is no floating type {dtype!r}; try {', '.join(_TYPES)} or auto.")
    name = _type_of_base(found) if dtype == "auto" else dtype
    with new_folder(Path(out)) as partial:
        model, processor = load_model_and_processor(found)
        save_model(partial, model, processor, dtype=_TYPES[name])
    return Path(out)


def _type_of_base(directory: Path) -> str:
    """Floating type of the model under the adapters, as its configuration names it."""
    base = Path(resolve_source(read_adapter_config(directory)[1]))
    if is_adapter_folder(base):
        return _type_of_base(base)
    path = base / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    name = str(values.get("dtype") or values.get("torch_dtype") or "float32")
    return name if name in _TYPES else "float32"
