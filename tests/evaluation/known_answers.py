"""A predictor that gives the true answer to each question about each image."""

from __future__ import annotations

from collections.abc import Sequence

from hand_made_scenes import true_prediction

from pixellm.types import Prediction, Request, Sample


class Knowing:
    """Answers from the questions themselves, and counts what it was asked."""

    def __init__(self, questions: Sequence[Sample]) -> None:
        self.turns = {
            (sample.image, turn.question): (turn, sample.size)
            for sample in questions
            for turn in sample.turns
        }
        self.num_asked = 0

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        self.num_asked += len(requests)
        return [true_prediction(*self.turns[r.image, r.question]) for r in requests]
