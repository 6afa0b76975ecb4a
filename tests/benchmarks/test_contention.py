"""What is measured beside busy processes is work, and rates are compared the right way round."""

from __future__ import annotations

import pytest

import contention


@pytest.mark.parametrize(
    ("kind", "done"), [(contention.KINDS[0], 1), (contention.KINDS[2], contention.ROWS)]
)
def test_a_piece_of_work_says_how_much_it_did(kind: str, done: int) -> None:
    assert contention.prepare(kind, before=False)() == done


def test_rates_are_compared_with_idle_and_with_before() -> None:
    rates = {(True, 0): [10.0], (False, 0): [8.0]}
    found = contention.row("answers", 2, [1.0, 2.0, 9.0], [4.0], rates)
    assert found["gain"] == 2
    assert found["before, times idle"] == 5
    assert found["after, times idle"] == 2
