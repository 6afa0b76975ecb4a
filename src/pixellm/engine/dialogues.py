"""Puts the questions of dialogues to a predictor, turn by turn, in full batches.

Anything with ``predict_batch`` can be evaluated: the engine, a remote model, a baseline. It knows
nothing of scores, and shows an answer from the data to no predictor but where it is to be given.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from pixellm.types import Prediction, Request, Sample, join_marks

if TYPE_CHECKING:
    from pixellm.engine import Engine


class Predictor(Protocol):
    """What an engine offers to an evaluation."""

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answer every request, in order, each on its own.

        Masks are (H, W) bool in pixels of the request's image.
        """
        ...


@dataclass(slots=True)
class AnsweredDialogue:
    """A dialogue with the answers it got.

    Attributes:
        index: its place in the input.
        sample: the dialogue.
        predictions: one per turn, as far as it is answered.
        seconds: per turn, its share of the batch it was answered in.
    """

    index: int
    sample: Sample
    predictions: list[Prediction] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def next_request(self) -> Request:
        """The next question; the history is what the predictor itself answered before."""
        earlier = zip(self.sample.turns, self.predictions, strict=False)
        history = tuple(
            (turn.question, answer.info.get("marked_text") or mark_answer(answer))
            for turn, answer in earlier
        )
        turn = self.sample.turns[len(self.predictions)]
        return Request(self.sample.image, turn.question, history, turn.takes_suffix)

    @property
    def is_complete(self) -> bool:
        """Whether every turn is answered."""
        return len(self.predictions) == len(self.sample.turns)


def mark_answer(prediction: Prediction) -> str:
    """An answer's text with ``{seg}`` behind each grounded phrase, as a dialogue's history has it.

    For predictors that don't say themselves what they wrote: an engine's
    ``info["marked_text"]`` also marks phrases whose masks it filtered. A literal ``{seg}`` in
    the text is dropped: in a history it would stand for a mask.
    """
    return join_marks(prediction.text, [segment.span for segment in prediction.segments])


def answer_given(
    engine: Engine, samples: Iterable[Sample], batch_size: int
) -> Iterator[AnsweredDialogue]:
    """Run dialogues with their true answers given, in order; predictions carry logits.

    The masks of a turn come in the order of its targets, one each; the texts are the true ones.

    Args:
        engine: draws the masks.
        samples: dialogues, read a batch at a time.
        batch_size: dialogues per call, at least 1.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    arriving = enumerate(samples)
    while batch := list(islice(arriving, batch_size)):
        start = time.perf_counter()
        drawn = engine.predict_given([sample for _, sample in batch], keep_logits=True)
        seconds = (time.perf_counter() - start) / sum(map(len, drawn))
        for (index, sample), predictions in zip(batch, drawn, strict=True):
            answered = [*predictions]
            yield AnsweredDialogue(index, sample, answered, [seconds] * len(answered))


def answer_dialogues(
    predictor: Predictor, samples: Iterable[Sample], batch_size: int, **options: Any
) -> Iterator[AnsweredDialogue]:
    """Run dialogues by free generation.

    A later turn is asked with the predictor's own earlier answers as its history, never with the
    true ones: an early mistake may cost a later answer, as it does in use. Dialogues about one
    image should follow each other; their requests then share a batch and the image's array.

    Args:
        predictor: answers the questions.
        samples: dialogues, read only as fast as they are answered.
        batch_size: requests per call, at least 1; only the last calls may hold fewer.
        options: of the answers, see :class:`~pixellm.engine.AnswerOptions`; for engines alone.

    Yields:
        Each dialogue once it is complete, not necessarily in the order of the input.

    Raises:
        ValueError: ``batch_size`` is below 1, the predictor returns another number of answers
            than it got requests, or a mask that doesn't fit its image.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    arriving = enumerate(samples)
    waiting: deque[AnsweredDialogue] = deque()
    ask: Any = predictor.predict_batch
    if options:
        from pixellm.engine import AnswerOptions

        ask = partial(ask, options=AnswerOptions(**options))
    while True:
        while len(waiting) < batch_size and (arrival := next(arriving, None)):
            waiting.append(AnsweredDialogue(*arrival))
        if not waiting:
            return
        batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        _ask(ask, batch)
        yield from (dialogue for dialogue in batch if dialogue.is_complete)
        waiting.extendleft(d for d in reversed(batch) if not d.is_complete)


def _ask(
    ask: Callable[[Sequence[Request]], list[Prediction]], batch: Sequence[AnsweredDialogue]
) -> None:
    """Answer the next turn of every dialogue of a batch."""
    requests = [dialogue.next_request() for dialogue in batch]
    start = time.perf_counter()
    predictions = ask(requests)
    seconds = (time.perf_counter() - start) / len(batch)
    if len(predictions) != len(requests):
        raise ValueError(
            f"The predictor gave {len(predictions)} answers to {len(requests)} requests; "
            "predict_batch must answer each one, in order."
        )
    for dialogue, prediction in zip(batch, predictions, strict=True):
        _check_masks(prediction, dialogue.sample)
        dialogue.predictions.append(prediction)
        dialogue.seconds.append(seconds)


def _check_masks(prediction: Prediction, sample: Sample) -> None:
    for segment in prediction.segments:
        if segment.mask.shape != tuple(sample.size):
            raise ValueError(
                f"Sample {sample.id!r}: the predicted mask of {segment.label!r} is "
                f"{segment.mask.shape}, the image {tuple(sample.size)}; masks belong in "
                "pixels of the original image."
            )
