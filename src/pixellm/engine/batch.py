"""Answer generation: rows enter a running batch, are written step by step, and leave it.

When the first token of a codebook group is chosen the rest of the group is no choice any more, so
the whole group is read in one pass. Rows of a batch may be in different states: a pass reads one id
of one row and a group of another. Shape legend: B rows, T tokens, D text width, V vocabulary, G
tokens of a group, K targets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pixellm.engine.cache import SlotRows, longest_slot
from pixellm.engine.memory import free_memory, is_out_of_memory
from pixellm.engine.prefixes import PrefixStore
from pixellm.engine.row import KVBackend, Prompt, Row, SeparateRows
from pixellm.engine.sampling import choose_ids
from pixellm.model.modeling import PixelLMForConditionalGeneration

Chooser = Callable[[Tensor, Sequence[Row]], Sequence[int]]
"""Picks the next id of each row from (B, V) float32 logits."""


@dataclass(frozen=True)
class Step:
    """What the row of that number gained in one step: one id, or those of a codebook group.

    A group's mask is read from its (G, D) hidden states.
    """

    row: int
    ids: tuple[int, ...]
    group_states: Tensor | None
    finished: bool


@dataclass
class GeneratedAnswer:
    """A row's answer: all new ids, and the (G, D) states of each complete group."""

    ids: list[int] = field(default_factory=list)
    group_states: list[Tensor] = field(default_factory=list)

    def extend(self, step: Step) -> None:
        """Add what the row gained in a step."""
        self.ids.extend(step.ids)
        if step.group_states is not None:
            self.group_states.append(step.group_states)


def choose_by_options(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """As each prompt's options say: the most likely id, or one drawn."""
    return choose_ids(logits, [row.sampler for row in rows])


class AnswerLoop:
    """Continuous batching: prompts wait, are answered side by side, and make room for others.

    Where memory runs out, half of the rows go back to waiting and all are read again when their
    turn comes; nothing that was written is lost.

    Args:
        model: in evaluation mode.
        eos_ids: ids that end an answer.
        max_rows: most rows answered at the same time.
        forbidden_ids: ids that may never be written, such as the image placeholder.
        prefixes: where beginnings that prompts have in common are kept; None shares nothing.
        slots: reads rows together; made for the model where None.
        choose: picks the next ids.

    Attributes:
        max_rows: lowered where memory ran out.
    """

    def __init__(
        self,
        model: PixelLMForConditionalGeneration,
        *,
        eos_ids: frozenset[int],
        max_rows: int,
        forbidden_ids: Sequence[int] = (),
        prefixes: PrefixStore | None = None,
        slots: SlotRows | None = None,
        choose: Chooser = choose_by_options,
    ) -> None:
        self.model = model
        self.max_rows = max_rows
        self._eos_ids = eos_ids
        self._prefixes = prefixes if prefixes is not None else PrefixStore(0)
        self._choose = choose
        self._codebook = list(model.config.codebook_token_ids)
        # Only the first id of a group is a choice; the others follow it and nothing else.
        size = model.config.text_config.vocab_size
        unwanted = [i for i in (*self._codebook[1:], *forbidden_ids) if i < size]
        self._banned = torch.tensor(unwanted, dtype=torch.long, device=model.device)
        self._longest_slot = longest_slot(model)
        self._slots = slots if slots is not None else SlotRows(model)
        self._separate = SeparateRows(model)
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        self._ready: list[Step] = []
        self._count = 0

    def add(self, prompt: Prompt) -> int:
        """Let a prompt wait for its turn; returns the number that its steps will carry."""
        self._waiting.append(Row(self._count, prompt))
        self._count += 1
        return self._count - 1

    @property
    def is_busy(self) -> bool:
        """Whether any prompt waits or is being answered."""
        return bool(self._waiting or self._rows)

    @property
    def room(self) -> int:
        """How many more prompts could be answered now, side by side with the others."""
        return max(0, self.max_rows - len(self._rows) - len(self._waiting))

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """Let rows enter, and write each row's next id or group.

        Returns:
            At most one step of each row; fewer, or none, after memory ran out.

        Raises:
            RuntimeError, MemoryError: a single row does not fit, or the model failed otherwise.
        """
        try:
            self._admit()
            self._write()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._slots.clear()
            if len(self._rows) <= 1 and not len(self._prefixes):
                raise
            self._shrink()
        ready, self._ready = self._ready, []
        return ready

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Forget a prompt, waiting or half answered; one that is finished is none any more."""
        self._waiting = deque(row for row in self._waiting if row.index != number)
        for row in [row for row in self._rows if row.index == number]:
            self._rows.remove(row)
            backend = self._backend_of(row)
            if row in backend.rows:
                backend.remove(row)

    def close(self) -> None:
        """Forget every prompt."""
        for rows in (self._rows, self._slots.rows, self._separate.rows, self._waiting):
            rows.clear()

    def _backend_of(self, row: Row) -> KVBackend:
        longest = len(row.prompt.ids) + row.prompt.max_new_tokens
        return self._slots if longest <= self._longest_slot else self._separate

    def _admit(self) -> None:
        """Let waiting rows in, and read their prompts."""
        while self._waiting and len(self._rows) < self.max_rows:
            self._rows.append(self._waiting.popleft())
        # Of rows about the same new image the first reads it, for the others to share.
        leaders, followers, seen = list[Row](), list[Row](), set[object]()
        for row in self._rows:
            if row.state is None:
                key = row.prompt.key
                (followers if key in seen else leaders).append(row)
                if key is not None and self._prefixes.is_open and not self._prefixes.knows(key):
                    seen.add(key)
        self._read_prompts(leaders)
        self._read_prompts(followers)

    def _read_prompts(self, rows: Sequence[Row]) -> None:
        """Read what is not known of prompts; rows in which nothing is known go together."""
        passes: dict[tuple[int, bool, bool], list[Row]] = {}
        for row in rows:
            backend = self._backend_of(row)
            backend.add(row)
            self._recall(row, backend)
            kind = (id(backend), row.read == 0, row.prompt.image_tokens is None)
            passes.setdefault(kind, []).append(row)
        for (_, is_new, _), together in passes.items():
            backend = self._backend_of(together[0])
            self._read(backend, together, [row.used - row.read for row in together])
            for row in together if is_new else ():
                self._remember(row, backend, row.prompt.prefix)

    def _recall(self, row: Row, backend: KVBackend) -> None:
        """Take over what was read of the same beginning; the last id is always read anew."""
        if not backend.shares_prefixes or row.prompt.key is None:
            return
        memory, length = self._prefixes.find(row.prompt.key, row.ids[: row.used - 1])
        if memory and length >= row.prompt.prefix:
            backend.load(row, memory, length)
            row.read = length

    def _remember(self, row: Row, backend: KVBackend, length: int) -> None:
        """Keep what was read of a row's first ids for others."""
        if not (backend.shares_prefixes and row.prompt.key is not None and self._prefixes.is_open):
            return
        try:
            self._prefixes.put(row.prompt.key, row.ids[:length], backend.copy(row, length))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._prefixes.clear()  # to be kept is a convenience; the answer goes on

    def _write(self) -> None:
        """Choose ids, read them where anything depends on it, and hand them out."""
        asked = [row for row in self._rows if row.read == len(row.ids)]
        if asked:
            states = torch.stack([row.state for row in asked if row.state is not None])
            logits = self.model.compute_logits(states).float()
            logits[:, self._banned] = -torch.inf
            for row, chosen in zip(asked, self._choose(logits, asked), strict=True):
                row.ids += self._codebook if chosen == self._codebook[0] else [chosen]
        for row in self._rows.copy():
            # A row that ends with a whole group still needs that group's states.
            if self._is_last(row) and not self._completes_group(row):
                self._hand_out(row)
        for backend in (self._slots, self._separate):
            self._read_chosen(backend, backend.rows.copy())
        for row in self._rows.copy():
            self._hand_out(row)

    def _is_last(self, row: Row) -> bool:
        """Whether the row's turn ends its answer."""
        return len(row.turn) >= row.limit or row.turn[-1] in self._eos_ids

    def _completes_group(self, row: Row) -> bool:
        return row.turn[-1] == self._codebook[-1] and len(row.turn) <= row.limit

    def _hand_out(self, row: Row) -> None:
        """Tell what a row gained; a finished one makes room."""
        group = torch.stack(row.group) if row.group else None
        row.group = []
        is_last = self._is_last(row)
        ids = tuple(row.turn[: row.limit])
        self._ready.append(Step(row.index, ids, group, is_last))
        row.handed_out += len(ids)
        if is_last:
            self._rows.remove(row)
            backend = self._backend_of(row)
            if row.prompt.keep:
                self._remember(row, backend, row.read)
            backend.remove(row)

    def _read_chosen(self, backend: KVBackend, rows: Sequence[Row]) -> None:
        """Read the new ids of all rows, in one pass or, where that would be mostly padding, two."""
        counts = [len(row.ids) - row.read for row in rows]
        if sum(max(counts) - count for count in counts) > backend.padding_budget:
            self._read(backend, rows, [1] * len(rows))
            rows = [row for row in rows if row.read < len(row.ids)]
            counts = [len(row.ids) - row.read for row in rows]
        if rows:
            self._read(backend, rows, counts)

    def _read(self, backend: KVBackend, rows: Sequence[Row], counts: Sequence[int]) -> None:
        """Read the next ``counts`` ids of rows, and keep the states that matter."""
        ends = [row.read + count for row, count in zip(rows, counts, strict=True)]
        new_ids = [row.ids[row.read : end] for row, end in zip(rows, ends, strict=True)]
        own = self.model.config.codebook_states == "own"
        for row, end, states in zip(rows, ends, backend.forward(rows, new_ids), strict=True):
            new = [row.state, *states[: end - row.read]]
            if row.read >= row.used and row.ids[row.read] in self._codebook:
                row.group += [s for s in (new[1:] if own else new[:-1]) if s is not None]
            row.state, row.read, row.used = new[-1], end, max(end, row.used)

    def _shrink(self) -> None:
        """Give all memory back and go on with half of the rows, or with nothing kept for others."""
        self._separate.clear()
        self._prefixes.clear()
        if len(self._rows) > 1:
            self.max_rows = len(self._rows) // 2
        else:  # what is kept for others took its place: it goes on without, or not at all
            self._prefixes = PrefixStore(0)
        for row in sorted(self._rows, key=lambda row: row.index, reverse=True):
            row.read, row.state = 0, None
            self._waiting.appendleft(row)
        self._rows.clear()
        free_memory()
