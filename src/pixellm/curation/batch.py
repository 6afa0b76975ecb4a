"""Runs through the Batch API: half the price, answers within a day.

All open requests go out as one file, the replies come back as another, in any order; then repairs
do the same. The number of the batch is in the ledger before anything is waited for, so a killed
run finds its batch again instead of paying twice. Rules, ledger and verdicts are the usual ones.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pixellm.curation.client import (
    MAX_TOKENS,
    ClientError,
    NoReplyError,
    OpenAIClient,
    Price,
    Reply,
    Request,
    UnanswerableError,
    estimate_tokens,
)
from pixellm.curation.ledger import CostCapError, Ledger
from pixellm.curation.pipeline import Progress
from pixellm.curation.proposal import Verdict, Writing
from pixellm.curation.rules import Violation

DISCOUNT = 0.5
MOST_BYTES = 150_000_000
MOST_REQUESTS = 40_000
"""The API takes 200 MB and 50,000 requests per file; these stay below."""

_ROUNDS_WITHOUT_REPLY = 3
_OVER = ("completed", "failed", "expired", "cancelled")


@dataclass(frozen=True, slots=True)
class BatchRunner:
    """What sends batches: the ledger, clients, prices and limits.

    Attributes:
        ledger: the run.
        clients: by kind of request, "" for all others; their servers offer ``/files`` and
            ``/batches``.
        prices: full prices by the name of the client; a batch costs half.
        max_cost: no batch is sent whose highest estimate would pass this many USD.
        poll: seconds between two looks at a batch.
    """

    ledger: Ledger
    clients: Mapping[str, OpenAIClient]
    prices: Mapping[str, Price]
    max_cost: float | None = None
    poll: float = 30.0

    def client_of(self, request: Request) -> OpenAIClient:
        """The client that a request goes to."""
        return self.clients.get(request.kind, self.clients[""])

    def cost(self, client: OpenAIClient, reply: Reply) -> float:
        """USD of a reply from a batch."""
        return self.prices[client.name].of(reply, DISCOUNT)


def run_batches(runner: BatchRunner, writing: Writing, progress: Progress) -> str:
    """Bring all open tasks to their verdicts, batch after batch.

    Args:
        runner: ledger, clients and prices.
        writing: how tasks become requests.
        progress: called after every verdict.

    Returns:
        "" when nothing is left open, else one sentence on why the run stopped.

    Raises:
        ClientError: the server refuses every request.
    """
    import openai

    silent = 0
    while waiting := _settle_ready(runner.ledger, writing, progress):
        try:
            pending = runner.ledger.get("batch") or _submit(runner, waiting)
            if pending is None:
                continue
            answered = _collect(runner, pending, waiting)
        except CostCapError:
            return (
                f"The next batch could pass the cost cap of {runner.max_cost} USD; the same "
                "command with a higher --max-cost goes on from here."
            )
        except openai.APIError as error:
            reason = runner.clients[""].translate(error)
            if isinstance(reason, ClientError):
                raise reason from None
            return (
                f"The batch server gave no answer ({reason}); the same command goes on from here."
            )
        silent = 0 if answered else silent + 1
        if silent >= _ROUNDS_WITHOUT_REPLY:
            return f"{silent} batches in a row brought no reply; look at the server's batch page."
    return ""


def _settle_ready(ledger: Ledger, writing: Writing, progress: Progress) -> dict[int, Request]:
    """Settle every task that is decided; returns the requests of the others."""
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
            waiting[number] = step
    return waiting


def _submit(runner: BatchRunner, waiting: dict[int, Request]) -> dict[str, Any] | None:
    """Send one batch; its exchanges are in the ledger before, its number right after."""
    ledger, client = runner.ledger, runner.client_of(next(iter(waiting.values())))
    lines: list[bytes] = []
    exchanges: dict[str, int] = {}
    size, estimate = 0, ledger.spent()
    for line, request in _lines(ledger, client, waiting):
        if runner.client_of(request) is not client:  # a batch is for one model
            continue
        worst = Reply("", "stop", estimate_tokens(request), MAX_TOKENS)
        estimate += runner.cost(client, worst)
        size += len(line)
        dear = runner.max_cost is not None and estimate > runner.max_cost
        if dear and not lines:
            raise CostCapError
        if dear or size > MOST_BYTES or len(lines) >= MOST_REQUESTS:
            break
        lines.append(line)
        exchanges[str(request.task)] = ledger.begin(request, client.name)
    if not lines:
        return None
    tag = secrets.token_hex(8)
    pending = {"tag": tag, "id": "", "model": client.name, "exchanges": exchanges}
    ledger.put("batch", pending)  # a kill from here on is mended by _find_batch
    file = client.api.files.create(file=("requests.jsonl", b"".join(lines)), purpose="batch")
    batch = client.api.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"pixellm": tag},
    )
    pending["id"] = batch.id
    ledger.put("batch", pending)
    return pending


def _lines(
    ledger: Ledger, client: OpenAIClient, waiting: dict[int, Request]
) -> Iterator[tuple[bytes, Request]]:
    """Each request as a line of the batch file; those with a damaged photo are settled."""
    for number, request in waiting.items():
        try:
            body = client.body(request)
        except UnanswerableError as error:
            _reject(ledger, number, error)
            continue
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions"}
        yield json.dumps({**line, "body": body}).encode() + b"\n", request


def _find_batch(client: OpenAIClient, tag: str) -> str:
    """The number of a batch that was sent right before the run was killed, or ""."""
    for batch in client.api.batches.list(limit=100):
        if (batch.metadata or {}).get("pixellm") == tag:
            return batch.id
    return ""


def _collect(runner: BatchRunner, pending: dict[str, Any], waiting: dict[int, Request]) -> int:
    """Wait for a batch and record its replies; returns how many there were."""
    client = next(c for c in runner.clients.values() if c.name == pending["model"])
    number = pending["id"] or _find_batch(client, pending["tag"])
    answered: set[str] = set()
    pause = threading.Event()
    if number:
        while (batch := client.api.batches.retrieve(number)).status not in _OVER:
            pause.wait(runner.poll)
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in client.api.files.content(file).text.splitlines():
                answered |= _record(runner, client, json.loads(line), pending, waiting)
    for task, exchange in pending["exchanges"].items():
        if task not in answered:
            runner.ledger.fail(exchange, "The batch brought no reply.")
    runner.ledger.put("batch", None)
    return len(answered)


def _record(
    runner: BatchRunner,
    client: OpenAIClient,
    line: dict[str, Any],
    pending: dict[str, Any],
    waiting: dict[int, Request],
) -> set[str]:
    """Record one line of a batch's output; returns the task that it brings to an end or on."""
    task, response = str(line.get("custom_id")), line.get("response") or {}
    exchange = pending["exchanges"].get(task)
    if exchange is None or int(task) not in waiting:
        return set()
    status = int(response.get("status_code") or 0)
    error = client.redact(f"HTTP {status}: {line.get('error') or response.get('body')}"[:500])
    try:
        if status != 200:
            raise NoReplyError(error)
        reply = client.read(response.get("body") or {}, waiting[int(task)])
    except NoReplyError:
        runner.ledger.fail(exchange, error)
        if 400 <= status < 500 and status not in (408, 429):
            _reject(runner.ledger, int(task), UnanswerableError(error))
            return {task}
        return set()
    runner.ledger.answer(exchange, reply, runner.cost(client, reply))
    return {task}


def _reject(ledger: Ledger, number: int, error: UnanswerableError) -> None:
    ledger.settle(number, Verdict("rejected", violations=(Violation("unanswerable", str(error)),)))
