"""Puts the questions of a batch of dialogues to a predictor, turn by turn.

Anything with ``predict_batch`` can be evaluated: the engine, a remote model, a baseline. None
is shown an answer from the data but where it is to be given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
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


def answer_given(engine: Engine, samples: Sequence[Sample]) -> list[AnsweredDialogue]:
    """Run a batch of dialogues with their true answers given; predictions carry logits.

    The masks of a turn come in the order of its targets, one each; the texts are the true ones.
    """
    start = time.perf_counter()
    drawn = engine.predict_given(samples, keep_logits=True)
    seconds = (time.perf_counter() - start) / sum(map(len, drawn))
    return [
        AnsweredDialogue(index, sample, [*predictions], [seconds] * len(predictions))
        for index, (sample, predictions) in enumerate(zip(samples, drawn, strict=True))
    ]


def answer_dialogues(
    predictor: Predictor, samples: Sequence[Sample], **options: Any
) -> list[AnsweredDialogue]:
    """Run a batch of dialogues by free generation: all first turns together, then all second ones.

    A later turn is asked with the predictor's own earlier answers as its history, never with the
    true ones: an early mistake may cost a later answer, as it does in use.

    Args:
        predictor: answers the questions.
        samples: dialogues.
        options: of the answers, see :class:`~pixellm.engine.AnswerOptions`; for engines alone.
    """
    ask: Any = predictor.predict_batch
    if options:
        from pixellm.engine import AnswerOptions

        ask = partial(ask, options=AnswerOptions(**options))
    dialogues = [AnsweredDialogue(index, sample) for index, sample in enumerate(samples)]
    while waiting := [dialogue for dialogue in dialogues if not dialogue.is_complete]:
        _ask(ask, waiting)
    return dialogues


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
