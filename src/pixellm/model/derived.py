"""Values made from weights, kept while the weights stay as they are.

A product of two layers' weights, several weights laid side by side: what reads them often is made
once, and anew where training, loading or a move to another device changed them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class Derived(Generic[Value]):
    """The last value that was made, and from what."""

    def __init__(self) -> None:
        self._made_from: Hashable = None
        self._value: Value | None = None

    def get(
        self, weights: Sequence[Tensor], make: Callable[[], Value], also: Hashable = None
    ) -> Value:
        """The value of these weights; made, without a gradient, where they are not the last ones.

        Args:
            weights: all weights that the value depends on.
            make: makes it, of plain tensors that may take part in training.
            also: what else it depends on.
        """
        state = also, *map(_state_of, weights)
        if self._value is None or state != self._made_from:
            kind = weights[0].device.type
            rounds = torch.amp.is_autocast_available(kind)
            whole = torch.autocast(kind, enabled=False) if rounds else nullcontext()
            with torch.inference_mode(False), torch.no_grad(), whole:
                self._value, self._made_from = make(), state
        return self._value

    def __deepcopy__(self, memo: object) -> Derived[Value]:
        """Nothing is copied along with a module: its copy has weights of its own."""
        return Derived()

    def __reduce__(self) -> tuple[type[Derived[Value]], tuple[()]]:
        return Derived, ()


def _state_of(weight: Tensor) -> Hashable:
    """Where a weight lies, and how often it was written."""
    written = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), written, weight.device, weight.dtype
