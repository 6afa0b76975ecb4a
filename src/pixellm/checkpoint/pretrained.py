"""Load parts of a model with transformers, and never run code that lies beside the weights.

Used by: everything in this folder that reads somebody's model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError


@contextmanager
def told_as_damage(source: str | Path) -> Iterator[None]:
    """Tell what reading a model's folder stumbles over as a fault of its files.

    Configurations, tokenizers and processors check their files each in its own way, or not at all.

    Raises:
        ValueError: in place of errors that say nothing of files.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError, SafetensorError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"The model {str(source)!r} cannot be read, one of its files is damaged ({reason})."
        ) from error


def from_pretrained(kind: Any, source: str | Path, **options: Any) -> Any:
    """What ``kind.from_pretrained`` reads, without code from the model's folder.

    Where transformers has a class of its own for the model, that is used, whatever the folder names
    besides; nobody is asked whether foreign code may run.

    Args:
        kind: a class of transformers or of this package.
        source: folder or hub id.
        options: further arguments of ``from_pretrained``.

    Raises:
        ValueError: the model can't be read without code of its own.
        OSError: it is not there.
    """
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{source} needs Python code of its own to be read, which pixellm never runs; take a "
            "model of an architecture that transformers has."
        ) from None
