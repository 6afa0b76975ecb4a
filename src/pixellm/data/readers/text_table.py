"""Many short texts in two arrays: processes share them, and a million costs little memory.

A Python list of as many strings would be copied by every worker as soon as it is read. Knows
nothing of what the texts say.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class TextTable:
    """Texts by number.

    Args:
        texts: read once.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        joined, ends = bytearray(), array("q", [0])
        for text in texts:
            joined += text.encode()
            ends.append(len(joined))
        self._joined = bytes(joined)
        self._ends: NDArray[np.int64] = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        """A text.

        Raises:
            IndexError: there are not so many.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Text {index} of {len(self)}.")
        return self._joined[self._ends[index] : self._ends[index + 1]].decode()

    @property
    def num_bytes(self) -> int:
        """What the table takes up."""
        return len(self._joined) + self._ends.nbytes
