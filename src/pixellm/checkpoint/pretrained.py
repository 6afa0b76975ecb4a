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
def told_as(fault: str) -> Iterator[None]:
    """Tell whatever a model's files or settings make other libraries stumble over as their fault.

    Configurations, tokenizers and models check what they are given each in its own way, or not at
    all. Errors that say themselves what is wrong pass as they are.

    Args:
        fault: the beginning of the sentence; the error follows in brackets.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError, SafetensorError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{fault} ({reason}).") from error


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
