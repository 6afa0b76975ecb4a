"""What a server refuses, and how: full queue, time, size, keys, pages of other sites."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from scripted_engine import ScriptedEngine

from .conftest import asked, wait_until


def post(url: str, question: str = "a", **options: Any) -> requests.Response:
    body = {"model": "scripted", "messages": asked(question)}
    return requests.post(f"{url}/v1/chat/completions", json=body, timeout=30, **options)


def raw(port: int, data: bytes) -> bytes:
    """What a server sends back on a connection until it closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def test_a_full_queue_is_told_when_to_come_again(serve: Callable[..., Any]) -> None:
    running = serve(ScriptedEngine(0.01, max_batch=1), queue=1, timeout=2)
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(post, running.url, "long") for _ in range(2)]
        wait_until(lambda: running.service.worker.num_taken == 2)
        refused = post(running.url)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert [one.result().status_code for one in slow] == [504, 504]
    assert slow[0].result().json()["error"]["code"] == "timeout"
    assert post(running.url).status_code == 200


def test_time_ends_a_stream_with_an_error(serve: Callable[..., Any]) -> None:
    engine = ScriptedEngine(0.01)
    url = serve(engine, timeout=1).url
    body = {"model": "scripted", "messages": asked("long"), "stream": True}
    text = requests.post(f"{url}/v1/chat/completions", json=body, timeout=30).text
    *_, error, done = [line[6:] for line in text.splitlines() if line]
    assert json.loads(error)["error"]["code"] == "timeout" and done == "[DONE]"
    wait_until(lambda: engine.cancelled == 1)


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_are_bounded(serve: Callable[..., Any], chunked: bool) -> None:
    running = serve(ScriptedEngine(), max_body=5000)
    data = b"x" * 9000
    body: Any = (data[n : n + 1000] for n in range(0, 9000, 1000)) if chunked else data
    answer = requests.post(f"{running.url}/v1/chat/completions", data=body, timeout=30)
    assert answer.status_code == 413 and "5,000 bytes" in answer.json()["error"]["message"]
    assert post(running.url).status_code == 200
    assert running.app._held == 0


def test_all_bodies_together_are_bounded(serve: Callable[..., Any]) -> None:
    running = serve(ScriptedEngine(0.01), max_bytes=3000, timeout=2)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(post, running.url, "long " + "x" * 2000)
        wait_until(lambda: running.service.worker.num_running == 1)
        refused = post(running.url, "a" * 1200)
        assert refused.status_code == 503 and "Retry-After" in refused.headers
        assert held.result().status_code == 504
    wait_until(lambda: running.app._held == 0)
    assert post(running.url, "a" * 1200).status_code == 200


def test_slow_uploads_end(serve: Callable[..., Any]) -> None:
    port = serve(ScriptedEngine(), upload_timeout=0.5).port
    head = b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nonly this"
    assert b" 408 " in raw(port, head).splitlines()[0]
    assert raw(port, b"POST /v1/segment HTTP/1.1\r\nHost:") == b""
    assert raw(port, b"") == b""
    # A second request on a connection has no more patience with it than the first.
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b" 200 " in connection.recv(65536)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        while connection.recv(65536):
            pass


def test_requests_without_a_key_are_refused(serve: Callable[..., Any]) -> None:
    url = serve(ScriptedEngine(), api_keys=("first-key", "second-key")).url
    for headers in ({}, {"Authorization": "Bearer first"}, {"Authorization": "first-key"}):
        answer = post(url, headers=headers)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
    for key in ("first-key", "second-key"):
        assert post(url, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    for path in ("/v1/models", "/metrics"):
        assert requests.get(url + path, timeout=30).status_code == 401
    for path in ("/healthz", "/readyz"):
        assert requests.get(url + path, timeout=30).status_code == 200


def test_pages_of_other_sites_may_not_ask(serve: Callable[..., Any]) -> None:
    running = serve(ScriptedEngine())
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert post(running.url, headers={"Origin": origin}).status_code == 403
    assert post(running.url, headers={"Origin": running.url}).status_code == 200
    url = f"{running.url}/v1/chat/completions"
    asking = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = requests.options(url, headers=asking, timeout=30)
    assert not any(name.lower().startswith("access-control") for name in answer.headers)


def test_every_answer_has_the_headers_of_a_careful_server(serve: Callable[..., Any]) -> None:
    url = serve(ScriptedEngine()).url
    for path in ("/healthz", "/nowhere", "/v1/models"):
        headers = requests.get(url + path, timeout=30).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Server" not in headers
    nowhere = requests.get(f"{url}/nowhere", timeout=30)
    assert nowhere.status_code == 404 and nowhere.json()["error"]["code"] == "not_found"
    wrong = requests.get(f"{url}/v1/segment", timeout=30)
    assert wrong.status_code == 405 and wrong.json()["error"]["type"] == "invalid_request_error"


def test_figures_tell_what_happened(serve: Callable[..., Any]) -> None:
    url = serve(ScriptedEngine()).url
    post(url, "three words here")
    requests.get(f"{url}/a/secret/path", timeout=30)
    text = requests.get(f"{url}/metrics", timeout=30).text
    route = 'route="/v1/chat/completions",status="200"'
    assert f"pixellm_requests_total{{{route}}} 1.0" in text
    assert 'pixellm_requests_total{route="other",status="404"} 1.0' in text
    assert "pixellm_answer_tokens_total 3.0" in text and "pixellm_masks_total 1.0" in text
    assert "pixellm_waiting 0.0" in text and "secret" not in text


def test_an_engine_that_always_fails_is_unhealthy(serve: Callable[..., Any]) -> None:
    url = serve(ScriptedEngine(fail_on="poison")).url
    for _ in range(3):
        assert post(url, "poison").status_code == 500
    for path in ("/healthz", "/readyz"):
        assert requests.get(url + path, timeout=30).status_code == 503
    assert post(url, "well").status_code == 200
    assert requests.get(f"{url}/healthz", timeout=30).status_code == 200


def test_limits_that_let_nothing_through_are_refused() -> None:
    from pixellm.serving.settings import Settings

    for wrong in ({"queue": -1}, {"timeout": 0}, {"max_body": 0}, {"api_keys": ("a b",)}):
        with pytest.raises(ValueError, match=r"must have|must be|ASCII"):
            Settings(**wrong)
    assert "secret" not in repr(Settings(api_keys=("secret",)))
