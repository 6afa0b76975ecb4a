"""Keys and values of many rows in one buffer: a batch that rows enter and leave at any time.

Each row owns a slot, and its ids stand in the slot from 0 on without holes, so that a key's index
is its position. Buffers are made once and written in place: nothing is copied as answers grow, and
shapes can stay fixed for compiled steps. Shape legend: R slots, C positions of a slot, B rows of a
pass, F new ids of a row, D text width, h heads, d head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from pixellm.engine.row import KVBackend, Row
from pixellm.model.llama_steps import MAX_ROWS, LlamaSteps, can_step
from pixellm.model.modeling import PixelLMForConditionalGeneration

_PLACES_STEP = 64
_PADDING_BUDGETS = {"cpu": 16}
_PADDING_BUDGET_ELSEWHERE = 256
"""Ids that a pass computes in about the time in which it reads the weights; an estimate."""


def longest_slot(model: PixelLMForConditionalGeneration) -> int:
    """The longest row in ids that the model's family can read in slots; 0 where it can't at all.

    The family has to take prepared attention masks and fixed caches, as transformers says of its
    class, and every layer has to see the whole row: a row ends where the shortest window does.
    """
    language_model: Any = model.model.language_model
    config = model.config.text_config
    rules = model.model.reading
    fits = rules.packs and getattr(language_model, "_can_compile_fullgraph", False)
    # Flash attention takes no mask that differs from row to row of a pass.
    if not fits or config._attn_implementation not in ("sdpa", "eager"):
        return 0
    return min(window or sys.maxsize for window in rules.windows.values())


def compile_forward(model: PixelLMForConditionalGeneration) -> Callable[..., Any]:
    """The model's pass over ids, compiled for fixed shapes, and as CUDA graphs on a GPU."""
    compiled = torch.compile(model.model.forward, mode="reduce-overhead", dynamic=False)

    def run(*inputs: Any, **options: Any) -> Any:
        if model.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(*inputs, **options)

    return run


class _Pass:
    """Where one pass over the model writes and what it sees; set before each, read by layers."""

    rows: Tensor
    positions: Tensor
    chosen: slice | Tensor
    length: int
    span: tuple[int, slice] | None
    """Slot and positions where a single row writes."""


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values: (R, h, C, d) each."""

    is_sliding = False

    def __init__(self, current: _Pass, size: tuple[int, int], fixed: bool) -> None:
        super().__init__()
        self.current = current
        self.size = size
        self.fixed = fixed

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
        self.is_initialized = True

    def _buffer(self, states: Tensor) -> Tensor:
        rows, length = self.size
        # Zeros: what is masked out still enters products, and must not be NaN.
        buffer = states.new_zeros(rows, states.shape[1], length, states.shape[-1])
        if self.fixed:  # CUDA graphs write into it in place only if it is known to stay
            torch._dynamo.mark_static_address(buffer)
        return buffer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, h, F, d) states of the pass; return all that its rows may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        now, device = self.current, key_states.device
        if now.span is not None:
            slot, written = now.span
            self.keys[slot, :, written], self.values[slot, :, written] = (
                key_states[0],
                value_states[0],
            )
            seen = slice(slot, slot + 1), slice(None), slice(now.length)
            return self.keys[seen], self.values[seen]
        # Layers of one model may lie on several devices.
        rows, positions = now.rows.to(device), now.positions.to(device)
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[rows, :, positions] = states.transpose(1, 2)
        keys, values = self.keys[:, :, : now.length], self.values[:, :, : now.length]
        chosen = now.chosen if isinstance(now.chosen, slice) else now.chosen.to(device)
        return keys[chosen], values[chosen]

    def resize(self, rows: int, length: int) -> None:
        self.size = (rows, length)
        if self.is_initialized:
            self.keys, self.values = self._resized(self.keys), self._resized(self.values)

    def _resized(self, old: Tensor) -> Tensor:
        new = self._buffer(old)
        new[: old.shape[0], :, : old.shape[2]] = old
        return new

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.current.length, 0

    def get_seq_length(self) -> int:
        return self.current.length - self.current.positions.shape[1]

    def get_max_length(self) -> int:
        return self.size[1]


class SlotRows(KVBackend):
    """Reads many rows together, each in its slot.

    Args:
        model: of a family that reads in slots, see :func:`longest_slot`.
        forward: runs steps of fixed shape instead of ``model.model``, see
            :func:`compile_forward`: the number of rows is a power of two, and a slot's positions
            are all seen. None lets shapes follow what there is.
    """

    shares_prefixes = True

    def __init__(
        self,
        model: PixelLMForConditionalGeneration,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model)
        self.fixed = forward is not None
        self._model_forward = forward or model.model
        self._steps: LlamaSteps | None = None
        if forward is None and can_step(model.model.language_model):
            self._steps = LlamaSteps(model.model.language_model)
        padding_costs = _PADDING_BUDGETS.get(model.device.type, _PADDING_BUDGET_ELSEWHERE)
        self.padding_budget = float("inf") if self.fixed else float(padding_costs)
        self._current = _Pass()
        self._start()

    def _start(self) -> None:
        """Empty buffers, allocated when the first states come."""
        self._size = (0, 0)
        count = self.model.config.text_config.num_hidden_layers
        self._layers = [_SlotLayer(self._current, self._size, self.fixed) for _ in range(count)]
        self._cache = Cache(layers=self._layers)
        self._visible = torch.ones(0, 0, dtype=torch.bool, device=self.model.device)

    def add(self, row: Row) -> None:
        """Give a row the next slot."""
        super().add(row)
        self._reserve(len(self.rows), self._needed(row))
        slot, shown = len(self.rows) - 1, row.prompt.visible
        self._visible[slot] = True
        if not all(shown):
            self._visible[slot, : len(shown)] = torch.tensor(shown, device=self._visible.device)

    def remove(self, row: Row) -> None:
        """Free a row's slot; the last row moves into it, so that slots stay next to each other."""
        slot, last = self.rows.index(row), self.rows.pop()
        if last is row:
            return
        self.rows[slot] = last
        self._visible[slot] = self._visible[len(self.rows)]
        self.load(last, self._views(len(self.rows), last.read), last.read)

    def clear(self) -> None:
        """Forget every row, and give the memory back."""
        self.rows.clear()
        self._start()

    def copy(self, row: Row, length: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (h, length, d) of a row's first ids, layer by layer."""
        views = self._views(self.rows.index(row), length)
        return [(keys.clone(), values.clone()) for keys, values in views]

    def load(self, row: Row, memory: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """Remember the first ``length`` ids of a copy as the row's own."""
        slot = self.rows.index(row)
        for layer, (keys, values) in zip(self._layers, memory, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[slot, :, :length] = keys[:, :length]
            layer.values[slot, :, :length] = values[:, :length]

    def forward(self, rows: Sequence[Row], new_ids: Sequence[Sequence[int]]) -> Tensor:
        """Read the next ids of rows in one pass."""
        slots, device = [self.rows.index(row) for row in rows], self.model.device
        images = [row.prompt.image_tokens for row in rows if row.read == 0]
        placed = [image for image in images if image is not None]
        shown = torch.stack(placed) if placed else None
        # Padding is a row's last id again, at its last position, written behind what counts.
        width, lines = max(map(len, new_ids)), [list(new) for new in new_ids]
        is_step = shown is None and width in (1, self.model.config.group_size)
        is_fixed = self.fixed and is_step and len(slots) == len(self.rows)
        starts = [row.read for row in rows]
        ends = [start + len(new) for start, new in zip(starts, new_ids, strict=True)]
        if is_fixed:
            spare = _power_of_two(len(slots)) - len(slots)
            slots += range(len(slots), len(slots) + spare)
            lines += [[0]] * spare
            starts, ends = starts + [0] * spare, ends + [1] * spare
        self._reserve(max(slots) + 1, max(starts) + width)
        ids = torch.tensor([x + x[-1:] * (width - len(x)) for x in lines], device=device)
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(
            width, device=device
        )
        self._aim(slots, positions, self._size[1] if is_fixed else max(starts) + width)
        mask = self._mask(positions)
        if len(rows) > 1:
            positions = positions.minimum(torch.tensor(ends, device=device)[:, None] - 1)
        if self._steps is not None and shown is None and ids.numel() <= MAX_ROWS:
            stepped: Tensor = self._steps(ids, positions, mask, self._remember)
            return stepped
        run = self._model_forward if is_fixed else self.model.model
        output = run(
            ids,
            image_tokens=shown,
            attention_mask=mask,
            position_ids=positions,
            cache=self._cache,
            use_cache=True,
        )
        states: Tensor = output.last_hidden_state[: len(rows)]
        # A graph's next run writes over its outputs, and states are needed beyond it.
        return states.clone() if is_fixed else states

    def _remember(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self._layers[layer].update(keys, values)

    def _aim(self, slots: list[int], positions: Tensor, length: int) -> None:
        """Tell the layers where the next pass writes and what it sees."""
        rows = torch.tensor(slots, device=positions.device)
        first, following = slots[0], slots == list(range(slots[0], slots[0] + len(slots)))
        self._current.rows, self._current.positions = rows[:, None], positions
        self._current.chosen = slice(first, first + len(slots)) if following else rows
        self._current.length = length
        self._current.span = None
        if len(slots) == 1 and not self.fixed:
            start = length - positions.shape[1]
            self._current.span = first, slice(start, length)

    def _mask(self, positions: Tensor) -> Tensor:
        """Additive (B, 1, F, length) mask: a row's own visible ids up to each new one."""
        now = self._current
        keys = torch.arange(now.length, device=positions.device)
        visible = self._visible[:, : now.length][now.chosen]
        allowed = visible[:, None] & (keys <= positions[..., None])
        # Every query sees something, itself, or its softmax would be undefined.
        allowed |= keys == positions[..., None]
        table: Any = self.model.get_input_embeddings()
        bias = torch.zeros(allowed.shape, dtype=table.weight.dtype, device=positions.device)
        return bias.masked_fill(~allowed, torch.finfo(bias.dtype).min)[:, None]

    def _needed(self, row: Row) -> int:
        """Places that a row will take; its longest answer counts where shapes are fixed."""
        longest = len(row.prompt.ids) + row.prompt.max_new_tokens
        width = self.model.config.group_size
        return _power_of_two(longest + width) if self.fixed else len(row.ids)

    def _reserve(self, rows: int, length: int) -> None:
        """Make the buffers hold so many rows and positions, with room to grow."""
        if rows <= self._size[0] and length <= self._size[1]:
            return
        if rows > self._size[0]:
            rows = _power_of_two(rows)
        if length > self._size[1]:
            grown = length if self.fixed else max(length, self._size[1] * 3 // 2)
            length = -(-grown // _PLACES_STEP) * _PLACES_STEP
        self._size = (max(rows, self._size[0]), max(length, self._size[1]))
        for layer in self._layers:
            layer.resize(*self._size)
        visible = torch.ones(self._size, dtype=torch.bool, device=self._visible.device)
        visible[: self._visible.shape[0], : self._visible.shape[1]] = self._visible
        self._visible = visible

    def _views(self, slot: int, length: int) -> list[tuple[Tensor, Tensor]]:
        return [
            (layer.keys[slot, :, :length], layer.values[slot, :, :length]) for layer in self._layers
        ]


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()
