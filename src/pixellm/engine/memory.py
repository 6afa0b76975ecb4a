"""Lack of memory: whether an error says so, and work in portions that shrink where it runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORDS = (
    "out of memory",  # MPS, and CUDA where no allocator of torch was asked
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # the same on Windows
    "defaultcpuallocator",
    "alloc_failed",  # CUDA's libraries for matrix products and convolutions
    "bad_alloc",
)


def run_in_portions(
    work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], largest: int
) -> list[Result]:
    """Work on ``items`` by portions of at most ``largest``; results in order.

    A portion that does not fit into memory is halved, and so are those behind it. What ``work``
    raises of a single item, or for another reason, passes.
    """
    done: list[Result] = []
    while len(done) < len(items):
        portion = items[len(done) : len(done) + largest]
        try:
            done += work(portion)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(portion) == 1:
                raise
            largest = len(portion) // 2
            free_memory()
    return done


def free_memory() -> None:
    """Give memory that nothing uses back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: a plain RuntimeError on a CPU, an error of its own on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in told for words in _WORDS)
