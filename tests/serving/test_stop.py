"""The command itself, in a process of its own: SIGTERM, a taken port, bad options."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from typer.testing import CliRunner

from pixellm.cli.main import app
from pixellm.image_files import example_image
from pixellm.serving.server import bind, run
from pixellm.serving.settings import Settings

from .conftest import wait_until

SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from scripted_engine import ScriptedEngine
from pixellm.serving.app import create_app
from pixellm.serving.server import bind, run
from pixellm.serving.settings import Settings
settings = Settings(timeout=20)
bound = bind("127.0.0.1", 0)
print("at", bound.getsockname()[1], flush=True)
run(create_app(ScriptedEngine(0.05, max_batch=2), "scripted", settings), bound, settings)
print("ended", flush=True)
"""


@pytest.fixture
def process() -> Iterator[Any]:
    """A server of scripted answers in a process of its own, and its port."""
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as started:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line.startswith("at "), line + started.stdout.read()
        started.port = int(line.split()[1])  # type: ignore[attr-defined]
        yield started
        if started.poll() is None:
            started.kill()


def is_ready(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
    except requests.ConnectionError:
        return False


def ask(port: int, question: str) -> requests.Response:
    from .conftest import asked

    body = {"model": "scripted", "messages": asked(question)}
    return requests.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60)


def test_sigterm_finishes_what_was_taken(process: Any) -> None:
    wait_until(lambda: is_ready(process.port))
    questions = [f"{n} " + "word " * 15 + str(n) for n in range(6)]

    def running() -> int:
        text = requests.get(f"http://127.0.0.1:{process.port}/metrics", timeout=10).text
        found = re.findall(r"^pixellm_(?:waiting|running) (\d+)", text, re.MULTILINE)
        return sum(map(int, found))

    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(ask, process.port, question) for question in questions]
        wait_until(lambda: running() == 6)
        process.send_signal(signal.SIGTERM)
        for answer, question in zip(answers, questions, strict=True):
            told = answer.result().json()["choices"][0]["message"]["content"]
            assert told == " ".join(question.split())
    assert process.wait(30) in (0, -signal.SIGTERM)
    assert process.stdout.read().split() in ([], ["ended"])
    with pytest.raises(requests.ConnectionError):
        ask(process.port, "too late")


def test_what_cannot_be_served_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("\n")
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        for words, said in (
            (("--port", str(taken.getsockname()[1])), "Can't serve at 127.0.0.1"),
            (("--host", "203.0.113.7"), "Can't serve at 203.0.113.7"),
            (("--timeout", "0"), "must be above 0"),
            (("--api-keys", str(empty)), "holds no key"),
            (("--api-keys", str(tmp_path / "none")), "No such file"),
        ):
            ended = CliRunner().invoke(app, ["serve", *words])
            assert ended.exit_code == 2 and said in ended.stderr, ended.output
            assert len(ended.stderr.splitlines()) == 1


def test_the_command_serves_the_embedded_model() -> None:
    command = [sys.executable, "-m", "pixellm", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        assert started.stderr is not None
        try:
            line = next(line for line in started.stderr if "Serving" in line)
            url = line.split()[3]
            with example_image("coffee").open("rb") as photo:
                answer = requests.post(
                    f"{url}/v1/segment",
                    files={"image": photo},
                    data={"question": "Where are the cup and the table?"},
                    timeout=120,
                ).json()
            labels = [segment["label"] for segment in answer["segments"]]
            assert any("cup" in label for label in labels), answer
        finally:
            started.send_signal(signal.SIGINT)
        assert started.wait(60) in (0, 130, -signal.SIGINT)


def test_two_servers_that_start_together_do_not_share_an_address() -> None:
    settings = Settings()
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    # Nobody listens yet: the address can still be taken.
    with first, bind("127.0.0.1", port) as second:
        first.listen()
        with pytest.raises(OSError, match=f"Can't serve at 127.0.0.1:{port}: Address already"):
            run(None, second, settings)  # type: ignore[arg-type]
