"""Requests through the Batch API: half the price, answers within a day.

Many requests go out as one file, the replies come back as another, in any order. The number of the
batch is in the store before anything is waited for, so a killed run finds its batch again instead
of paying twice.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pixellm.llm.client import (
    MAX_TOKENS,
    ClientError,
    NoReplyError,
    OpenAIClient,
    RefusedError,
    Reply,
    Request,
    UnanswerableError,
    estimate_tokens,
)
from pixellm.llm.prices import Price
from pixellm.llm.run import StoppedError
from pixellm.llm.store import RequestStore

DISCOUNT = 0.5
MOST_BYTES = 150_000_000
MOST_REQUESTS = 40_000
"""The API takes 200 MB and 50,000 requests per file; these stay below."""

_ROUNDS_WITHOUT_REPLY = 3
_OVER = ("completed", "failed", "expired", "cancelled")

Failures = dict[str, UnanswerableError | RefusedError]
"""By the key of a request, why it has no reply and will have none today."""


@dataclass(slots=True)
class BatchRunner:
    """What sends batches: the store, clients, prices and limits; one lives for one run.

    Attributes:
        store: what is asked and answered.
        clients: by kind of request, "" for all others; their servers offer ``/files`` and
            ``/batches``.
        prices: full prices by the name of the client; a batch costs half.
        max_cost: no batch is sent whose highest estimate would pass this many USD.
        poll: seconds between two looks at a batch.
    """

    store: RequestStore
    clients: Mapping[str, OpenAIClient]
    prices: Mapping[str, Price]
    max_cost: float | None = None
    poll: float = 30.0
    _silent: int = 0

    def ask_many(self, requests: Mapping[str, Request]) -> Failures:
        """Send one batch of the requests, or find the one under way, and wait for its replies.

        Replies are in the store afterwards; requests that did not fit are left for another call.
        Returns those that can't be answered. StoppedError for the cost cap or a server that brings
        no replies, ClientError where the server refuses every request.
        """
        import openai

        try:
            failures: Failures = {}
            pending = self.store.get("batch") or self._submit(requests, failures)
            if pending is None:
                return failures
            num_answered = self._collect(pending, requests, failures)
        except openai.APIError as error:
            reason = self.clients[""].translate(error)
            if isinstance(reason, ClientError):
                raise reason from None
            raise StoppedError(
                f"The batch server gave no answer ({reason}); the same command goes on from here."
            ) from None
        self._silent = 0 if num_answered or failures else self._silent + 1
        if self._silent >= _ROUNDS_WITHOUT_REPLY:
            raise StoppedError(
                f"{self._silent} batches in a row brought no reply; look at the server's batch "
                "page."
            )
        return failures

    def _client_of(self, request: Request) -> OpenAIClient:
        return self.clients.get(request.kind, self.clients[""])

    def _cost(self, client: OpenAIClient, reply: Reply) -> float:
        return self.prices[client.name].of(reply, DISCOUNT)

    def _submit(self, requests: Mapping[str, Request], failures: Failures) -> dict[str, Any] | None:
        """Send one batch; its requests are in the store before, its number right after."""
        client = self._client_of(next(iter(requests.values())))
        lines: list[bytes] = []
        numbers: dict[str, int] = {}
        form: dict[str, Any] = {}
        size, estimate = 0, self.store.spent()
        for line, request in self._lines(client, requests, failures):
            worst = Reply("", "stop", estimate_tokens(request), MAX_TOKENS)
            estimate += self._cost(client, worst)
            size += len(line)
            is_dear = self.max_cost is not None and estimate > self.max_cost
            if is_dear and not lines:
                raise StoppedError(
                    f"The next batch could pass the cost cap of {self.max_cost} USD; the same "
                    "command with a higher --max-cost goes on from here."
                )
            if is_dear or size > MOST_BYTES or len(lines) >= MOST_REQUESTS:
                break
            lines.append(line)
            form = form or _form_of(json.loads(line)["body"])
            numbers[request.key] = self.store.begin(request, client.name)
        if not lines:
            return None
        tag = secrets.token_hex(8)
        pending = {"tag": tag, "id": "", "model": client.name, "exchanges": numbers}
        pending["form"] = form
        self.store.put("batch", pending)  # a kill from here on is mended by _find_batch
        file = client.api.files.create(file=("requests.jsonl", b"".join(lines)), purpose="batch")
        batch = client.api.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"pixellm": tag},
        )
        pending["id"] = batch.id
        self.store.put("batch", pending)
        return pending

    def _lines(
        self, client: OpenAIClient, requests: Mapping[str, Request], failures: Failures
    ) -> Iterator[tuple[bytes, Request]]:
        """Each request to a client as a line of the batch file; a batch is for one model."""
        for key, request in requests.items():
            if self._client_of(request) is not client:
                continue
            try:
                body = client.body(request)
            except UnanswerableError as error:
                failures[key] = error
                continue
            line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions"}
            yield json.dumps({**line, "body": body}).encode() + b"\n", request

    def _collect(
        self, pending: dict[str, Any], requests: Mapping[str, Request], failures: Failures
    ) -> int:
        """Wait for a batch and record its replies; returns how many there were."""
        client = next(c for c in self.clients.values() if c.name == pending["model"])
        batch_id = pending["id"] or _find_batch(client, pending["tag"])
        num_answered, pause = 0, threading.Event()
        if batch_id:
            while (batch := client.api.batches.retrieve(batch_id)).status not in _OVER:
                pause.wait(self.poll)
            for file in filter(None, (batch.output_file_id, batch.error_file_id)):
                for line in client.api.files.content(file).text.splitlines():
                    num_answered += self._record(
                        client, json.loads(line), pending, requests, failures
                    )
        for number in pending["exchanges"].values():  # those answered stay as they are
            self.store.fail(number, "The batch brought no reply.")
        self.store.put("batch", None)
        return num_answered

    def _record(
        self,
        client: OpenAIClient,
        line: Mapping[str, Any],
        pending: Mapping[str, Any],
        requests: Mapping[str, Request],
        failures: Failures,
    ) -> bool:
        """Record one line of a batch's output; whether it holds a reply.

        A request refused for a part that can be left out stays open: the next batch is without.
        """
        number = pending["exchanges"].get(str(line.get("custom_id")))
        response = line.get("response") or {}
        request = requests.get(self.store.key_of(number)) if number is not None else None
        if number is None or request is None:
            return False
        status = int(response.get("status_code") or 0)
        says = client.redact(f"HTTP {status}: {line.get('error') or response.get('body')}"[:500])
        try:
            if status != 200:
                raise NoReplyError(says)
            reply = client.read(response.get("body") or {}, request)
        except NoReplyError:
            self.store.fail(number, says)
            if client.adapt(status, says, pending["form"]):
                return False
            if 400 <= status < 500 and status not in (408, 429):
                failures[request.key] = RefusedError(says)
            return False
        self.store.answer(number, reply, self._cost(client, reply))
        return True


def _form_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a request's body without their content: what a server may refuse."""
    roles = [{"role": message["role"]} for message in body["messages"]]
    return {**dict.fromkeys(body, ""), "messages": roles}


def _find_batch(client: OpenAIClient, tag: str) -> str:
    """The number of a batch that was sent right before the run was killed, or ""."""
    for batch in client.api.batches.list(limit=100):
        if (batch.metadata or {}).get("pixellm") == tag:
            return batch.id
    return ""
