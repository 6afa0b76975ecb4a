"""Float32 for the parts that masks hang on, whatever type the rest of their model has.

Half precision moves a mask's edge. The way from the language model's last states through the
codebook to the pixel decoder holds about one percent of a full-size model, and its roundings are
the ones that masks show most; docs/released-weights.md has the shares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

_FINAL_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f")
"""What transformers' families call the norm behind their last layer."""


class FullPrecision(nn.Module):
    """A part that stays in float32 where its model goes to half precision.

    A subclass brings its inputs to :attr:`dtype` itself; everything behind that stays there.
    """

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights: float32, or float64 where the model was taken there."""
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the model to another device or to a wider type, but never to a narrower one.

        All of ``to``, ``half`` and ``bfloat16`` come through here.
        """

        def follow(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.is_floating_point() and moved.dtype.itemsize < torch.float32.itemsize:
                return tensor.to(moved.device, torch.float32)
            return moved

        return super()._apply(follow, recurse)


def keep_in_full_precision(module: nn.Module) -> None:
    """Make a :class:`FullPrecision` part of another library's module, in place.

    The module stays an instance of its own class and its weights keep their names.

    Args:
        module: takes its states as the first argument of ``forward``.
    """
    own: Any = type(module)

    def forward(self: FullPrecision, states: Tensor, *others: Any, **named: Any) -> Any:
        return own.forward(self, states.to(self.dtype), *others, **named)

    module.__class__ = type(own.__name__, (FullPrecision, own), {"forward": forward})
    module.float()


def final_norm(language_model: nn.Module) -> nn.Module | None:
    """The norm that a language model's last states come out of; None where it has no such name."""
    found = (getattr(language_model, name, None) for name in _FINAL_NORMS)
    return next((module for module in found if isinstance(module, nn.Module)), None)
