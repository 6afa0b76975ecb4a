"""Reads a pickle that holds nothing but plain values; refuses every other one unread.

Some data sets are published as pickles, a format that can run code when it is opened. Here no
class and no function can be named, so nothing can be called. Memory stays below a few times the
size of the file: the unpickler written in Python numbers what it remembers in a dict, where the one
in C makes an array as long as a file of ten bytes asks for.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar, NoReturn


class _PlainUnpickler(pickle._Unpickler):
    """Builds numbers, texts, None, lists, tuples, sets and dicts."""

    dispatch: ClassVar = {
        code: build
        for code, build in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]  # makes as many bytes as it is told
    }

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an object outside the file")


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle of numbers, texts, None, lists, tuples, sets and dicts.

    Texts that Python 2 wrote as bytes are read as UTF-8; what is no UTF-8 becomes U+FFFD.
    ValueError where it holds anything else, or is damaged; nothing in it was run.
    """
    stream = io.BytesIO(path.read_bytes())
    try:
        return _PlainUnpickler(stream, encoding="utf-8", errors="replace").load()
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: a pickle of plain lists and dicts is needed, but {error}; "
            "download it again from a source that you trust."
        ) from None
    except Exception as error:  # a damaged stream can break any step of the machine
        raise ValueError(
            f"{path} is no readable pickle ({type(error).__name__}: {error}); download it again."
        ) from None
