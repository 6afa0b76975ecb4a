"""A job with good and bad rows, and an engine without a network."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pixellm.data.rows import read_rows
from pixellm.engine.jobs import answer_here
from pixellm.engine.questions import RowWorker, answer_rows
from pixellm.types import Prediction, Request, Segment

BATCH_SIZE = 3
IMAGES = 5
NUM_ROWS = 32
BAD_ROWS = {4: "missing.png", 9: "no image", 13: "JSON", 20: "too long"}
SECONDS_A_BATCH = 0.1


class Stub:
    """Answers with masks that depend on image and question, and on what shares the batch."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[str] = []
        self._seconds = seconds

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        if any("too long" in request.question for request in requests):
            raise ValueError("The question is too long.")
        time.sleep(self._seconds)
        self.asked += [request.question for request in requests]
        return [self._answer(request, len(requests)) for request in requests]

    @staticmethod
    def _answer(request: Request, batch: int) -> Prediction:
        pixels = np.asarray(request.image)
        mask = pixels[..., 0] > 128
        segment = Segment("it", mask, float(pixels.mean()) / 255 + batch / 1e6, (0, 2))
        return Prediction(f"it: {request.question}", (segment,), request.question, mask.shape)


def make_job(folder: Path) -> Path:
    """A JSONL file of NUM_ROWS questions about IMAGES images, with BAD_ROWS."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "text.png").write_text("not an image")
    lines = []
    for number in range(NUM_ROWS):
        row = {"image": f"{number % IMAGES}.png", "question": f"What is {number}?", "extra": 1}
        row |= {4: {"image": "missing.png"}, 9: {"image": "text.png"}}.get(number, {})
        row |= {20: {"question": "too long"}}.get(number, {})
        lines.append('{"image": ' if number == 13 else json.dumps(row))
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def answer_job(folder: Path, stub: Stub) -> None:
    """Answer the job of a folder, or go on with it."""
    rows = read_rows(folder / "questions.jsonl")
    spread = answer_here(lambda: RowWorker(lambda: stub, "stub"))
    answer_rows(rows, folder / "answers.jsonl", "stub", spread, BATCH_SIZE)
