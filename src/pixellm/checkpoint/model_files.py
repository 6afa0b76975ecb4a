"""Which files a model directory holds, and whether all of them are there.

Depends on: ``settings``; used by: loading, and the conversion to the released format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pixellm.checkpoint.settings import check_settings

PROCESSOR_FILES = ("processor_config.json", "tokenizer.json")
"""What a model directory holds beside its configuration and weights."""


def check_config(directory: Path) -> None:
    """Refuse a directory whose configuration holds settings that nobody knows.

    Raises:
        ValueError: such a setting, or a file that is no JSON object.
    """
    path = directory / "config.json"
    check_settings(path, read_json(path))


def check_files(directory: Path) -> list[Path]:
    """Refuse a directory whose configuration or weights cannot be right.

    Returns:
        Its weight files.

    Raises:
        FileNotFoundError: a shard, the index, or a file of the processor is missing.
        ValueError: unknown settings, a damaged index or one that leads elsewhere, or only pickled
            weights.
    """
    check_config(directory)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = _shard_names(index)
    elif (directory / "model.safetensors").is_file():
        names = ["model.safetensors"]
    elif any(directory.glob("*.bin")):
        raise ValueError(
            f"{directory} holds pickled weights only; convert it with: "
            f"pixellm convert {directory} --out DIR"
        )
    else:
        raise FileNotFoundError(f"{directory} holds no weights: model.safetensors is missing.")
    missing = [n for n in (*names, *PROCESSOR_FILES) if not (directory / n).is_file()]
    if missing:
        raise FileNotFoundError(f"{directory} lacks {', '.join(missing)}; copy the model again.")
    return [directory / name for name in names]


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} names no weight files; copy the model again.")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if name in ("", ".", "..") or set(name) & {"/", "\\"}]
    if outside:
        raise ValueError(f"{index} names {outside[0]!r}, which is no file beside it.")
    return names


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return values
