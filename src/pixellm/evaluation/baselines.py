"""Guesses that read no question: what a score is worth when language plays no part.

They answer like an engine but know the annotated objects of each image, so their masks are
perfect; only which objects are asked for is guessed. They see no question's answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pixellm.masks import decode_mask
from pixellm.types import Prediction, Request, Sample, Segment, Target

Guess = Callable[[Sequence[Target]], Sequence[Target]]
"""From all objects of an image to those that are shown."""


def guess_largest(objects: Sequence[Target]) -> Sequence[Target]:
    """The object with the largest mask, the first of equals."""
    return [max(objects, key=lambda one: int(decode_mask(one.mask).sum()))] if objects else []


def guess_all(objects: Sequence[Target]) -> Sequence[Target]:
    """Every object."""
    return objects


GUESSES: dict[str, Guess] = {"largest_object": guess_largest, "all_objects": guess_all}
"""By the name that a report gives them."""


class ObjectGuesser:
    """Answers every question about a drawn scene with the same guess; offers ``predict_batch``.

    Its guesses are chosen among the ``objects`` of the samples whose images will be asked about.
    """

    def __init__(self, samples: Iterable[Sample], guess: Guess) -> None:
        self._shown: dict[bytes, tuple[tuple[int, int], tuple[Target, ...]]] = {}
        for sample in samples:
            key = _image_key(sample.image)
            if key not in self._shown:
                self._shown[key] = (sample.size, tuple(guess(sample.objects)))

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answer every request with its image's guess."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Prediction:
        size, targets = self._shown[_image_key(request.image)]
        text, segments = "", []
        for target in targets:
            text += ", " if text else ""
            start = len(text)
            text += target.name
            segments.append(Segment(target.name, decode_mask(target.mask), 1.0, (start, len(text))))
        return Prediction(text + ".", tuple(segments), request.question, size)


def _image_key(pixels: Any) -> bytes:
    return hashlib.blake2b(np.asarray(pixels).tobytes(), digest_size=16).digest()
