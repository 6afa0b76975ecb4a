"""A converted checkpoint back to the released layout, identical to the bit.

Knows the checkpoint's folder ``released``: what only released models have is kept there at
conversion, and put back here. One shard is in memory at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixellm.checkpoint.model_files import check_files
from pixellm.checkpoint.pretrained import from_pretrained
from pixellm.checkpoint.released_keys import Move
from pixellm.checkpoint.tensor_moves import first_names, moves_of, undo_move
from pixellm.checkpoint.weight_files import (
    Progress,
    WeightFiles,
    check_disk_space,
)
from pixellm.files import new_folder
from pixellm.model.config import PixelLMConfig

KEPT_DIR = "released"
"""Folder of a converted checkpoint with all that the way back needs."""

_EXTRAS = "extras.safetensors"
_LAYOUT = "layout.json"
_WEIGHT_SUFFIXES = (".bin", ".safetensors", ".pt", ".pth", ".h5", ".msgpack")
_KEPT_BYTES = 64 << 20


def convert_to_released(
    source: str | Path, out: str | Path, *, progress: Progress | None = None
) -> Path:
    """Write a converted checkpoint back in the released layout, identical to the bit.

    The vision tower is left out, as in the release. Weights that were trained since are written
    as they are now.

    Args:
        source: a checkpoint that :func:`~pixellm.checkpoint.convert.convert_released` wrote.
        out: directory to write; it must not exist or be empty.
        progress: told how many bytes of how many are done.

    Raises:
        FileNotFoundError: the checkpoint lacks its folder ``released``, or weights.
        ValueError: tensors that do not fit the table.
        OSError: not enough room on the disk.
    """
    directory, out = Path(source), Path(out)
    kept = directory / KEPT_DIR
    if not (kept / _LAYOUT).is_file():
        raise FileNotFoundError(
            f"{directory} lacks the folder {KEPT_DIR!r} with the parts that only released models "
            "have; copy it from the checkpoint that the model was trained from."
        )
    check_files(directory)
    config = from_pretrained(PixelLMConfig, directory)
    layout: dict[str, list[str]] = json.loads((kept / _LAYOUT).read_text(encoding="utf-8"))
    extras = load_file(kept / _EXTRAS) if (kept / _EXTRAS).is_file() else {}
    files = WeightFiles(directory)
    reader = _BackwardReader(files, moves_of(config), extras)
    reader.check_layout(layout)
    check_disk_space(out, int(files.num_bytes * 1.02) + (64 << 20))
    done = 0
    with new_folder(out) as partial:
        for path in sorted(kept.iterdir()):
            if path.name not in (_EXTRAS, _LAYOUT):
                shutil.copyfile(path, partial / path.name)
        for name, keys in layout.items():
            tensors = reader.read(keys)
            _save_shard(tensors, partial / name)
            done += sum(t.numel() * t.element_size() for t in tensors.values())
            del tensors
            if progress is not None:
                progress(min(done, files.num_bytes), files.num_bytes)
    return out


def keep_rest(
    source: Path,
    files: WeightFiles,
    extras: dict[str, Tensor],
    layout: dict[str, list[str]],
    kept: Path,
) -> None:
    """Keep the dropped tensors and all small files of the source for the way back.

    Args:
        source: directory of the released model.
        files: its weights.
        extras: the dropped tensors, by released name.
        layout: the names that each file of weights holds, in order.
        kept: the folder to make.
    """
    kept.mkdir()
    for path in sorted(source.iterdir()):
        small = path.is_file() and path.stat().st_size < _KEPT_BYTES
        if small and path.suffix not in _WEIGHT_SUFFIXES and path.name not in files.files:
            shutil.copyfile(path, kept / path.name)
    if extras:
        save_file({name: t.contiguous() for name, t in extras.items()}, kept / _EXTRAS)
    text = json.dumps(layout, indent=2)
    (kept / _LAYOUT).write_text(text + "\n", encoding="utf-8")


class _BackwardReader:
    """Reads released tensors out of a checkpoint, one by one."""

    def __init__(
        self, files: WeightFiles, table: Sequence[Move], extras: dict[str, Tensor]
    ) -> None:
        self.files = files
        self.by_source = {source: move for move in table for source in move.sources}
        self.extras = extras
        self.homes: dict[str, str] = {}
        for name in files.files:
            with safe_open(files.directory / name, "pt") as opened:
                self.homes |= dict.fromkeys(opened.keys(), name)

    def check_layout(self, layout: dict[str, list[str]]) -> None:
        """Every name of the layout must have a source, and every tensor a place in it."""
        wanted = {key for keys in layout.values() for key in keys}
        known = set(self.by_source) | set(self.extras)
        if wanted != known:
            raise ValueError(
                f"The folder {KEPT_DIR!r} of {self.files.directory} is of another model; it "
                f"differs in {first_names(sorted(wanted ^ known))}."
            )
        targets = {target for move in self.by_source.values() for target in move.targets}
        missing = sorted(targets - set(self.homes))
        if missing:
            raise ValueError(f"{self.files.directory} lacks the tensors {first_names(missing)}.")

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The released tensors of ``keys``."""
        return {key: self._read_one(key) for key in keys}

    def _read_one(self, key: str) -> Tensor:
        if key in self.extras:
            return self.extras[key]
        move = self.by_source[key]
        parts = undo_move(move, [self._load(target) for target in move.targets])
        return parts[move.sources.index(key)].contiguous()

    def _load(self, name: str) -> Tensor:
        with safe_open(self.files.directory / self.homes[name], "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor


def _save_shard(tensors: dict[str, Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)
