"""Tiny masks written as numbers, for tests of scores."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

HEIGHT, WIDTH = 3, 4

mask_bits = st.integers(0, 2 ** (HEIGHT * WIDTH) - 1)

untimed = settings(deadline=None, derandomize=True)


def masks_of(*bits: int) -> np.ndarray:
    """(len(bits), 3, 4) bool masks, each given by the bits of a number; bit 0 is pixel (0, 0)."""
    rows = [[bool(number >> i & 1) for i in range(HEIGHT * WIDTH)] for number in bits]
    return np.array(rows, dtype=np.bool_).reshape(-1, HEIGHT, WIDTH)
