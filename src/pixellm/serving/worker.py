"""The engine's one thread: requests of many clients enter its running batch and leave it.

Places are bounded: who finds none is told when to come again. A client that leaves takes its
request along, whether it waits or is half answered. Knows nothing of HTTP but the status of what
it refuses.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress

from pixellm.engine import AnswerOptions, Engine
from pixellm.engine.live import LiveBatch
from pixellm.engine.memory import free_memory, is_out_of_memory
from pixellm.serving.errors import RefusedError, invalid
from pixellm.types import Prediction, Request, Segment

Piece = str | Segment | Prediction

MAX_FAILURES = 3
"""So many failures of the engine without an answer in between, and the server is unhealthy."""

_LOG = logging.getLogger(__name__)


class _Job:
    """A request, and the way back to who waits for its pieces."""

    def __init__(self, request: Request, options: AnswerOptions) -> None:
        self.request = request
        self.options = options
        self.has_left = False
        self.pieces: asyncio.Queue[Piece | RefusedError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def tell(self, piece: Piece | RefusedError) -> None:
        """Hand a piece over, from the engine's thread."""
        with suppress(RuntimeError):  # the server's loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class Worker:
    """Runs an engine for many clients; ``queue`` of them may wait beyond those in the batch.

    Attributes:
        failures: of the engine, since its last answer.
        num_taken: places in use: waiting, running, or having their images read.
    """

    def __init__(self, engine: Engine, queue: int) -> None:
        self.engine = engine
        self.failures = 0
        self._queue = queue
        self.num_taken = 0
        self._seconds = 1.0
        self._waiting: deque[_Job] = deque()
        self._running: dict[int, _Job] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self, patience: float = 10.0) -> None:
        """Take nothing more, finish what was taken, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(patience)

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered."""
        return self._thread.is_alive() and not self._stopping and self.is_healthy

    @property
    def is_healthy(self) -> bool:
        """Whether the engine works."""
        return self.failures < MAX_FAILURES

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a row of the batch."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that are being answered."""
        return len(self._running)

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places, from the event loop's thread.

        Raises:
            RefusedError: all are taken (429), or the server stops (503).
        """
        if self._stopping or not self._thread.is_alive():
            raise _stopping()
        rows = self.engine.max_batch
        if self.num_taken >= rows + self._queue:
            seconds = max(1, math.ceil(self._seconds * (self.num_taken - rows + 1) / rows))
            raise RefusedError(
                429,
                f"{self.num_taken} requests are being answered or wait; try again in {seconds} s.",
                "busy",
                {"Retry-After": str(seconds)},
            )
        self.num_taken += 1
        try:
            yield
        finally:
            self.num_taken -= 1

    async def answer(self, request: Request, options: AnswerOptions) -> AsyncGenerator[Piece]:
        """Pieces of the answer, the Prediction last; to leave early, close the iterator."""
        job, started = _Job(request, options), time.monotonic()
        with self._changed:
            if self._stopping:
                raise _stopping()
            self._waiting.append(job)
            self._changed.notify()
        try:
            while True:
                piece = await job.pieces.get()
                if isinstance(piece, RefusedError):
                    raise piece
                yield piece
                if isinstance(piece, Prediction):
                    self._seconds += 0.1 * (time.monotonic() - started - self._seconds)
                    return
        finally:
            job.has_left = True

    def _run(self) -> None:
        """Keep a batch open; a new one where it broke."""
        while True:
            try:
                with self.engine.open_batch() as batch:
                    self._serve(batch)
                return
            except Exception as error:
                self._fail(error)

    def _serve(self, batch: LiveBatch) -> None:
        """Answer until the server stops and nothing is left."""
        while True:
            for number, job in list(self._running.items()):
                if job.has_left:
                    batch.cancel(number)
                    del self._running[number]
            self._enter(batch, self._next_jobs(batch.room))
            if not len(batch):
                if self._stopping and not self._waiting:
                    return
                continue
            for number, piece in batch.step():
                self._running[number].tell(piece)
                if isinstance(piece, Prediction):
                    self.failures = 0
                    del self._running[number]

    def _next_jobs(self, room: int) -> list[_Job]:
        """Who enters now; waits while there is nothing to do and the server goes on."""
        with self._changed:
            while not self._waiting and not self._running and not self._stopping:
                self._changed.wait()
            entering: list[_Job] = []
            while self._waiting and len(entering) < room:
                job = self._waiting.popleft()
                if not job.has_left:
                    entering.append(job)
            return entering

    def _enter(self, batch: LiveBatch, jobs: list[_Job]) -> None:
        """Let jobs into the batch; one that does not fit into memory fails alone."""
        for job in jobs:
            try:
                (number,) = batch.add([(job.request, job.options)])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    job.tell(_failure(error))
                    raise
                free_memory()
                job.tell(_failure(error))
                continue
            if isinstance(number, int):
                self._running[number] = job
            else:
                job.tell(invalid(str(number)))

    def _fail(self, error: Exception) -> None:
        """Tell everyone in the broken batch."""
        _LOG.error("The engine failed; its batch is begun anew.", exc_info=error)
        self.failures += 1
        running, self._running = self._running, {}
        for job in running.values():
            job.tell(_failure(error))
        free_memory()


def _stopping() -> RefusedError:
    return RefusedError(503, "The server is stopping; ask another one.", "stopping")


def _failure(error: Exception) -> RefusedError:
    if is_out_of_memory(error):
        sentence = "There is not enough memory for this; ask about a smaller image."
        return RefusedError(503, sentence, "out_of_memory")
    return RefusedError(500, "The model failed on this request; it was logged.", "engine_failure")
