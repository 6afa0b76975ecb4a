"""What was read of prompts about an image, kept for the next prompt about it.

Prompts about one image begin alike: the template and the image, and in a dialogue all earlier
turns. Their keys and values are kept up to a number of bytes, the least recently used go first.
Shape legend: h heads, T ids, d head width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values (h, T, d) of each layer."""


@dataclass(frozen=True, eq=False)
class _Entry:
    ids: tuple[int, ...]
    memory: Memory

    @property
    def num_bytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.memory)


class PrefixStore:
    """Keeps keys and values of prompts' beginnings, up to ``max_bytes``; 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        # Images, and the entries of each, in the order of their last use.
        self._images: OrderedDict[Hashable, list[_Entry]] = OrderedDict()

    @property
    def is_open(self) -> bool:
        """Whether anything is ever kept."""
        return self.max_bytes > 0

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._images.values())

    def knows(self, key: Hashable) -> bool:
        """Whether anything is kept about an image."""
        return key in self._images

    def find(self, key: Hashable, ids: Sequence[int]) -> tuple[Memory, int]:
        """The memory that has the longest beginning in common with ``ids``, and its length."""
        entries = self._images.get(key, [])
        lengths = [_common(entry.ids, ids) for entry in entries]
        if not any(lengths):
            return [], 0
        length = max(lengths)
        entry = entries.pop(lengths.index(length))
        entries.append(entry)
        self._images.move_to_end(key)
        return entry.memory, length

    def put(self, key: Hashable, ids: Sequence[int], memory: Memory) -> None:
        """Keep the memory of ``ids``; entries that begin it, or that it begins, are one with it."""
        new = _Entry(tuple(ids), memory)
        entries = self._images.get(key, [])
        if new.num_bytes > self.max_bytes or any(
            _common(entry.ids, ids) == len(ids) for entry in entries
        ):
            return
        kept = [entry for entry in entries if _common(entry.ids, ids) < len(entry.ids)]
        self._images[key] = [*kept, new]
        self._images.move_to_end(key)
        gone = sum(entry.num_bytes for entry in entries) - sum(entry.num_bytes for entry in kept)
        self.num_bytes += new.num_bytes - gone
        while self.num_bytes > self.max_bytes:
            self._drop_oldest()

    def clear(self) -> None:
        """Keep nothing of what there is."""
        self._images.clear()
        self.num_bytes = 0

    def _drop_oldest(self) -> None:
        key, entries = next(iter(self._images.items()))
        self.num_bytes -= entries.pop(0).num_bytes
        if not entries:
            del self._images[key]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
