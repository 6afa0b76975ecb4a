"""Errors that say that memory ran out, and errors that say something else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pixellm.engine.memory import is_out_of_memory, run_in_portions

TOO_MANY = 1 << 55


@pytest.mark.parametrize("make", [torch.empty, np.empty], ids=["torch", "numpy"])
def test_a_tensor_that_no_machine_holds_is_out_of_memory(make: object) -> None:
    assert callable(make)
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        make(TOO_MANY)
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_mistake_is_not_tried_again() -> None:
    calls: list[int] = []

    def work(portion: Sequence[int]) -> list[int]:
        calls.append(len(portion))
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run_in_portions(work, range(4), 4)
    assert calls == [4]
