"""A running batch that stays open: requests enter at any time, leave early, and tell as they go.

For servers and streams, which don't know what will be asked next. Several threads may use it, one
at a time; they wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from pixellm.engine.answers import AnswerDecoder, GrowingAnswer, PendingAnswer
from pixellm.engine.batch import AnswerLoop
from pixellm.engine.sampling import AnswerOptions
from pixellm.types import Prediction, Request, Segment

Asked = tuple[Request, AnswerOptions]
Begin = Callable[[Sequence[Asked]], list[PendingAnswer | ValueError | OSError]]


@dataclass(eq=False)
class LiveBatch:
    """Answers that grow side by side; made by :meth:`pixellm.engine.Engine.open_batch`."""

    _loop: AnswerLoop
    _decoder: AnswerDecoder
    _begin: Begin
    _turn: AbstractContextManager[object]
    _growing: dict[int, GrowingAnswer] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._growing)

    @property
    def room(self) -> int:
        """How many more requests could be answered now, side by side with the others."""
        return self._loop.room

    def add(self, requests: Sequence[Asked]) -> list[int | ValueError | OSError]:
        """Let requests enter; images among them are encoded together.

        Each gets the number that its pieces will carry, or why it can't be answered.
        """
        with self._turn:
            return [
                self._enter(one) if isinstance(one, PendingAnswer) else one
                for one in self._begin(requests)
            ]

    def cancel(self, number: int) -> None:
        """Forget a request; one that is answered already is none any more."""
        with self._turn:
            if self._growing.pop(number, None) is not None:
                self._loop.cancel(number)

    def step(self) -> list[tuple[int, str | Segment | Prediction]]:
        """Write every answer's next token, or group.

        Returns:
            (number of the request, piece) of each piece of text that came, each Segment whose
            group is complete, and at an answer's end its Prediction.

        Raises:
            RuntimeError, MemoryError: memory ran out for a single row, or the model failed; the
                batch is of no further use.
        """
        with self._turn:
            steps = self._loop.step()
            groups = [
                (step.group_states, self._growing[step.row].pending.image)
                for step in steps
                if step.group_states is not None
            ]
            masks = iter(self._decoder.group_masks(groups) if groups else ())
            pieces: list[tuple[int, str | Segment | Prediction]] = []
            for step in steps:
                own = [] if step.group_states is None else [next(masks)]
                growing = self._growing[step.row]
                pieces += [(step.row, piece) for piece in growing.extend(step, own)]
                if step.finished:
                    del self._growing[step.row]
            return pieces

    def _enter(self, pending: PendingAnswer) -> int:
        number = self._loop.add(pending.prompt)
        self._growing[number] = GrowingAnswer(self._decoder, pending)
        return number
