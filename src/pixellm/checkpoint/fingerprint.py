"""A short name for what a model consists of, cheap enough to take before every evaluation.

Two models of one path get two names, and a copy keeps its name: contents count, paths and times
do not.

What it sees of a folder: the settings, the tokenizer and every file of up to 64 MiB whole; of a
larger safetensors file each tensor's name, type, shape and three blocks of 4 KiB (first, middle,
last); of any other larger file 1024 such blocks and the last MiB, where an archive of tensors
keeps the checksums of them all. What it does not see is a change inside a large file that leaves
all of those bytes alone: training never does that, an editor of single weights might.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pixellm.checkpoint.adapters import read_adapter_config
from pixellm.checkpoint.hub import MODEL_FILES, fetch_directory
from pixellm.checkpoint.sources import is_adapter_folder, resolve_source
from pixellm.files import parse_json

WHOLE_BYTES = 64 << 20
"""Files up to this size are read from end to end."""

BLOCK_BYTES = 4 << 10
_NUM_BLOCKS = 1024
_ARCHIVE_END = 1 << 20
_LENGTH = 16
_HEADER_LIMIT = 100_000_000
"""Longest header that the safetensors format allows."""


def fingerprint_model(source: str | Path) -> str:
    """Name a model by its contents.

    Args:
        source: an embedded name, a directory, a run's folder, or a hub id. Adapters are named
            together with the model that they belong to.

    Returns:
        16 hexadecimal digits; of a hub's model the beginning of the commit that is loaded.

    Raises:
        FileNotFoundError: no such model; or the hub is asked for one and can't be reached.
        ValueError: a directory without a model.
    """
    found = resolve_source(source)
    folder = Path(found)
    if not folder.is_dir():
        return fetch_directory(found, patterns=("config.json",)).name[:_LENGTH]
    is_adapted = is_adapter_folder(folder)
    return fingerprint_files(
        "", folder, end=fingerprint_model(read_adapter_config(folder)[1]) if is_adapted else ""
    )


def fingerprint_files(start: str, *folders: Path, end: str = "") -> str:
    """Name the files of models in folders, and what is told before and behind them."""
    digest = hashlib.sha256(start.encode())
    for folder in folders:
        found = {path for pattern in MODEL_FILES for path in folder.glob(pattern)}
        for path in sorted(path for path in found if path.is_file()):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            for block in _blocks(path):
                digest.update(block)
    digest.update(end.encode())
    return digest.hexdigest()[:_LENGTH]


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file that count."""
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        yield path.read_bytes()
        return
    with path.open("rb") as file:
        header = _safetensors_header(file, size) if path.suffix == ".safetensors" else None
        if header is None:
            starts: Iterable[int] = range(0, size, max(1, size // _NUM_BLOCKS))
        else:
            yield header
            starts = _tensor_starts(header, size)
        for start in starts:
            file.seek(start)
            yield file.read(BLOCK_BYTES)
        file.seek(max(0, size - _ARCHIVE_END))
        yield file.read()


def _safetensors_header(file: BinaryIO, size: int) -> bytes | None:
    """The part that lists the tensors; None in a file that is damaged."""
    length = int.from_bytes(file.read(8), "little")
    return file.read(length) if length <= min(size - 8, _HEADER_LIMIT) else None


def _tensor_starts(header: bytes, size: int) -> Iterator[int]:
    """Where the first, the middle and the last block of each tensor begin."""
    try:
        spans = [
            (int(begin), int(end))
            for name, tensor in parse_json(header).items()
            if name != "__metadata__"
            for begin, end in [tensor["data_offsets"]]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        spans = [(0, size)]  # damaged: loading it will say so
    for begin, end in spans:
        last = max(begin, end - BLOCK_BYTES)
        for start in (begin, (begin + last) // 2, last):
            yield min(8 + len(header) + start, size)
