"""Questions to records: a benchmark's dialogues are answered, scored and kept, resumable.

A batch of dialogues is on disk before the next one is asked; a stopped run goes on where it
stopped. It knows no data set and prints nothing; progress goes to a callback.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixellm.data.rows import name_of_image
from pixellm.engine.dialogues import (
    AnsweredDialogue,
    Predictor,
    answer_dialogues,
    answer_given,
)
from pixellm.engine.jobs import (
    ALONE,
    BatchAnswers,
    JobState,
    ProcessGroup,
    answer_here,
    run_job,
)
from pixellm.evaluation.records import AnswerRecord, Origin, build_record, record_to_json
from pixellm.evaluation.run_folder import ANSWERS_FILE, read_answers, read_settings
from pixellm.evaluation.scores import Rules, question_giou
from pixellm.types import Sample

if TYPE_CHECKING:
    from pixellm.engine import Engine

Progress = Callable[[int, int, float | None], None]
"""Called with dialogues done, dialogues in all, and the mean of the questions' gIoU so far."""

Answer = Callable[[Sequence[Sample]], Iterator[AnsweredDialogue]]
"""Answers the dialogues of a batch; each carries its index among them."""


def missing_questions(questions: Sequence[Sample], folder: Path) -> list[int]:
    """Places of the dialogues that a run's folder holds no answer to."""
    answered = {record.index for record in read_answers(folder)}
    return [index for index in range(len(questions)) if index not in answered]


def answer_missing(
    answer: Answer,
    questions: Sequence[Sample],
    rules: Rules,
    folder: Path,
    batch_size: int = 16,
    *,
    group: ProcessGroup = ALONE,
    progress: Progress | None = None,
) -> list[AnswerRecord]:
    """Answer what a run's folder lacks, and give back all of its records.

    Args:
        answer: how, see :func:`answer_freely` and :func:`answer_with_texts`.
        questions: all dialogues of the benchmark.
        rules: how to score.
        folder: of the run; see :func:`~pixellm.evaluation.run_folder.open_run`.
        batch_size: dialogues answered together.
        group: each process answers its part; all must call this.
        progress: told after every batch.

    Returns:
        The records of all processes, in the order of the benchmark.

    Raises:
        ValueError: answers that don't fit their questions, or a damaged file.
        OSError: the file can't be written, or another process is writing it.
    """
    worker = _DialogueWorker(answer, rules, read_settings(folder))

    def tell(state: JobState) -> None:
        if progress is not None:
            progress(state.done, state.total, worker.giou)

    spread = answer_here(lambda: worker)
    items = _Numbered(questions, range(len(questions)))
    run_job(items, folder / ANSWERS_FILE, spread, batch_size, group=group, progress=tell)
    return read_answers(folder)


def answer_freely(predictor: Predictor, *, keep_logits: bool = False) -> Answer:
    """By free generation, see :func:`~pixellm.engine.dialogues.answer_dialogues`."""
    return lambda questions: answer_dialogues(
        predictor, questions, len(questions), keep_logits=keep_logits
    )


def answer_with_texts(engine: Engine) -> Answer:
    """With the true texts given, see :func:`~pixellm.engine.dialogues.answer_given`."""
    return lambda questions: answer_given(engine, questions, len(questions))


class _DialogueWorker:
    """Answers and scores a batch of dialogues.

    Args:
        answer: how they are answered.
        rules: how they are scored.
        settings: of the run.

    Attributes:
        giou: mean over the questions so far; None before the first.
    """

    def __init__(self, answer: Answer, rules: Rules, settings: Mapping[str, Any]) -> None:
        self.giou: float | None = None
        self._answer = answer
        self._rules = rules
        self._model = str(settings.get("model", ""))
        self._root = Path(settings.get("data", ""))
        self._gious: list[float] = []

    def __call__(self, batch: Sequence[tuple[int, Sample]]) -> BatchAnswers:
        begun = time.monotonic()
        numbers, samples = zip(*batch, strict=True)
        lines: dict[int, str] = {}
        for answered in self._answer(samples):
            image = name_of_image(answered.sample, self._root)
            records = score_dialogue(answered, numbers[answered.index], self._rules)
            self._gious += [question_giou(record, self._rules.unit) for record in records]
            values = [record_to_json(record, self._model, image) for record in records]
            lines[answered.index] = "".join(json.dumps(one) + "\n" for one in values)
        self.giou = sum(self._gious) / len(self._gious) if self._gious else None
        content = "".join(lines[index] for index in sorted(lines)).encode("ascii")
        images = len({str(s.image) if isinstance(s.image, Path) else id(s.image) for s in samples})
        return BatchAnswers(content, images, time.monotonic() - begun)


def score_dialogue(answered: AnsweredDialogue, index: int, rules: Rules) -> list[AnswerRecord]:
    """One record for each turn of a dialogue.

    Given answers name their targets in order, so their masks are paired by position; free ones are
    matched.

    Args:
        answered: the dialogue with its answers.
        index: its index in the benchmark.
        rules: how to score.
    """
    sample = answered.sample
    path = str(sample.image) if isinstance(sample.image, Path) else ""
    # Of drawn scenes: dialogues about one scene are called SCENE-0, SCENE-1 and so on.
    image = path or sample.id.rpartition("-")[0] or sample.id
    records = []
    rows = zip(sample.turns, answered.predictions, answered.seconds, strict=True)
    for number, (turn, prediction, seconds) in enumerate(rows):
        origin = Origin(index, number, len(sample.turns), sample.id, image, path, sample.source)
        pairs = [(i, i) for i in range(len(turn.targets))] if rules.mode == "forced" else None
        records.append(
            build_record(origin, turn, prediction, seconds, protocol=rules.protocol, pairs=pairs)
        )
    return records


class _Numbered(Sequence[tuple[int, Sample]]):
    """Questions with their index, fetched one at a time; a slice is a view."""

    def __init__(self, questions: Sequence[Sample], indices: range) -> None:
        self._questions = questions
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:  # a pair; for a slice, a view of several
        if isinstance(index, slice):
            return _Numbered(self._questions, self._indices[index])
        number = self._indices[index]
        return number, self._questions[number]
