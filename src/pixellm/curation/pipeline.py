"""The run: select, then propose, verify and repair every task, directly or in batches.

Owns the order of stages. Depends on: ``proposal``, which decides what to ask and judges replies,
``ledger``, which stores them, and ``llm``, which sends requests, waits and retries; used by: the
command line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixellm.curation.ledger import Ledger
from pixellm.curation.photos import (
    MAX_INSTANCES,
    MIN_AREA,
    MIN_INSTANCES,
    MIN_SIDE,
    WHOLE,
    AnnotationFile,
    Photo,
    Shard,
    order_by_balance,
    seeded_fraction,
)
from pixellm.curation.proposal import Verdict, WriterRequest, Writing, prompts_fingerprint
from pixellm.curation.rules import Violation, Vocabulary
from pixellm.llm.batch import BatchRunner
from pixellm.llm.client import NoReplyError, RefusedError, UnanswerableError
from pixellm.llm.run import RequestProgress, RequestRunner, StoppedError


@dataclass(frozen=True, slots=True)
class Source:
    """What a run is made from, and what its rows depend on; kept in the ledger.

    Attributes:
        annotations: COCO or LVIS instances JSON.
        images: the folder of photos.
        captions: COCO captions JSON, or None.
        model: name of the writer.
        check_model: name of a second model that checks descriptions on crops, or "".
        text_only: the writer sees captions instead of the photo.
        questions: questions asked for per photo.
        seed: breaks ties in the order of photos, and chooses styles.
        shard: the share of the photos that this run is about.
    """

    annotations: Path
    images: Path
    model: str
    captions: Path | None = None
    check_model: str = ""
    text_only: bool = False
    questions: int = 2
    seed: int = 0
    shard: Shard = WHOLE

    def identity(self) -> dict[str, Any]:
        """What has to be the same when a run goes on, as plain JSON."""
        return {
            "annotations": _file_hash(self.annotations),
            "captions": _file_hash(self.captions) if self.captions else "",
            "model": self.model,
            "check_model": self.check_model,
            "text_only": self.text_only,
            "questions": self.questions,
            "prompts": prompts_fingerprint(),
            "min_instances": MIN_INSTANCES,
            "max_instances": MAX_INSTANCES,
            "min_area": MIN_AREA,
            "min_side": MIN_SIDE,
            "seed": self.seed,
            **({} if self.shard == WHOLE else {"shard": str(self.shard)}),
        }


def select(
    ledger: Ledger,
    source: Source,
    max_images: int | None,
    styles_for: Callable[[Photo, Sequence[str]], Sequence[str]] | None = None,
) -> Writing:
    """Fill the ledger with photos, once, and with the tasks of the best ``max_images``.

    A later run with a larger ``max_images`` adds tasks; nothing is taken away. ``styles_for`` tells
    in which of the styles the writer can ask about a photo; None for one that can try all.
    """
    ledger.bind(source.identity())
    if not ledger.get("selected"):
        file = AnnotationFile(source.annotations, source.captions)
        ledger.put("categories", file.categories)
        rows = _refuse_wrong_folder(file.photos(source.images, source.shard), source.images)
        ledger.add_photos(rows, lambda usable: order_by_balance(usable, source.seed))
    writing = Writing(
        Vocabulary(ledger.get("categories")), source.text_only, check_fit=bool(source.check_model)
    )
    photos = ledger.usable_photos(max_images)
    every = tuple(writing.styles)
    fitting = (
        (photo, styles_for(ledger.photo(photo), every) if styles_for else every) for photo in photos
    )
    ledger.add_tasks(_plan(fitting, every, source))
    ledger.reopen_failed()
    return writing


def work(number: int, ledger: Ledger, writing: Writing, runner: RequestRunner) -> Verdict:
    """Bring one task to its verdict, from wherever the ledger says it stands."""
    task, replies = ledger.task(number), ledger.replies(number)
    while True:
        step = writing.next_step(task, replies)
        if isinstance(step, WriterRequest):
            try:
                replies[step.kind] = runner.ask(step)
                continue
            except (NoReplyError, RefusedError, UnanswerableError) as error:
                step = _verdict_without_reply(error)
        ledger.settle(number, step)
        return step


def work_all(
    ledger: Ledger, writing: Writing, runner: RequestRunner, progress: RequestProgress
) -> str:
    """Bring all open tasks to their verdicts, many at a time; why the run stopped early, or ""."""
    total = sum(ledger.counts()["tasks"].values())
    return runner.run_all(
        ledger.open_tasks(), lambda number: work(number, ledger, writing, runner), progress, total
    )


def work_in_batches(
    ledger: Ledger, writing: Writing, runner: BatchRunner, progress: RequestProgress
) -> str:
    """Bring all open tasks to their verdicts through the Batch API: first drafts, then repairs.

    Returns why the run stopped early, or "".
    """
    while waiting := _settle_ready(ledger, writing, progress):
        try:
            failures = runner.ask_many(waiting)
        except StoppedError as reason:
            return str(reason)
        for key, error in failures.items():
            ledger.settle(waiting[key].task.id, _verdict_without_reply(error))
    return ""


def _settle_ready(
    ledger: Ledger, writing: Writing, progress: RequestProgress
) -> dict[str, WriterRequest]:
    """Settle every task that is decided; returns the requests of the others by their keys."""
    waiting = {}
    total = sum(ledger.counts()["tasks"].values())
    numbers = ledger.open_tasks()
    done = total - len(numbers)
    for number in numbers:
        step = writing.next_step(ledger.task(number), ledger.replies(number))
        if isinstance(step, Verdict):
            ledger.settle(number, step)
            done += 1
            progress(done, total, ledger.spent())
        else:
            waiting[step.key] = step
    return waiting


def _verdict_without_reply(error: NoReplyError | RefusedError | UnanswerableError) -> Verdict:
    """Only what no server could answer is final; the rest is asked again by the next run."""
    if isinstance(error, UnanswerableError):
        return Verdict("rejected", violations=(Violation("unanswerable", str(error)),))
    rule = "refused" if isinstance(error, RefusedError) else "no_reply"
    return Verdict("failed", violations=(Violation(rule, str(error)),))


def _refuse_wrong_folder(
    rows: Iterable[tuple[Photo, str]], images: Path
) -> Iterator[tuple[Photo, str]]:
    """The rows as they are, unless no photo can be used because none is where it should be."""
    num_usable, missing = 0, list[str]()
    for photo, reason in rows:
        num_usable += not reason
        if reason == "missing_file":
            missing.append(photo.file_name)
        yield photo, reason
    if missing and not num_usable:
        raise ValueError(
            f"None of the {len(missing)} photos that could be used is in {images}, such as "
            f"{missing[0]}; check --images."
        )


def _plan(
    photos: Iterable[tuple[str, Sequence[str]]], styles: tuple[str, ...], source: Source
) -> Iterator[tuple[str, int, str]]:
    """(photo, number, style) of every task: each photo begins at a seeded index in the styles.

    A photo that the writer has less to ask about has fewer tasks, but at least one, whose verdict
    says that there is nothing to ask.
    """
    for photo, fitting in photos:
        start = int(seeded_fraction(source.seed, "style", photo) * len(styles))
        turn = [styles[(start + number) % len(styles)] for number in range(len(styles))]
        wanted = [style for style in turn if style in fitting] or turn[:1]
        tries = source.questions if len(fitting) == len(styles) else len(wanted)
        for number in range(min(tries, source.questions)):
            yield photo, number, wanted[number % len(wanted)]


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no annotation file at {path}.") from None
