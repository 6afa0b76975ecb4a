"""Requests that no client would send: none hangs the server, none is told of its inside."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import requests
from scripted_engine import ScriptedEngine

from malformed_requests import MODEL, malformed_requests, send

from .conftest import asked

INSIDE = re.compile(
    rb'Traceback|File "|\.py\b|site-packages|object at 0x|/(home|work|usr|tmp|root)/'
)


def test_malformed_requests_are_refused_and_the_server_goes_on(serve: Callable[..., Any]) -> None:
    running = serve(ScriptedEngine(), MODEL, max_body=200_000, upload_timeout=2, timeout=10)
    statuses = set[int]()
    for request in malformed_requests(random.Random(0), 300):
        status, body = send(running.port, request)
        assert status == 0 or 200 <= status < 500, (status, request.name, request.data[:300])
        assert not INSIDE.search(body), (request.name, body[:500])
        statuses.add(status)
    assert {200, 400, 404, 405, 413} <= statuses
    answer = requests.post(
        f"{running.url}/v1/chat/completions",
        json={"model": MODEL, "messages": asked("still here")},
        timeout=30,
    )
    assert answer.json()["choices"][0]["message"]["content"] == "still here"
    assert running.service.worker.num_taken == 0 and running.app._held == 0
