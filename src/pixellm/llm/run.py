"""Many requests in flight: attempts, waits, the cost cap, and the way to stop.

Depends on: ``client`` for one attempt and ``store``, which keeps every request before it is sent;
used by: curation and the judge.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pixellm.llm.client import (
    Client,
    ClientError,
    NoReplyError,
    RefusedError,
    Reply,
    Request,
    UnanswerableError,
    estimate_tokens,
)
from pixellm.llm.prices import Price
from pixellm.llm.store import RequestStore

T = TypeVar("T")

RequestProgress = Callable[[int, int, float], None]
"""Called with (items done, items in all, USD spent) after every item."""

EXPECTED_OUTPUT_TOKENS = 300
"""What a reply is taken to need while it is under way."""

LONGEST_WAIT = 60.0
"""Seconds between two attempts, unless the server asks for more."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How hard a run tries; changes nothing in what is asked.

    Attributes:
        workers: requests in flight.
        max_cost: USD that all replies in the store may cost, or None.
        attempts: attempts per request before it is left to the next run.
        wait: seconds before the second attempt, doubled for each further one.
    """

    workers: int = 16
    max_cost: float | None = None
    attempts: int = 6
    wait: float = 1.0


class StoppedError(ClientError):
    """The run ends early on purpose; its message says why and what to do."""


class RequestRunner:
    """Sends requests, as many at a time as there are workers; one lives for one run.

    Args:
        store: what is asked and answered.
        clients: by kind of request, "" for all others.
        prices: per million tokens, by the name of the client.
        limits: how hard to try.

    Attributes:
        num_replies: how many requests were answered.
        last_failure: what became of the last request that was not, in the server's words; "" for
            none.
    """

    def __init__(
        self,
        store: RequestStore,
        clients: Mapping[str, Client],
        prices: Mapping[str, Price],
        limits: RunLimits,
    ) -> None:
        self.store = store
        self.stop = threading.Event()
        self.stopped = ""
        self.num_replies = 0
        self.last_failure = ""
        self._clients = clients
        self._prices = prices
        self._limits = limits
        self._mutex = threading.RLock()
        self._freed = threading.Condition(self._mutex)
        self._quiet_until = 0.0
        self._failures_in_row = 0
        self._reserved = 0.0

    def ask(self, request: Request) -> Reply:
        """The reply to a request, after as many attempts as it takes.

        Raises as :meth:`Client.complete` does, and StoppedError where the run is to end.
        """
        client = self._clients.get(request.kind, self._clients[""])
        for attempt in range(self._limits.attempts):
            self._wait_turn()
            try:
                reply = self._attempt(request, client)
            except NoReplyError as error:
                last = error
                if attempt + 1 < self._limits.attempts:
                    self._put_off(attempt, error.retry_after)
            except RefusedError as error:
                self._give_up("were refused", error)
                raise
            else:
                with self._mutex:
                    self._failures_in_row = 0
                    self.num_replies += 1
                return reply
        self._give_up("got no reply", last)
        raise last

    def run_all(
        self,
        items: Sequence[T],
        work: Callable[[T], object],
        progress: RequestProgress,
        total: int = 0,
    ) -> str:
        """Work on all items, many at a time, in their order; why the run stopped early, or "".

        ``work`` brings one item to its end, with :meth:`ask`; ``total`` counts those that were done
        before. ClientError where no request can be answered, OSError where the store can't be
        written.
        """
        todo, mutex = iter(items), threading.Lock()
        total = max(total, len(items))
        done = total - len(items)

        def keep_working() -> None:
            nonlocal done
            while not self.stop.is_set():
                with mutex:
                    try:
                        item = next(todo)
                    except StopIteration:
                        return
                work(item)
                with mutex:
                    done += 1
                    progress(done, total, self.store.spent())

        progress(done, total, self.store.spent())
        workers = max(1, min(self._limits.workers, len(items)))
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(keep_working) for _ in range(workers)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self.stop.set()  # on Ctrl-C or an error the others finish what is in flight
        for error in filter(None, (future.exception() for future in futures)):
            if not isinstance(error, StoppedError):
                raise error
        return self.stopped

    def _attempt(self, request: Request, client: Client) -> Reply:
        """One attempt, recorded before and after."""
        price = self._prices.get(client.name, Price(0.0, 0.0))
        with self._reserve(request, price):
            number = self.store.begin(request, client.name)
            try:
                reply = client.complete(request)
            except (NoReplyError, UnanswerableError, RefusedError, ClientError) as error:
                self.store.fail(number, str(error))
                raise
            self.store.answer(number, reply, price.of(reply))
            return reply

    @contextmanager
    def _reserve(self, request: Request, price: Price) -> Iterator[None]:
        """Set the request's likely cost aside while it is under way.

        Where only what others have set aside stands in the way, this waits for them, since most
        replies cost less than was set aside.
        """
        likely = price.of(Reply("", "", estimate_tokens(request), EXPECTED_OUTPUT_TOKENS))
        with self._freed:
            while not self._has_room(likely + self._reserved):
                if self.stop.is_set():
                    raise StoppedError(self.stopped)
                if not self._has_room(likely):
                    raise self._halt(
                        f"The cost cap of {self._limits.max_cost:g} USD leaves no room for the "
                        f"next request ({self.store.spent():.4f} are spent); the same command "
                        "with a higher --max-cost goes on from here."
                    )
                self._freed.wait(0.5)  # a stop that comes meanwhile is seen
            self._reserved += likely
        try:
            yield
        finally:
            with self._freed:
                self._reserved -= likely
                self._freed.notify_all()

    def _has_room(self, usd: float) -> bool:
        cap = self._limits.max_cost
        return cap is None or self.store.spent() + usd <= cap

    def _halt(self, reason: str) -> StoppedError:
        """End the run: no further request goes out. The first reason given is kept."""
        with self._mutex:
            self.stopped = self.stopped or reason
            self.stop.set()
        return StoppedError(self.stopped)

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
            pause = min(LONGEST_WAIT, self._limits.wait * 2**attempt)
            self.stop.wait(pause * random.uniform(0.5, 1.0))

    def _give_up(self, what: str, error: Exception) -> None:
        """Stop the run when request after request fails: the server or the network is gone."""
        with self._mutex:
            self._failures_in_row += 1
            self.last_failure = f"{what} ({error})"
        if self._failures_in_row >= self._limits.workers + 2:
            raise self._halt(
                f"{self._failures_in_row} requests in a row {what} ({error}); when the server "
                "answers, the same command goes on from here."
            ) from None
