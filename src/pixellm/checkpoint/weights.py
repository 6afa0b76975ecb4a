"""Weight files of other models: found, read safely, and refused in one sentence; ours written.

Safetensors, and pickles that hold tensors and nothing else: whatever else a pickle asks for is
refused before it runs.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Progress = Callable[[int, int], None]
"""Told the bytes done and the bytes in all, shard by shard."""

_SHARD_SIZE = "2GB"
_NAMES = ("model.safetensors", "pytorch_model.bin")
_ZIP_MAGIC = b"PK\x03\x04"
_GIGABYTE = 1e9


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a model's folder, by name; those of archives stay on disk until used."""
    for name in _NAMES:
        if (directory / f"{name}.index.json").is_file():
            return _read_listed(directory / f"{name}.index.json")
        if (directory / name).is_file():
            return read_file(directory / name)
    shards = [*directory.glob("*-of-*.bin"), *directory.glob("*-of-*.safetensors")]
    if shards:
        index = f"{shards[0].name.split('-0')[0]}{shards[0].suffix}.index.json"
        raise FileNotFoundError(f"{directory} holds shards but no index; copy {index} beside them.")
    raise FileNotFoundError(
        f"{directory} holds no weights: neither {' nor '.join(_NAMES)} is there."
    )


def read_index(index: Path) -> dict[str, str]:
    """The tensors that an index lists, each with the file beside it that holds it."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        listed = {str(key): str(file) for key, file in weight_map.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        listed = {}
    if not listed:
        raise ValueError(f"{index} names no weight files; copy the model again.")
    names = sorted(set(listed.values()))
    if outside := [n for n in names if n in ("", ".", "..") or {*n} & {"/", "\\"}]:
        raise ValueError(f"{index} names {outside[0]!r}, which is no file beside it.")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(f"{index.parent} lacks {', '.join(missing)}; copy the model again.")
    return listed


def _read_listed(index: Path) -> dict[str, Tensor]:
    """The tensors of the files that an index names, none more and none less."""
    listed = read_index(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        held = read_file(index.parent / name)
        wrong = sorted(held.keys() ^ {key for key, file in listed.items() if file == name})
        if wrong:
            raise ValueError(
                f"{index.parent / name} differs from its index in {first_names(wrong)}."
            )
        tensors |= held
    return tensors


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); copy it again.") from error
    with path.open("rb") as stream:
        is_archive = stream.read(4) == _ZIP_MAGIC
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused: it is no plain file of tensors, and a pickle may run any code; "
            "nothing in it was run. Get the weights from their authors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it ends early"
        raise ValueError(f"{path} is damaged or cut short ({reason}); copy it again.") from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(f"{path} holds more than named tensors; it is no weight file of a model.")
    return loaded


def write_weights(
    tensors: Mapping[str, Tensor], path: Path, progress: Progress | None = None
) -> None:
    """Write tensors into one file, or into numbered shards beside it and their index.

    Args:
        tensors: by name.
        path: of the one file; safetensors or, by its suffix, pickled.
        progress: told after each shard.
    """
    pattern = f"{path.stem}{{suffix}}{path.suffix}"
    plan = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=pattern, max_shard_size=_SHARD_SIZE
    )
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())
    for file, names in plan.filename_to_tensors.items():
        shard = {name: tensors[name].contiguous() for name in names}
        if path.suffix == ".safetensors":
            save_file(shard, path.with_name(file), metadata={"format": "pt"})
        else:  # a pickle would take the whole storage of a view along
            torch.save({name: value.clone() for name, value in shard.items()}, path.with_name(file))
        done += sum(value.nbytes for value in shard.values())
        if progress is not None:
            progress(done, total)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True)
        path.with_name(f"{path.name}.index.json").write_text(text + "\n", encoding="utf-8")


def check_disk_space(out: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse to begin what cannot be finished."""
    needed = int(1.02 * sum(tensor.nbytes for tensor in tensors.values())) + (64 << 20)
    nearest = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise OSError(
            f"Writing {out} takes {needed / _GIGABYTE:.2f} GB but its disk has "
            f"{free / _GIGABYTE:.2f} GB free; make room or name another folder."
        )


def first_names(names: list[str]) -> str:
    """The first few names, for a message."""
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest
