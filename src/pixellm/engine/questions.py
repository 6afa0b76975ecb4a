"""Rows of questions through an engine: each becomes a line of JSON, an answer or a reason.

What can't be answered (no such image, too long, too large) is noted and stops nothing. Used by
jobs, here and on a cluster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixellm.answer_files import prediction_to_json
from pixellm.data.rows import LazyRows, Row, describe_error
from pixellm.engine.answer_file import Check
from pixellm.engine.dialogues import Predictor
from pixellm.engine.jobs import BatchAnswers, JobState, Progress, Spread, run_job
from pixellm.engine.memory import is_out_of_memory
from pixellm.image_files import load_image
from pixellm.types import Prediction, Request

_BAD_INPUT = (ValueError, OSError)
_MAYBE_BAD_INPUT = (*_BAD_INPUT, RuntimeError, MemoryError)


def answer_rows(
    rows: Sequence[Row],
    path: Path,
    model: str,
    spread: Spread[Row],
    batch_size: int,
    progress: Progress = lambda state: None,
) -> JobState:
    """Run a job over rows, see :func:`~pixellm.engine.jobs.run_job`.

    Args:
        rows: of the whole job.
        path: JSONL file of answers, or "-".
        model: what the model is called in the answers.
        spread: answers batches.
        batch_size: rows answered together.
        progress: called before the first and after every batch.

    Raises:
        ValueError, OSError: as :func:`~pixellm.engine.jobs.run_job`.
    """
    check = lines_of(rows, model)
    return run_job(rows, path, spread, batch_size, check=check, progress=progress)


def lines_of(rows: Sequence[Row], model: str) -> Check:
    """Whether a line answers the row of its number, by this model."""

    def check(values: dict[str, Any], is_first: bool) -> bool:
        asked: dict[str, Any] = {"model": model}
        # Building a row may take reading an image's labels: one a batch has to do.
        if is_first or not isinstance(rows, LazyRows):
            row = rows[values["row"]]
            asked |= {"image": row.image, "question": row.question}
        return all(values.get(key) == value for key, value in asked.items())

    return check


class RowWorker:
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
