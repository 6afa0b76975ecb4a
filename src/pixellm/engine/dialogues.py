"""Puts the questions of a batch of dialogues to a predictor, turn by turn.

Anything with ``predict_batch`` can be evaluated: the engine, a remote model, a baseline. None
is shown an answer from the data but where it is to be given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pixellm.types import Prediction, Request, Sample, join_marks

if TYPE_CHECKING:
    from pixellm.engine import Engine

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")

Ask = Callable[[Sequence[Request]], list[Prediction]]
"""Answers requests as ``predict_batch`` does."""


class TooLongError(ValueError):
    """A question, or a dialogue with its answers, takes more tokens than the context holds."""


class Predictor(Protocol):
    """What an engine offers to an evaluation."""

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answer every request, in order, each on its own.

        Masks are (H, W) bool in pixels of the request's image.

        Raises:
            TooLongError: one is too long; all are asked again in parts, to find it.
        """
        ...


@dataclass(slots=True)
class AnsweredDialogue:
    """A dialogue with the answers it got.

    Attributes:
        predictions: one per turn, as far as it is answered.
        seconds: per turn, its share of the batch it was answered in.
        problem: why the next turn is too long to be asked; "" where it is not.
    """

    index: int
    sample: Sample
    predictions: list[Prediction] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    problem: str = ""

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
        """Whether every turn is answered that can be."""
        return bool(self.problem) or len(self.predictions) == len(self.sample.turns)

    def add(self, predictions: Sequence[Prediction] | Exception, seconds: float) -> None:
        """Take the answers to the next turns, each in so many seconds, or why there is none."""
        if isinstance(predictions, Exception):
            self.problem = str(predictions)
        else:
            self.predictions += predictions
            self.seconds += [seconds] * len(predictions)


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
    drawn = answer_each(partial(engine.predict_given, keep_logits=True), samples, _is_too_long)
    seconds = (time.perf_counter() - start) / sum(len(sample.turns) for sample in samples)
    dialogues = [AnsweredDialogue(index, sample) for index, sample in enumerate(samples)]
    for dialogue, predictions in zip(dialogues, drawn, strict=True):
        dialogue.add(predictions, seconds)
    return dialogues


def answer_dialogues(
    predictor: Predictor, samples: Sequence[Sample], **options: Any
) -> list[AnsweredDialogue]:
    """Run a batch of dialogues by free generation: all first turns together, then all second ones.

    A later turn is asked with the predictor's own earlier answers as its history, never with the
    true ones: an early mistake may cost a later answer, as it does in use. Options of the
    answers, see :class:`~pixellm.engine.AnswerOptions`, are for engines alone.
    """
    ask = ask_with(predictor, **options)
    dialogues = [AnsweredDialogue(index, sample) for index, sample in enumerate(samples)]
    while waiting := [dialogue for dialogue in dialogues if not dialogue.is_complete]:
        _ask(ask, waiting)
    return dialogues


def ask_with(predictor: Predictor, **options: Any) -> Ask:
    """A predictor's ``predict_batch``; options of the answers are for engines alone."""
    if not options:
        return predictor.predict_batch
    from pixellm.engine import AnswerOptions

    engine: Any = predictor
    return partial(engine.predict_batch, options=AnswerOptions(**options))


def answer_each(
    answer: Callable[[Sequence[Asked]], Iterable[Answered]],
    asked: Sequence[Asked],
    is_about_one: Callable[[Exception], bool],
) -> list[Answered | Exception]:
    """Answers in order, of all together; the reason in place of one that there is no answer to.

    Where ``answer`` raises an error that ``is_about_one`` of them, all are answered half by half;
    other errors pass.
    """
    try:
        answers = list(answer(asked))
    except Exception as error:
        if not asked or not is_about_one(error):
            raise
        if len(asked) == 1:
            return [error]
        half = len(asked) // 2
        parts = asked[:half], asked[half:]
        return [one for part in parts for one in answer_each(answer, part, is_about_one)]
    if len(answers) != len(asked):
        raise ValueError(
            f"The predictor gave {len(answers)} answers to {len(asked)} requests; predict_batch "
            "must answer each one, in order."
        )
    return [*answers]


def _is_too_long(error: Exception) -> bool:
    return isinstance(error, TooLongError)


def _ask(ask: Ask, batch: Sequence[AnsweredDialogue]) -> None:
    """Answer the next turn of every dialogue of a batch."""
    requests = [dialogue.next_request() for dialogue in batch]
    start = time.perf_counter()
    predictions = answer_each(ask, requests, _is_too_long)
    seconds = (time.perf_counter() - start) / len(batch)
    for dialogue, prediction in zip(batch, predictions, strict=True):
        if isinstance(prediction, Exception):
            dialogue.add(prediction, seconds)
        else:
            _check_masks(prediction, dialogue.sample)
            dialogue.add([prediction], seconds)


def _check_masks(prediction: Prediction, sample: Sample) -> None:
    for segment in prediction.segments:
        if segment.mask.shape != tuple(sample.size):
            raise ValueError(
                f"Sample {sample.id!r}: the predicted mask of {segment.label!r} is "
                f"{segment.mask.shape}, the image {tuple(sample.size)}; masks belong in "
                "pixels of the original image."
            )
