"""A predictor that gives the true answer to each question about each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hand_made_scenes import true_prediction

from pixellm.types import Prediction, Request, Sample


class Knowing:
    """Answers from the questions themselves, and counts what it was asked."""

    def __init__(self, questions: Sequence[Sample]) -> None:
        self.turns = {
            key_of(sample.image, turn.question, (one.question for one in sample.turns[:number])): (
                turn,
                sample.size,
            )
            for sample in questions
            for number, turn in enumerate(sample.turns)
        }
        self.num_asked = 0

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        self.num_asked += len(requests)
        keys = [key_of(r.image, r.question, (q for q, _ in r.history)) for r in requests]
        return [self.change(true_prediction(*self.turns[key])) for key in keys]

    def change(self, prediction: Prediction) -> Prediction:
        return prediction


def key_of(image: Any, question: str, earlier: Iterable[str]) -> tuple[Any, ...]:
    """Drawn images of one content are one image, whichever array holds it."""
    return (image if isinstance(image, Path) else image.tobytes(), question, *earlier)
