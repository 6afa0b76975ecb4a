"""Rows of questions through an engine: each becomes a line of JSON, an answer or a reason.

What can't be answered (no such image, too long, too large) is noted and stops nothing. Used by
jobs, here and on a cluster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixellm.answer_files import prediction_to_json
from pixellm.data.lazy import Lazy
from pixellm.data.rows import JobRow, describe_error
from pixellm.engine.answer_file import Check
from pixellm.engine.dialogues import Predictor, answer_each, ask_with
from pixellm.engine.jobs import BatchAnswers, JobState, Progress, Spread, run_job
from pixellm.engine.memory import is_out_of_memory
from pixellm.image_files import load_image
from pixellm.threads import usable_cores
from pixellm.types import Prediction, Request

IMAGES_TOGETHER = 8
"""Images of a batch that are decoded, and encoded, together."""

MAX_BYTES_AHEAD = 1 << 30
"""Bytes of a batch's encoded images up to which the next batch is read beside it."""

_BAD_INPUT = (ValueError, OSError)


def answer_rows(
    rows: Sequence[JobRow],
    path: Path,
    model: str,
    spread: Spread[JobRow],
    batch_size: int,
    progress: Progress = lambda state: None,
) -> JobState:
    """Run a job over rows, see :func:`~pixellm.engine.jobs.run_job`."""
    check = lines_of(rows, model)
    return run_job(rows, path, spread, batch_size, check=check, progress=progress)


def lines_of(rows: Sequence[JobRow], model: str) -> Check:
    """Whether a line answers the row of its number, by this model."""

    def check(values: dict[str, Any], is_first: bool) -> bool:
        asked: dict[str, Any] = {"model": model}
        # Building a row may take reading an image's labels: one a batch has to do.
        if is_first or not isinstance(rows, Lazy):
            row = rows[values["row"]]
            asked |= {"image": row.image, "question": row.question}
        return all(values.get(key) == value for key, value in asked.items())

    return check


@dataclass(frozen=True)
class OpenedBatch:
    """Rows whose images are read, and encoded where the engine does that apart.

    Attributes:
        requests: by the number of their row.
        problems: reasons, by the number of the rows that make no request.
        begun: when the batch was begun, of a clock that never goes back.
    """

    rows: list[JobRow]
    requests: dict[int, Request]
    problems: dict[int, str]
    begun: float

    @property
    def num_bytes(self) -> int:
        """What the encoded images take in memory."""
        images = {id(request.image): request.image for request in self.requests.values()}
        encoded = (getattr(image, "encoded", None) for image in images.values())
        return sum(one.num_bytes for one in encoded if one is not None)


class RowWorker:
    """Answers batches of rows with one engine.

    Nothing is kept from batch to batch, so that answers depend on their batch alone, to the last
    digit, wherever a job was stopped. ``load`` makes the engine, in the process that
    uses it; ``model`` is what the answers call it.
    """

    def __init__(self, load: Callable[[], Predictor], model: str, temperature: float = 0.0) -> None:
        predictor: Any = load()
        options = {"temperature": temperature} if temperature else {}
        self._ask = ask_with(predictor, **options)
        self._model = model
        # Others than engines, such as baselines, read pixels.
        self._engine: Any = predictor if hasattr(predictor, "image_reader") else None

    def __call__(self, batch: Sequence[JobRow]) -> BatchAnswers:
        """A line of JSON for each row, in order: its answer, or its ``error``."""
        return self.answer(self.open(batch))

    def open(self, batch: Sequence[JobRow]) -> OpenedBatch:
        """Read the images of a batch; may run in a thread of its own, while another is answered."""
        begun = time.monotonic()
        rows = list(batch)  # the rows of a data set are built each time they are asked for
        problems = {row.number: row.problem for row in rows if row.problem}
        asked = [row for row in rows if not row.problem and row.source is not None]
        images = self._read_all({_name(row.source): row.source for row in asked})
        requests: dict[int, Request] = {}
        for row in asked:
            image = images[_name(row.source)]
            try:
                if isinstance(image, Exception):
                    raise image
                requests[row.number] = Request(image, row.question, row.history, row.takes_suffix)
            except Exception as error:
                if not is_bad_input(error):
                    raise
                problems[row.number] = describe_bad_input(error)
        return OpenedBatch(rows, requests, problems, begun)

    def answer(self, opened: OpenedBatch) -> BatchAnswers:
        """The lines of a batch."""
        rows, requests, problems = opened.rows, opened.requests, opened.problems
        if self._engine is not None:
            self._engine.forget()
        answers = self._answer(requests, problems)
        for row in rows:  # the reason calls the image what the input calls it
            if row.number in problems and isinstance(row.source, Path):
                told = problems[row.number]
                problems[row.number] = told.replace(str(row.source), row.image)
        lines = [self._line(row, answers.get(row.number), problems) for row in rows]
        images = len({id(request.image) for request in requests.values()})
        seconds = time.monotonic() - opened.begun
        return BatchAnswers("".join(lines).encode("ascii"), images, seconds)

    def _read_all(self, sources: dict[Hashable, Any]) -> dict[Hashable, Any]:
        """Images, or the errors of those that can't be read, by name; always in the same groups."""
        names = list(sources)
        groups = [names[i : i + IMAGES_TOGETHER] for i in range(0, len(names), IMAGES_TOGETHER)]
        if self._engine is None:
            return {name: _read(source) for name, source in sources.items()}
        # Each reader's products run on as many threads as torch uses.
        with ThreadPoolExecutor(max(1, usable_cores() // torch.get_num_threads())) as readers:
            found = readers.map(lambda group: self._encode([sources[n] for n in group]), groups)
            return dict(zip(names, chain.from_iterable(found), strict=True))

    def _encode(self, sources: Sequence[Any]) -> list[Any]:
        """Encoded images, or errors; fewer together where memory is short for all."""

        def encode(some: Sequence[Any]) -> list[Any]:
            return self._engine.image_reader().prepare(some)

        return answer_each(encode, sources, is_bad_input)

    def _answer(
        self, requests: dict[int, Request], problems: dict[int, str]
    ) -> dict[int, Prediction]:
        """The answers there are, by the number of their row; reasons join the problems."""
        if not requests:
            return {}
        answers: dict[int, Prediction] = {}
        found = answer_each(self._ask, list(requests.values()), is_bad_input)
        for number, answer in zip(requests, found, strict=True):
            if isinstance(answer, Exception):
                problems[number] = describe_bad_input(answer)
            else:
                answers[number] = answer
        return answers

    def _line(self, row: JobRow, prediction: Prediction | None, problems: dict[int, str]) -> str:
        values: dict[str, Any] = {"row": row.number} | ({"id": row.id} if row.id else {})
        if prediction is not None:
            values |= prediction_to_json(prediction, row.image, self._model)
        else:
            asked = {"image": row.image, "question": row.question, "model": self._model}
            values |= {**asked, "error": problems[row.number]}
        return json.dumps(values) + "\n"


def answer_ahead(
    load: Callable[[], Predictor], model: str, temperature: float = 0.0
) -> Spread[JobRow]:
    """Answer batches in this process; the next one's images are read and encoded meanwhile.

    The engine is made where a batch is left. See :class:`RowWorker`.
    """

    def spread(batches: Sequence[Sequence[JobRow]]) -> Iterator[BatchAnswers]:
        if not batches:
            return
        worker = RowWorker(load, model, temperature)
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(worker.open, batches[0])
            for following in [*batches[1:], None]:
                opened = waiting.result()
                fits = opened.num_bytes <= MAX_BYTES_AHEAD
                if following is not None and fits:
                    waiting = ahead.submit(worker.open, following)
                yield worker.answer(opened)
                if following is not None and not fits:
                    waiting = ahead.submit(worker.open, following)

    return spread


def _name(source: Any) -> Hashable:
    """What tells an image from the others of a batch."""
    return source if isinstance(source, Path) else id(source)


def _read(source: Any) -> Any:
    """An image for predictors that read pixels, or why there is none."""
    if not isinstance(source, Path):
        return source
    try:
        return np.asarray(load_image(source))
    except (*_BAD_INPUT, RuntimeError, MemoryError) as error:
        return error


def is_bad_input(error: Exception) -> bool:
    """Whether what was asked is to blame for an error, and not the program."""
    return isinstance(error, _BAD_INPUT) or is_out_of_memory(error)


def describe_bad_input(error: Exception) -> str:
    """Such an error in one line."""
    if is_out_of_memory(error):
        return "There is not enough memory for this row alone."
    return describe_error(error)
