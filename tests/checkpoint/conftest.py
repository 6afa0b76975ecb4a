"""What the comparisons with the released code share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Note = Callable[[str, str, float, float], None]


@pytest.fixture
def note_difference(record_property: Callable[[str, object], None]) -> Note:
    """Tell ``benchmarks/released_differences.py`` of a difference.

    Takes how answers came about, the quantity with its unit, the difference and what is allowed.
    """

    def note(answers: str, quantity: str, found: float, allowed: float) -> None:
        record_property("difference", (answers, quantity, found, allowed))

    return note
