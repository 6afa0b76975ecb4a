"""What is measured beside busy processes is work, and rates are compared the right way round."""

from __future__ import annotations

import pytest

import contention


@pytest.mark.parametrize(
    ("kind", "done"), [(contention.KINDS[0], 1), (contention.KINDS[2], contention.ROWS)]
)
def test_a_piece_of_work_says_how_much_it_did(kind: str, done: int) -> None:
    assert contention.prepare(kind, "one")() == done


def test_rates_are_compared_with_idle_and_with_the_first_way() -> None:
    rates = {
        ("torch", 0): [10.0],
        ("pixellm", 0): [8.0],
        ("torch", 2): [1.0, 2.0, 9.0],
        ("pixellm", 2): [4.0],
    }
    found = {(r["way"], r["busy neighbours"]): r for r in contention.make_rows("answers", rates)}
    assert found["torch", 2]["times slower than its idle"] == 5
    assert found["pixellm", 2]["times slower than its idle"] == 2
    assert found["pixellm", 0]["of torch beside as many"] == 0.8
    assert found["pixellm", 2]["of torch beside as many"] == 2
