"""A MUSE run whose answers are known: every mask is right, one of them goes by a wrong name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from benchmark_layouts import write_benchmark
from hand_made_scenes import true_prediction

from pixellm.engine import MAX_NEW_TOKENS
from pixellm.engine.run_folder import open_run
from pixellm.evaluation.evaluate import BenchmarkRun, answer_freely, answer_questions
from pixellm.evaluation.metrics import Protocol
from pixellm.types import Prediction, Request

WRONG_NAME = "The hammer {seg}, the dog {seg} and the hat {seg}."


class Misnaming:
    """Masks everything right; in the second image the cup is called a hammer."""

    def __init__(self, run: BenchmarkRun) -> None:
        self.samples = {sample.turns[0].question: sample for sample in run.open()}

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        return [self._predict(request.question) for request in requests]

    def _predict(self, question: str) -> Prediction:
        turn, size = self.samples[question].turns[0], self.samples[question].size
        if "picture 1" in question:
            turn = replace(turn, answer=WRONG_NAME)
        answer = true_prediction(turn, size)
        logits = [np.where(segment.mask, 20.0, -20.0) for segment in answer.segments]
        return replace(answer, info={"logits": np.array(logits, np.float32)})


def answer_muse(root: Path, protocol: Protocol = "strict") -> tuple[BenchmarkRun, Path]:
    """The run, and its folder with all answers: nothing is left for a model to do."""
    run = BenchmarkRun(
        "muse",
        "oracle",
        "val",
        write_benchmark("muse", root / "data"),
        protocol=protocol,
        dtype="float32",
        max_new_tokens=MAX_NEW_TOKENS,
    )
    folder = root / "run"
    open_run(folder, run.settings())
    answer_questions(answer_freely(Misnaming(run)), run.open(), run.rules, folder, 2)
    return run, folder
