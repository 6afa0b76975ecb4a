"""Load parts of a model with transformers, and never run code that lies beside the weights.

Used by: everything in this folder that reads somebody's model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
