"""Runs a benchmark: questions to a model, answers to a log, over several processes, resumable.

Every answered dialogue is on disk before the next batch is asked; a stopped run goes on where it
stopped. It knows no data set and prints nothing; progress goes to a callback.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixellm.evaluation.answer_log import AnswerLog, read_answers
from pixellm.evaluation.records import AnswerRecord, Origin, build_record
from pixellm.evaluation.runner import (
    AnsweredDialogue,
    Predictor,
    answer_dialogues,
    answer_given,
)
from pixellm.evaluation.scores import Rules, question_giou
from pixellm.types import Sample

if TYPE_CHECKING:
    from pixellm.engine import Engine

Progress = Callable[[int, int, float | None], None]
"""Called with questions done, questions in all, and the mean of their gIoU so far."""

LONGEST_WAIT = timedelta(hours=24)
"""For processes that are done with their part while another still answers."""

Answer = Callable[[Sequence[Sample]], Iterator[AnsweredDialogue]]
"""Answers dialogues; each carries its index in the input."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes that share an evaluation.

    Attributes:
        number: of this one, from 0.
        count: all.
        local: number among those on this machine, which chooses the GPU.
    """

    number: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> ProcessGroup:
        """The processes that ``accelerate launch`` started; this one alone without it."""
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        import torch
        from accelerate import PartialState

        # Unless told so, accelerate takes processes without a GPU for ones that are alone.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
        return cls(state.process_index, state.num_processes, state.local_process_index)

    def share(self, items: Sequence[int]) -> Sequence[int]:
        """This process's part: neighbours stay together, as they ask about one image."""
        size = len(items)
        return items[self.number * size // self.count : (self.number + 1) * size // self.count]

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


ALONE = ProcessGroup()


def missing_questions(questions: Sequence[Sample], folder: Path) -> list[int]:
    """Places of the dialogues that a run's folder holds no answer to."""
    answered = {record.index for record in read_answers(folder)}
    return [index for index in range(len(questions)) if index not in answered]


def answer_missing(
    answer: Answer,
    questions: Sequence[Sample],
    rules: Rules,
    folder: Path,
    group: ProcessGroup = ALONE,
    progress: Progress | None = None,
) -> list[AnswerRecord]:
    """Answer what a run's folder lacks, and give back all of its records.

    Args:
        answer: how, see :func:`answer_freely` and :func:`answer_with_texts`.
        questions: all dialogues of the benchmark.
        rules: how to score.
        folder: of the run; see :func:`~pixellm.evaluation.answer_log.open_run`.
        group: each process answers its part; all must call this.
        progress: told after every dialogue, about this process's part.

    Returns:
        The records of all processes, in the order of the benchmark.

    Raises:
        ValueError: answers that don't fit their questions, or a damaged log.
    """
    todo = group.share(missing_questions(questions, folder))
    group.wait()  # all must have read the log before anyone writes to it
    total, done = sum(1 for _ in todo), 0
    sums = [0.0, 0.0]
    with AnswerLog(folder, group.number) as log:
        for answered in answer(_Selection(questions, todo)):
            records = score_dialogue(answered, todo[answered.index], rules)
            log.append(records)
            sums[0] += sum(question_giou(record, rules.unit) for record in records)
            sums[1] += len(records)
            done += 1
            if progress is not None:
                progress(done, total, sums[0] / sums[1] if sums[1] else None)
    group.wait()
    return read_answers(folder)


def answer_freely(predictor: Predictor, batch_size: int, *, keep_logits: bool = False) -> Answer:
    """By free generation, see :func:`~pixellm.evaluation.runner.answer_dialogues`."""
    return lambda questions: answer_dialogues(
        predictor, questions, batch_size, keep_logits=keep_logits
    )


def answer_with_texts(engine: Engine, batch_size: int) -> Answer:
    """With the true texts given, see :func:`~pixellm.evaluation.runner.answer_given`."""
    return lambda questions: answer_given(engine, questions, batch_size)


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


class _Selection(Sequence[Sample]):
    """Some of the questions, fetched one at a time."""

    def __init__(self, questions: Sequence[Sample], indices: Sequence[int]) -> None:
        self._questions = questions
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:  # a sample; for a slice, several
        if isinstance(index, slice):
            return _Selection(self._questions, self._indices[index])
        return self._questions[self._indices[index]]
