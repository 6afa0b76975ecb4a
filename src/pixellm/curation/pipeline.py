"""The run: select, then propose, verify and repair every task, with many requests in flight.

Owns waiting, retries, stopping and the order of stages. Depends on: ``proposal``, which decides
what to ask and judges replies, and ``ledger``, which stores them; used by: the command line.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pixellm.curation.client import (
    Client,
    NoReplyError,
    Price,
    Reply,
    Request,
    UnanswerableError,
)
from pixellm.curation.ledger import CostCapError, Ledger
from pixellm.curation.photos import (
    AnnotationFile,
    SelectSettings,
    order_by_balance,
    seeded_fraction,
)
from pixellm.curation.proposal import Task, Verdict, Writing, prompts_fingerprint
from pixellm.curation.rules import Violation, Vocabulary

Progress = Callable[[int, int, float], None]
"""Called with (tasks done, tasks in all, USD spent) after every verdict."""


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
        select: which photos and instances are fit.
    """

    annotations: Path
    images: Path
    model: str
    captions: Path | None = None
    check_model: str = ""
    text_only: bool = False
    questions: int = 2
    select: SelectSettings = field(default_factory=SelectSettings)

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
            **asdict(self.select),
        }


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How hard a run tries; changes nothing in what it writes.

    Attributes:
        workers: requests in flight.
        max_cost: USD after which no request is sent, or None.
        attempts: attempts per request before its task is put off to the next run.
        wait: seconds before the second attempt, doubled for each further one, at most 60.
    """

    workers: int = 16
    max_cost: float | None = None
    attempts: int = 6
    wait: float = 1.0


class LedgerLike(Protocol):
    """The part of the ledger that a worker needs; across machines it is a remote one."""

    def task(self, number: int) -> Task:
        """See :meth:`Ledger.task`."""

    def replies(self, task: int) -> dict[str, Reply]:
        """See :meth:`Ledger.replies`."""

    def begin(self, request: Request, model: str, max_cost: float | None = None) -> int:
        """See :meth:`Ledger.begin`."""

    def answer(self, exchange: int, reply: Reply, cost: float) -> None:
        """See :meth:`Ledger.answer`."""

    def fail(self, exchange: int, error: str) -> None:
        """See :meth:`Ledger.fail`."""

    def settle(self, task: int, verdict: Verdict) -> None:
        """See :meth:`Ledger.settle`."""


class StoppedError(Exception):
    """The run ends early on purpose; its message says why and what to do."""


def select(ledger: Ledger, source: Source, max_images: int | None) -> Writing:
    """Fill the ledger with photos, once, and with the tasks of the best ``max_images``.

    A later run with a larger ``max_images`` adds tasks; nothing is taken away.

    Raises:
        FileNotFoundError: annotations, captions or images are missing.
        ValueError: they are malformed, or the ledger belongs to another run.
    """
    ledger.bind(source.identity())
    if not ledger.get("selected"):
        seed = source.select.seed
        file = AnnotationFile(source.annotations, source.captions)
        ledger.put("categories", file.categories)
        rows = file.photos(source.images, source.select)
        ledger.add_photos(rows, lambda usable: order_by_balance(usable, seed))
    writing = Writing(
        Vocabulary(ledger.get("categories")), source.text_only, check_fit=bool(source.check_model)
    )
    photos = ledger.usable_photos(max_images)
    ledger.add_tasks(_plan(photos, tuple(writing.styles), source))
    ledger.reopen_failed()
    return writing


class RequestRunner:
    """Sends a worker's requests: attempts, waiting, prices, the cost cap, the way to stop.

    Args:
        ledger: what is stored.
        clients: by kind of request, "" for all others.
        prices: per million tokens, by the name of the client.
        limits: how hard to try.
    """

    def __init__(
        self,
        ledger: LedgerLike,
        clients: Mapping[str, Client],
        prices: Mapping[str, Price],
        limits: RunLimits,
    ) -> None:
        self.ledger = ledger
        self.stop = threading.Event()
        self._clients = clients
        self._prices = prices
        self._limits = limits
        self._mutex = threading.Lock()
        self._quiet_until = 0.0
        self._failures_in_row = 0
        self.stopped = ""

    def halt(self, reason: str) -> StoppedError:
        """End the run: no further request goes out. The first reason given is kept."""
        with self._mutex:
            self.stopped = self.stopped or reason
            self.stop.set()
        return StoppedError(self.stopped)

    def ask(self, request: Request) -> Reply:
        """The reply to a request, after as many attempts as it takes.

        Raises:
            StoppedError: the run is to end; this request was not answered.
            UnanswerableError: this request can't be answered.
            NoReplyError: all attempts failed.
            ClientError: no request can be answered.
        """
        client = self._clients.get(request.kind, self._clients[""])
        for attempt in range(self._limits.attempts):
            self._wait_turn()
            exchange = self._begin(request, client.name)
            try:
                reply = client.complete(request)
            except NoReplyError as error:
                self.ledger.fail(exchange, str(error))
                last = error
                if attempt + 1 < self._limits.attempts:
                    self._put_off(attempt, error.retry_after)
            except (UnanswerableError, OSError) as error:
                self.ledger.fail(exchange, str(error))
                raise
            else:
                price = self._prices.get(client.name, Price(0.0, 0.0))
                self.ledger.answer(exchange, reply, price.of(reply))
                self._failures_in_row = 0
                return reply
        self._give_up(last)
        raise last

    def _begin(self, request: Request, model: str) -> int:
        try:
            return self.ledger.begin(request, model, self._limits.max_cost)
        except CostCapError:
            raise self.halt(
                f"The cost cap of {self._limits.max_cost} USD is reached; the same command with a "
                "higher --max-cost goes on from here."
            ) from None

    def _wait_turn(self) -> None:
        while (left := self._quiet_until - time.monotonic()) > 0 and not self.stop.is_set():
            self.stop.wait(left)
        if self.stop.is_set():
            raise StoppedError(self.stopped)

    def _put_off(self, attempt: int, retry_after: float | None) -> None:
        """Wait before the next attempt; a wait that the server asked for holds for all workers."""
        if retry_after is not None:
            with self._mutex:
                self._quiet_until = max(self._quiet_until, time.monotonic() + retry_after)
        else:
            pause = min(60.0, self._limits.wait * 2**attempt)
            self.stop.wait(pause * random.uniform(0.5, 1.0))

    def _give_up(self, error: NoReplyError) -> None:
        """Stop the run when request after request fails: the server or the network is gone."""
        with self._mutex:
            self._failures_in_row += 1
        if self._failures_in_row >= self._limits.workers + 2:
            raise self.halt(
                f"{self._failures_in_row} requests in a row got no reply ({error}); when the "
                "server is back, the same command goes on from here."
            )


def work(number: int, writing: Writing, runner: RequestRunner) -> Verdict:
    """Bring one task to its verdict, from wherever the ledger says it stands.

    Raises:
        StoppedError: the run is to end; the task stays open.
        ClientError: no request can be answered; the task stays open.
    """
    task, replies = runner.ledger.task(number), runner.ledger.replies(number)
    while True:
        step = writing.next_step(task, replies)
        if isinstance(step, Request):
            try:
                replies[step.kind] = runner.ask(step)
                continue
            except NoReplyError as error:
                step = Verdict("failed", violations=(Violation("no_reply", str(error)),))
            except UnanswerableError as error:
                step = Verdict("rejected", violations=(Violation("unanswerable", str(error)),))
        runner.ledger.settle(number, step)
        return step


def work_all(
    ledger: Ledger, writing: Writing, runner: RequestRunner, workers: int, progress: Progress
) -> str:
    """Bring all open tasks to their verdicts, ``workers`` at a time.

    Returns:
        "" when nothing is left open, else one sentence on why the run stopped.

    Raises:
        ClientError: no request can be answered.
        OSError: the ledger can't be written.
    """
    numbers = ledger.open_tasks()
    total = sum(ledger.counts()["tasks"].values())
    todo, mutex, left = iter(numbers), threading.Lock(), len(numbers)

    def next_number() -> int | None:
        with mutex:
            return next(todo, None)

    def keep_working() -> None:
        nonlocal left
        while not runner.stop.is_set() and (number := next_number()) is not None:
            work(number, writing, runner)
            with mutex:
                left -= 1
                progress(total - left, total, ledger.spent())

    progress(total - left, total, ledger.spent())
    with ThreadPoolExecutor(max(1, min(workers, len(numbers)))) as pool:
        futures = [pool.submit(keep_working) for _ in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            runner.stop.set()  # on Ctrl-C or an error the others finish what is in flight
    for error in filter(None, (future.exception() for future in futures)):
        if not isinstance(error, StoppedError):
            raise error
    return runner.stopped


def _plan(
    photos: list[str], styles: tuple[str, ...], source: Source
) -> Iterator[tuple[str, int, str]]:
    """(photo, number, style) of every task: each photo begins at a seeded place in the styles."""
    for photo in photos:
        start = int(seeded_fraction(source.select.seed, "style", photo) * len(styles))
        for number in range(source.questions):
            yield photo, number, styles[(start + number) % len(styles)]


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no annotation file at {path}.") from None
