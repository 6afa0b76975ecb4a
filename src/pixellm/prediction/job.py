"""Runs a prediction job: rows in batches through an engine, answers to a file, bad rows noted.

The same batches go through the same :class:`BatchWorker` here and on a cluster, and come back in
order, so that the file never depends on where or how often a job was stopped. This module knows
no command line and no model beyond what answers requests.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pixellm.answer_files import prediction_to_json
from pixellm.engine.memory import is_out_of_memory
from pixellm.prediction.answers import open_answers
from pixellm.prediction.rows import Row, describe_error, split_rows
from pixellm.processing.image import load_image
from pixellm.types import Prediction, Request

if TYPE_CHECKING:
    from pixellm.evaluation.runner import Predictor

Progress = Callable[["JobState"], None]
Spread = Callable[[Sequence[Sequence[Row]]], Iterator["BatchAnswers"]]
"""Answers batches, in order."""

_BAD_INPUT = (ValueError, OSError)
_MAYBE_BAD_INPUT = (*_BAD_INPUT, RuntimeError, MemoryError)


@dataclass(frozen=True, slots=True)
class JobState:
    """How far a job is.

    Attributes:
        done: rows in the file, bad ones included.
        bad: rows without an answer.
        total: rows of the job.
        images: images answered by this process, each counted once a batch.
        seconds: since the first batch was begun; loading models came before that.
        skipped: rows that an earlier call had done.
    """

    done: int
    bad: int
    total: int
    images: int = 0
    seconds: float = field(default=0.0, compare=False)
    skipped: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class BatchAnswers:
    """What came of a batch.

    Attributes:
        lines: JSON, one line for each row.
        images: different images that were asked about.
        seconds: what the batch took its worker.
    """

    lines: bytes
    images: int
    seconds: float


class BatchWorker:
    """Answers batches of rows with one engine.

    Args:
        load: makes the engine, in the process that uses it.
        model: what the model is called in the answers.
    """

    def __init__(self, load: Callable[[], Predictor], model: str) -> None:
        self._predictor = load()
        self._model = model

    def __call__(self, batch: Sequence[Row]) -> BatchAnswers:
        """A line of JSON for each row, in order: its answer, or its ``error``."""
        begun = time.monotonic()
        rows = list(batch)  # the rows of a data set are built each time they are asked for
        requests, problems = _open_rows(rows)
        answers = self._answer(requests, problems)
        for row in rows:  # the reason calls the image what the input calls it
            if row.number in problems and isinstance(row.source, Path):
                told = problems[row.number]
                problems[row.number] = told.replace(str(row.source), row.image)
        lines = [self._line(row, answers.get(row.number), problems) for row in rows]
        images = len({id(request.image) for request in requests.values()})
        seconds = time.monotonic() - begun
        return BatchAnswers("".join(lines).encode("ascii"), images, seconds)

    def _answer(
        self, requests: dict[int, Request], problems: dict[int, str]
    ) -> dict[int, Prediction]:
        """All together; one by one where that fails, to find the rows that can't be answered."""
        if not requests:
            return {}
        try:
            predictions = self._predictor.predict_batch(list(requests.values()))
        except _MAYBE_BAD_INPUT as error:
            _check_is_bad_input(error)
            if len(requests) == 1:
                problems[next(iter(requests))] = _one_line(error)
                return {}
            answers: dict[int, Prediction] = {}
            for number, request in requests.items():
                answers |= self._answer({number: request}, problems)
            return answers
        return dict(zip(requests, predictions, strict=True))

    def _line(self, row: Row, prediction: Prediction | None, problems: dict[int, str]) -> str:
        values: dict[str, Any] = {"row": row.number} | ({"id": row.id} if row.id else {})
        if prediction is not None:
            values |= prediction_to_json(prediction, row.image, self._model)
        else:
            asked = {"image": row.image, "question": row.question, "model": self._model}
            values |= {**asked, "error": problems[row.number]}
        return json.dumps(values) + "\n"


def run_job(
    rows: Sequence[Row],
    path: Path,
    model: str,
    spread: Spread,
    batch_size: int,
    progress: Progress = lambda state: None,
) -> JobState:
    """Answer all rows that the file does not answer yet.

    Args:
        rows: of the whole job.
        path: JSONL file of answers; an unfinished one is gone on with. "-" is standard output.
        model: what the model is called in the answers.
        spread: answers batches; called only where something is left to do.
        batch_size: rows answered together; the same for all of a job, or the last batch that is
            done may be done again.
        progress: called before the first and after every batch.

    Raises:
        ValueError, OSError: as :class:`~pixellm.prediction.answers.AnswerFile`.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    with open_answers(path, rows, model, batch_size) as answers:
        state = JobState(answers.num_done, answers.num_bad, len(rows), skipped=answers.num_done)
        progress(state)
        batches = split_rows(rows, answers.num_done, batch_size)
        skipped, images = answers.num_done, 0
        begun: float | None = None
        for _, answered in zip(batches, spread(batches) if batches else (), strict=True):
            answers.append(answered.lines)
            images += answered.images
            now = time.monotonic()
            begun = now - answered.seconds if begun is None else begun
            counts = (answers.num_done, answers.num_bad, len(rows))
            state = JobState(*counts, images, now - begun, skipped)
            progress(state)
    return state


def answer_here(load: Callable[[], Predictor], model: str) -> Spread:
    """Answer batches in this process."""

    def spread(batches: Sequence[Sequence[Row]]) -> Iterator[BatchAnswers]:
        return map(BatchWorker(load, model), batches)

    return spread


def _open_rows(rows: Sequence[Row]) -> tuple[dict[int, Request], dict[int, str]]:
    """Requests by the number of their row, and the problems of the rows that make none."""
    requests: dict[int, Request] = {}
    problems = {row.number: row.problem for row in rows if row.problem}
    images: dict[Path, NDArray[np.uint8]] = {}
    for row in rows:
        if row.problem or row.source is None:
            continue
        try:
            if isinstance(row.source, Path) and row.source not in images:
                images[row.source] = np.asarray(load_image(row.source))
            image = images[row.source] if isinstance(row.source, Path) else row.source
            requests[row.number] = Request(image, row.question, row.history, row.takes_suffix)
        except _MAYBE_BAD_INPUT as error:
            _check_is_bad_input(error)
            problems[row.number] = _one_line(error)
    return requests, problems


def _check_is_bad_input(error: Exception) -> None:
    """Let errors pass that no row is to blame for."""
    if not (isinstance(error, _BAD_INPUT) or is_out_of_memory(error)):
        raise error


def _one_line(error: Exception) -> str:
    if is_out_of_memory(error):
        return "There is not enough memory for this row alone."
    return describe_error(error)
