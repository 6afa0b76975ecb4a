"""An engine that says back what it is asked, word by word, as slowly as wanted.

It keeps the contract of :meth:`pixellm.engine.Engine.open_batch`, so that a server around it can be
tested in milliseconds: queues, clients that leave, failures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pixellm.engine import AnswerOptions
from pixellm.types import Prediction, Request, Segment

LONG = "long"
"""A question with this word gets an answer that never ends by itself."""


class ScriptedEngine:
    """See the module; ``delay`` seconds a step, ``fail_on`` a word that breaks the batch."""

    def __init__(self, delay: float = 0.0, max_batch: int = 4, fail_on: str = "\0") -> None:
        self.delay = delay
        self.max_batch = max_batch
        self.fail_on = fail_on
        self.seen: list[tuple[Request, AnswerOptions]] = []
        self.cancelled = 0
        self.most_at_once = 0

    @contextmanager
    def open_batch(self) -> Iterator[ScriptedBatch]:
        yield ScriptedBatch(self)


class ScriptedBatch:
    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine
        self.rows: dict[int, Iterator[Any]] = {}
        self.count = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def room(self) -> int:
        return self.engine.max_batch - len(self.rows)

    def add(self, requests: Sequence[tuple[Request, AnswerOptions]]) -> list[Any]:
        numbers: list[Any] = []
        for request, options in requests:
            self.engine.seen.append((request, options))
            if "unanswerable" in request.question:
                numbers.append(ValueError("The question takes too many tokens."))
                continue
            if "memory" in request.question:
                raise MemoryError
            self.rows[self.count] = _pieces(request, options, self.engine.fail_on)
            numbers.append(self.count)
            self.count += 1
        self.engine.most_at_once = max(self.engine.most_at_once, len(self.rows))
        return numbers

    def cancel(self, number: int) -> None:
        if self.rows.pop(number, None) is not None:
            self.engine.cancelled += 1

    def step(self) -> list[tuple[int, Any]]:
        time.sleep(self.engine.delay)
        told = []
        for number, pieces in list(self.rows.items()):
            piece = next(pieces)
            told.append((number, piece))
            if isinstance(piece, Prediction):
                del self.rows[number]
        return told


def _pieces(request: Request, options: AnswerOptions, fail_on: str) -> Iterator[Any]:
    """The question's words, a mask over the left half behind the first, then the whole."""
    height, width = np.asarray(request.image).shape[:2]
    mask = np.zeros((height, width), bool)
    mask[:, : max(1, width // 2)] = True
    words = request.question.split()[: options.max_new_tokens]
    text, segments = "", []
    for number, word in enumerate(words):
        if word == fail_on:
            raise RuntimeError("/secret/path broke")
        piece = word if number == 0 else f" {word}"
        text += piece
        yield piece
        if number == 0:
            segments.append(Segment(word, mask, 0.9, (0, len(word))))
            yield segments[0]
        while word == LONG:
            yield " on"
    info = {
        "num_tokens": len(words),
        "num_prompt_tokens": 5 + len(request.history),
        "is_cut": len(words) == options.max_new_tokens,
        "num_filtered": 0,
        "marked_text": text.replace(words[0], words[0] + " {seg}", 1),
    }
    yield Prediction(text, tuple(segments), request.question, (height, width), info)
