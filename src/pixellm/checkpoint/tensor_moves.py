"""The rename table at work: released tensors to those of a pixellm checkpoint and back, strictly.

Every tensor of the source is used or dropped by name, every tensor of the target is filled, and
shapes agree; anything else is an error that names the tensors. It knows tensors and their names;
it reads and writes no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pixellm.checkpoint.released_keys import DROPPED, Move, TableSizes, released_table
from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration


def moves_of(config: PixelLMConfig) -> list[Move]:
    """The table for a model of these sizes; a tied head has no move of its own."""
    sizes = TableSizes(
        text_layers=config.text_config.num_hidden_layers,
        scales=config.num_scales,
        decoder_layers=config.decoder_layers,
        upsampled_scales=tuple(
            scale for scale, factor in enumerate(config.decoder_upsampling) if factor == 2
        ),
    )
    table = released_table(sizes)
    if config.text_config.tie_word_embeddings:
        table = [move for move in table if move.sources != ("lm_head.weight",)]
    return table


def dropped_names(config: PixelLMConfig) -> tuple[str, ...]:
    """Patterns of released names that a model of this configuration has no use for."""
    tied = (r"lm_head\.weight",) if config.text_config.tie_word_embeddings else ()
    return (*DROPPED, *tied)


class MoveStream:
    """Applies a table's moves to tensors as they come, and keeps account of every name."""

    def __init__(
        self,
        table: Sequence[Move],
        config: PixelLMConfig,
        *,
        dropped: Sequence[str],
        place: str,
    ) -> None:
        self.by_source = {source: move for move in table for source in move.sources}
        self.dropped = re.compile("|".join(dropped)) if dropped else re.compile(r"(?!)")
        self.place = place
        self.expected = expected_shapes(config)
        self.filled: set[str] = set()
        self.waiting: dict[str, Tensor] = {}
        self.extras: dict[str, Tensor] = {}

    def check_source_names(self, names: Any, *, complete: bool = True) -> None:
        """Refuse names that the table doesn't know, and a table that isn't served.

        Raises:
            ValueError: naming the tensors.
        """
        if names is None:
            return
        unknown = [n for n in names if n not in self.by_source and not self.dropped.fullmatch(n)]
        if unknown:
            raise ValueError(
                f"{self.place} holds tensors that no rule knows: {first_names(unknown)}; "
                "is it another kind of model?"
            )
        missing = [n for n in self.by_source if n not in names] if complete else []
        if missing:
            raise ValueError(
                f"{self.place} lacks the tensors {first_names(missing)}; the download is "
                "incomplete or config.json is of another model."
            )

    def take(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Feed one source tensor; yields the target tensors that it completes."""
        move = self.by_source.get(name)
        if move is None:
            self.extras[name] = tensor.clone()
            return
        if len(move.sources) == 1:
            yield from self.put(zip(move.targets, apply_move(move, [tensor]), strict=True))
            return
        self.waiting[name] = tensor.clone()
        if all(source in self.waiting for source in move.sources):
            parts = [self.waiting.pop(source) for source in move.sources]
            yield from self.put(zip(move.targets, apply_move(move, parts), strict=True))

    def put(self, pairs: Any) -> Iterator[tuple[str, Tensor]]:
        """Check target tensors against the model's shapes and mark them as filled."""
        for name, tensor in pairs:
            shape = self.expected.get(name)
            if shape is None:
                raise ValueError(f"{self.place} gives {name}, which the model does not have.")
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{self.place} gives {name} the shape {tuple(tensor.shape)}, but its "
                    f"configuration makes it {shape}; config.json is of another model."
                )
            self.filled.add(name)
            yield name, tensor

    def check_complete(self) -> None:
        """Refuse a model with holes.

        Raises:
            ValueError: naming the tensors that nothing filled.
        """
        holes = [name for name in self.expected if name not in self.filled]
        if holes:
            raise ValueError(f"Nothing in {self.place} fills {first_names(holes)}.")


def expected_shapes(config: PixelLMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors, without making them; a tied head is left out."""
    with torch.device("meta"):
        model = PixelLMForConditionalGeneration(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.text_config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def apply_move(move: Move, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The targets of a move, from its sources in order."""
    if move.change == "squeeze_first":
        return [tensors[0][0]]
    if move.change == "split_mask_tokens":
        iou_token, mask_tokens = tensors
        return [mask_tokens[:1], torch.cat([iou_token, mask_tokens[1:]])]
    return list(tensors)


def undo_move(move: Move, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sources of a move, from its targets in order."""
    if move.change == "squeeze_first":
        return [tensors[0][None]]
    if move.change == "split_mask_tokens":
        mask_token, context = tensors
        return [context[:1], torch.cat([mask_token, context[1:]])]
    return list(tensors)


def first_names(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest
