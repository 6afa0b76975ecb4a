"""Scenes small enough to check by hand, and predictors whose scores are known in advance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pixellm.masks import decode_mask, encode_mask
from pixellm.types import Prediction, Request, Sample, Segment, Target, Turn, split_marks

SIZE = (16, 24)
CELL = 8


def cell_mask(row: int, column: int) -> np.ndarray:
    """One of the 2 x 3 cells of an image, 64 pixels."""
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = True
    return mask


def target(name: str, row: int, column: int) -> Target:
    return Target(name, encode_mask(cell_mask(row, column)))


APPLE, PEAR, CUP = target("apple", 0, 0), target("pear", 0, 2), target("cup", 1, 1)


def make_scene(number: int) -> tuple[Sample, ...]:
    """Three dialogues about one image; every question is unique over all scenes."""
    image = np.full((*SIZE, 3), number, dtype=np.uint8)

    def ask(text: str, answer: str, targets: tuple[Target, ...], kind: str) -> Turn:
        return Turn(f"{number}: {text}", answer, targets, kind)

    naming = ask("fruit?", "The apple {seg} and the pear {seg}.", (APPLE, PEAR), "category")
    absent = ask("a dog?", "There is no dog.", (), "negative")
    count = ask("how many cups?", "There is one.", (), "counting")
    first = ask("the left fruit?", "The apple {seg} is on the left.", (APPLE,), "half")
    follow_up = ask("and the others?", "A pear {seg} and a cup {seg}.", (PEAR, CUP), "follow_up")
    dialogues = ((naming,), (absent, count), (first, follow_up))
    return tuple(
        Sample(image, SIZE, turns, f"scene-{number}-{i}") for i, turns in enumerate(dialogues)
    )


def box_targets(boxes: Sequence[Sequence[int]]) -> tuple[Target, ...]:
    """Targets that fill (x, y, width, height) boxes of an image of 20 x 30 pixels."""
    targets = []
    for x, y, width, height in boxes:
        mask = np.zeros((20, 30), np.bool_)
        mask[y : y + height, x : x + width] = True
        targets.append(Target("thing", encode_mask(mask)))
    return tuple(targets)


def true_prediction(turn: Turn, size: tuple[int, int] = SIZE) -> Prediction:
    """The turn's own answer as a prediction; each span is what stands before the mark."""
    text, spans = split_marks(turn.answer)
    segments = tuple(
        Segment(text[start:end], decode_mask(truth.mask), 1.0, (start, end))
        for (start, end), truth in zip(spans, turn.targets, strict=True)
    )
    return Prediction(text, segments, turn.question, size)


class Oracle:
    """Gives the true answers and remembers what it was asked."""

    def __init__(self, scenes: Sequence[Sequence[Sample]]) -> None:
        samples = [sample for dialogues in scenes for sample in dialogues]
        self.turns = {turn.question: turn for sample in samples for turn in sample.turns}
        self.batches: list[list[Request]] = []

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        self.batches.append(list(requests))
        return [self.change(true_prediction(self.turns[r.question])) for r in requests]

    def change(self, prediction: Prediction) -> Prediction:
        return prediction


def with_segments(prediction: Prediction, segments: Sequence[Segment]) -> Prediction:
    return Prediction(prediction.text, tuple(segments), prediction.question, prediction.size)


class Silent(Oracle):
    """Answers without words or masks."""

    def change(self, prediction: Prediction) -> Prediction:
        return Prediction("", (), prediction.question, prediction.size)


class Sprayer(Oracle):
    """Adds to each true answer a mask of the one cell in which nothing lies."""

    def change(self, prediction: Prediction) -> Prediction:
        extra = Segment("dog", cell_mask(1, 0), 0.9, (0, 0))
        return with_segments(prediction, (*prediction.segments, extra))


class Shuffler(Oracle):
    """Gives the true segments in reverse order."""

    def change(self, prediction: Prediction) -> Prediction:
        return with_segments(prediction, prediction.segments[::-1])
