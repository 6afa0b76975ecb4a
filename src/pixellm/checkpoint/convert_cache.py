"""Released models used as they are: converted once into the Hugging Face cache, then reused.

It knows where a conversion belongs and when it is still good; how to convert is not its business.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from pixellm.checkpoint.convert import convert_released
from pixellm.checkpoint.hub import fetch_directory
from pixellm.checkpoint.released_config import is_released, read_config
from pixellm.checkpoint.released_tower import fetch_tower

_CONFIG_ONLY = ("config.json",)
_SMALL_BYTES = 1 << 20
_FORMAT = b"pixellm-2"


def cache_dir() -> Path:
    """Where converted models lie, one folder each, named by what they were made from."""
    return Path(constants.HF_HOME) / "pixellm"


def usable_checkpoint(
    source: str, vision_tower: str | Path | None = None, revision: str | None = None
) -> str:
    """A checkpoint that loads: the source itself, or the conversion of a released model.

    Args:
        source: directory or hub id.
        vision_tower: CLIP of a released model; the one that it names where None.
        revision: commit, tag or branch on the hub.

    Raises:
        FileNotFoundError, PermissionError, ValueError, OSError: as ``convert_released``.
    """
    probe = fetch_directory(source, revision, _CONFIG_ONLY)
    if not is_released(probe):
        return source
    directory = fetch_directory(source, revision)
    tower = fetch_tower(read_config(directory), vision_tower)
    out = cache_dir() / f"{directory.name[:40]}-{_content_key(directory, tower)}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(out.with_name(f".{out.name}.lock")):
        if not (out / "config.json").is_file():
            convert_released(directory, out, tower)
    return str(out)


def _content_key(*directories: Path) -> str:
    """A name for what directories hold: small files by content, large ones by size and time."""
    digest = hashlib.sha256(_FORMAT)
    for directory in directories:
        for path in sorted(p for p in directory.iterdir() if p.is_file()):
            status = path.stat()
            digest.update(f"{path.name}\0{status.st_size}\0".encode())
            if status.st_size < _SMALL_BYTES:
                digest.update(path.read_bytes())
            else:
                digest.update(str(status.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
