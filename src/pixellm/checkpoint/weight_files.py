"""Weight files on disk, one shard at a time: reading foreign ones, writing ours.

Safetensors, and pickles that hold tensors and nothing else: whatever else a pickle asks for is
refused before it runs. It knows no model and no names of parameters.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Progress = Callable[[int, int], None]
"""Told the bytes done and the bytes in all, shard by shard."""

SHARD_BYTES = 2 << 30
"""Size that written shards stay below, unless one tensor alone is larger."""

_NAMES = ("model.safetensors", "pytorch_model.bin")
_ZIP_MAGIC = b"PK\x03\x04"
_GIGABYTE = 1e9


class WeightFiles:
    """The weight files of one model directory.

    Attributes:
        directory: where they lie.
        files: their names, in order.
        index: for each tensor its file, where the directory has an index; else None.
        index_name: name of the index file; "" without one.
    """

    def __init__(self, directory: Path) -> None:
        """Find the files.

        Raises:
            FileNotFoundError: no weights, or a file of them is missing.
            ValueError: a damaged index.
        """
        self.directory = directory
        self.index: dict[str, str] | None = None
        self.index_name = ""
        for name in _NAMES:
            if (directory / f"{name}.index.json").is_file():
                self.index_name = f"{name}.index.json"
                self.index = _read_index(directory / self.index_name)
                self.files = sorted(set(self.index.values()))
                break
            if (directory / name).is_file():
                self.files = [name]
                break
        else:
            self._fail_without_weights()
        missing = [name for name in self.files if not (directory / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{directory} lacks the weight files {', '.join(missing)}; copy them too."
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum((self.directory / name).stat().st_size for name in self.files)

    def shards(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield (file name, tensors), one file after the other; drop one before the next.

        Raises:
            ValueError: a damaged or hostile file, or one that differs from the index.
        """
        for name in self.files:
            tensors = load_shard(self.directory / name)
            if self.index is not None:
                listed = {key for key, file in self.index.items() if file == name}
                _check_names(self.directory / name, listed, set(tensors))
            yield name, tensors
            del tensors

    def _fail_without_weights(self) -> None:
        shards = [*self.directory.glob("*-of-*.bin"), *self.directory.glob("*-of-*.safetensors")]
        if shards:
            index = f"{shards[0].name.split('-0')[0]}{shards[0].suffix}.index.json"
            raise FileNotFoundError(
                f"{self.directory} holds shards but no index; copy {index} beside them."
            )
        raise FileNotFoundError(
            f"{self.directory} holds no weights: neither {' nor '.join(_NAMES)} is there."
        )


def load_shard(path: Path) -> dict[str, Tensor]:
    """Load the tensors of one file; those of a pickle stay on disk until they are read.

    Raises:
        ValueError: the file is damaged, cut short, or asks for more than tensors.
    """
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


class ShardWriter:
    """Writes tensors into numbered safetensors shards and, at the end, their index."""

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.directory = directory
        self.shard_bytes = shard_bytes
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = 0
        self.written: list[list[str]] = []
        self.num_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor; a full shard is written first."""
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.pending_bytes + size > self.shard_bytes:
            self.flush()
        # Safetensors refuses tensors that share memory, and a view would keep its base alive.
        owns = tensor.untyped_storage().nbytes() == size
        self.pending[name] = tensor.contiguous() if owns else tensor.contiguous().clone()
        self.pending_bytes += size

    def flush(self) -> None:
        """Write what is pending as one shard."""
        if not self.pending:
            return
        path = self.directory / f"part-{len(self.written) + 1:05d}.safetensors"
        save_file(self.pending, path, metadata={"format": "pt"})
        self.written.append(list(self.pending))
        self.num_bytes += self.pending_bytes
        self.pending, self.pending_bytes = {}, 0

    def finish(self) -> None:
        """Write the last shard, give the shards their final names and write the index."""
        self.flush()
        count = len(self.written)
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        if count == 1:
            names = ["model.safetensors"]
        for number, name in enumerate(names, start=1):
            (self.directory / f"part-{number:05d}.safetensors").rename(self.directory / name)
        if count > 1:
            weight_map = {
                key: name for name, keys in zip(names, self.written, strict=True) for key in keys
            }
            values = {"metadata": {"total_size": self.num_bytes}, "weight_map": weight_map}
            text = json.dumps(values, indent=2, sort_keys=True)
            index = self.directory / "model.safetensors.index.json"
            index.write_text(text + "\n", encoding="utf-8")


def check_disk_space(out: Path, needed: int) -> None:
    """Refuse to begin what cannot be finished.

    Raises:
        OSError: the disk of ``out`` has fewer than ``needed`` bytes free.
    """
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(
            f"Writing {out} takes {needed / _GIGABYTE:.2f} GB but its disk has "
            f"{free / _GIGABYTE:.2f} GB free; make room or name another place.",
        )


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        pairs = {str(key): str(file) for key, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of weight files; copy it again.") from error
    outside = [file for file in pairs.values() if Path(file).name != file]
    if outside:
        raise ValueError(f"{path} names {outside[0]!r}, which is no file beside it.")
    return pairs


def _check_names(path: Path, listed: set[str], held: set[str]) -> None:
    if listed == held:
        return
    problems = [
        f"{label} {', '.join(sorted(names)[:5])}"
        for label, names in (("lacks", listed - held), ("adds", held - listed))
        if names
    ]
    raise ValueError(f"{path} differs from its index: it {' and '.join(problems)}.")
