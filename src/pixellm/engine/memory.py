"""Work in portions that shrink where memory runs out.

Knows nothing of what is worked on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from pixellm.engine.out_of_memory import is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_in_portions(
    work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], largest: int
) -> list[Result]:
    """Work on ``items`` by portions of at most ``largest``; results in order.

    A portion that does not fit into memory is halved, and so are those behind it.

    Raises:
        RuntimeError, MemoryError: a single item does not fit, or ``work`` failed otherwise.
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
