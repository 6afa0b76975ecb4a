"""The command itself, in a process of its own: SIGTERM, kill -9, a taken port, bad options."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from forked_servers import fork, serve_command, serve_scripted
from typer.testing import CliRunner

from pixellm.cli.main import app
from pixellm.image_files import example_image
from pixellm.serving.server import bind, run
from pixellm.serving.settings import Settings

from .conftest import asked, wait_until


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[tuple[Any, Path, int]]:
    """A server of scripted answers in a process of its own, what it says, and its port."""
    started = fork(serve_scripted, said := tmp_path / "said.txt")
    try:
        yield started, said, port_told(said)
    finally:
        started.kill()


def port_told(said: Path) -> int:
    """Wait until a server has said where it serves."""
    wait_until(lambda: said.is_file() and "Serving" in said.read_text().rpartition("\n")[0], 300)
    (line,) = [line for line in said.read_text().splitlines() if "Serving" in line]
    return int(re.findall(r"\d+", line)[-1])


def is_ready(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
    except requests.ConnectionError:
        return False


def num_taken(port: int) -> int:
    """Requests that wait or are being answered."""
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    return sum(map(int, re.findall(r"^pixellm_(?:waiting|running) (\d+)", text, re.MULTILINE)))


def ask(port: int, question: str, stream: bool = False) -> str:
    """The answer's text, whole or gathered from a stream."""
    body = {"model": "scripted", "messages": asked(question), "stream": stream}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    answer = requests.post(url, json=body, timeout=60)
    if not stream:
        return answer.json()["choices"][0]["message"]["content"]
    *events, end = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert end == "[DONE]"
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    return answer


def test_sigterm_finishes_what_was_taken(scripted: tuple[Any, Path, int]) -> None:
    process, said, port = scripted
    wait_until(lambda: is_ready(port), 60)
    questions = [f"{n} " + "word " * 15 + str(n) for n in range(12)]
    body = json.dumps({"model": "scripted", "messages": asked("half of it is sent")}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with (
        ThreadPoolExecutor(12) as pool,
        socket.create_connection(("127.0.0.1", port), timeout=60) as slow,
        socket.create_connection(("127.0.0.1", port), timeout=60) as silent,
    ):
        answers = [pool.submit(ask, port, one, n % 3 == 0) for n, one in enumerate(questions)]
        slow.sendall(head)
        assert slow.recv(65536).startswith(b"HTTP/1.1 100")  # its body is being read now
        slow.sendall(body[:100])
        wait_until(lambda: num_taken(port) == 12, 60)
        process.terminate()
        assert silent.recv(1) == b""  # it asked nothing, and the server is closing
        slow.sendall(body[100:])
        told = [answer.result() for answer in answers]
        last = read_all(slow)
    assert told == [" ".join(question.split()) for question in questions]
    assert last.startswith(b"HTTP/1.1 200") and b"half of it is sent" in last
    process.join(60)
    assert process.exitcode == 0
    assert said.read_text().count("\n") == 1
    with pytest.raises(requests.ConnectionError):
        ask(port, "too late")


def test_what_cannot_be_served_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("\n")
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        for words, said in (
            (("--port", str(taken.getsockname()[1])), "Can't serve at 127.0.0.1"),
            (("--host", "203.0.113.7"), "Can't serve at 203.0.113.7"),
            (("--host", "a" * 70), "Can't serve at aaa"),
            (("--timeout", "0"), "must be above 0"),
            (("--api-keys", str(empty)), "holds no key"),
            (("--api-keys", str(tmp_path / "none")), "No such file"),
        ):
            ended = CliRunner().invoke(app, ["serve", *words])
            assert ended.exit_code == 2 and said in ended.stderr, ended.output
            assert len(ended.stderr.splitlines()) == 1


WORDS = ["serve", "--batch-size", "2", "--port"]
"""`pixellm serve` with the embedded model, but for the port."""


def segment(port: int) -> Any:
    """The embedded model's answer to the example's question."""
    with example_image("coffee").open("rb") as photo:
        return requests.post(
            f"http://127.0.0.1:{port}/v1/segment",
            files={"image": photo},
            data={"question": "Where are the table and the cup?"},
            timeout=120,
        ).json()


def test_a_killed_server_is_started_again_at_its_address_and_answers_at_once(
    tmp_path: Path,
) -> None:
    command, said = [sys.executable, "-m", "pixellm", *WORDS], tmp_path / "first.txt"
    with said.open("w") as file, subprocess.Popen([*command, "0"], stderr=file) as first:
        try:
            port = port_told(said)
            wanted = segment(port)
            assert any("cup" in one["label"] for one in wanted["segments"]), wanted
            with ThreadPoolExecutor(9) as pool:
                cut = [pool.submit(segment, port) for _ in range(9)]
                wait_until(lambda: num_taken(port) >= 4, 60)
                first.kill()
                ends = [one.exception() or one.result() for one in cut]
        finally:
            first.kill()
    assert any(isinstance(end, requests.ConnectionError) for end in ends)
    assert all(end == wanted for end in ends if not isinstance(end, requests.ConnectionError))
    second = fork(serve_command, again := tmp_path / "second.txt", [*WORDS, str(port)])
    try:
        assert port_told(again) == port and segment(port) == wanted
        second.terminate()
        second.join(60)
        assert second.exitcode == 0
        assert again.read_text().rstrip("\n").rpartition("\n")[2].count("Serving") == 1
    finally:
        second.kill()


def test_two_servers_that_start_together_do_not_share_an_address() -> None:
    settings = Settings()
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    # Nobody listens yet: the address can still be taken.
    with first, bind("127.0.0.1", port) as second:
        first.listen()
        with pytest.raises(OSError, match=f"Can't serve at 127.0.0.1:{port}: Address already"):
            run(None, second, settings)  # type: ignore[arg-type]
