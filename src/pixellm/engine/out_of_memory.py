"""Whether an error says that memory ran out, in whichever words the device says so.

Knows errors only: what is given up, halved or told then is decided by whoever catches them.
"""

from __future__ import annotations

import torch

_WORDS = (
    "out of memory",  # MPS, and CUDA where no allocator of torch was asked
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # the same on Windows
    "defaultcpuallocator",
    "alloc_failed",  # CUDA's libraries for matrix products and convolutions
    "bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: a plain RuntimeError on a CPU, an error of its own on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in told for words in _WORDS)
