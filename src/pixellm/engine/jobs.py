"""Jobs: many questions answered in batches into one file of JSON lines, resumable at any moment.

``pixellm predict`` and ``pixellm eval`` run on this. Batches always begin at the same items, and a
batch is on disk as a whole or not at all: the file depends neither on where or how often a job was
stopped nor on how many processes shared it. What an item is, and what its lines hold, is for the
worker to know; a line begins with ``row``, the item's number, and ``num_turns`` says how many
lines the item has, where these are not one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from pixellm.engine.answer_file import (
    AnswerFile,
    AnswerStream,
    Check,
    accept,
    find_batches,
    open_answers,
)

Item = TypeVar("Item")

Progress = Callable[["JobState"], None]

Worker = Callable[[Sequence[Item]], "BatchAnswers"]
"""Answers a batch."""

Spread = Callable[[Sequence[Sequence[Item]]], Iterator["BatchAnswers"]]
"""Answers batches, in order."""

LONGEST_WAIT = timedelta(hours=24)
"""For processes that are done with their part while another still answers."""


@dataclass(frozen=True, slots=True)
class JobState:
    """How far a job is.

    Attributes:
        done: items in the file, bad ones included.
        bad: items without an answer.
        total: items of the job; with several processes those that are this one's to do or done.
        images: images answered by this process, each counted once a batch.
        seconds: since the first batch was begun; loading models came before that.
        skipped: items that an earlier call had done.
    """

    done: int
    bad: int
    total: int
    images: int = 0
    seconds: float = field(default=0.0, compare=False)
    skipped: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class BatchAnswers:
    """What came of a batch: the lines of each item in order, as JSON.

    Counted are the different images that were asked about, and the seconds that it took its worker.
    """

    lines: bytes
    images: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes that share a job, counted from 0.

    ``local`` is the number among those on this machine, which chooses the GPU.
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

    def share(self, batches: Sequence[int]) -> Sequence[int]:
        """This process's part: neighbours stay together, as they ask about one image."""
        size = len(batches)
        return batches[self.number * size // self.count : (self.number + 1) * size // self.count]

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


ALONE = ProcessGroup()


def run_job(
    items: Sequence[Item],
    path: Path,
    spread: Spread[Item],
    batch_size: int,
    *,
    check: Check = accept,
    group: ProcessGroup = ALONE,
    progress: Progress = lambda state: None,
) -> JobState:
    """Answer all items that the file does not answer yet.

    Args:
        items: of the whole job.
        path: JSONL file of answers; an unfinished one is gone on with. "-" is standard output.
        spread: answers batches; called only where something is left to do.
        batch_size: items answered together; the same for all of a job, or the last batch that is
            done may be done again.
        check: whether a line that is there answers what this job asks.
        group: each process answers its part; all must call this. The file is whole, and in the
            order of the items, when it returns.
        progress: called before the first and after every batch.

    Raises:
        ValueError, OSError: as :class:`~pixellm.engine.answer_file.AnswerFile`.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    group.wait()  # nobody reads any more what earlier calls left behind
    if group.number == 0:
        with open_answers(path, len(items), batch_size, check) as answers:
            group.wait()  # it lies in one file now
            done = set(answers.done)
            group.wait()  # all have read it before anyone writes
            state = _answer_batches(items, answers, done, spread, batch_size, group, progress)
            group.wait()
            answers.finish()
    else:
        group.wait()
        done = {one.number for one in find_batches(path, len(items), batch_size, check)}
        group.wait()
        part = path.with_name(f".{path.name}.part{group.number:03d}")
        with AnswerFile(part, len(items), batch_size, check) as answers:
            state = _answer_batches(items, answers, done, spread, batch_size, group, progress)
        group.wait()
    group.wait()
    return state


def answer_here(load: Callable[[], Worker[Item]]) -> Spread[Item]:
    """Answer batches in this process, with a worker that is made where one is left."""

    def spread(batches: Sequence[Sequence[Item]]) -> Iterator[BatchAnswers]:
        return map(load(), batches)

    return spread


def _answer_batches(
    items: Sequence[Item],
    answers: AnswerFile | AnswerStream,
    done: set[int],
    spread: Spread[Item],
    batch_size: int,
    group: ProcessGroup,
    progress: Progress,
) -> JobState:
    """Answer this process's part of the batches that are not done."""
    todo = group.share([n for n in range(-(-len(items) // batch_size)) if n not in done])
    batches = [items[n * batch_size : (n + 1) * batch_size] for n in todo]
    skipped = sum(min(batch_size, len(items) - n * batch_size) for n in done)
    total = skipped + sum(len(batch) for batch in batches)
    state = JobState(skipped, answers.num_bad, total, skipped=skipped)
    progress(state)
    images, finished = 0, skipped
    begun: float | None = None
    answered_batches = spread(batches) if batches else iter(())
    for number, batch, answered in zip(todo, batches, answered_batches, strict=True):
        answers.append(number, answered.lines)
        images += answered.images
        finished += len(batch)
        now = time.monotonic()
        begun = now - answered.seconds if begun is None else begun
        state = JobState(finished, answers.num_bad, total, images, now - begun, skipped)
        progress(state)
    return state
