"""kill -9, full disks and second processes: a run goes on where it stood and repeats nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from curation_runs import QUICK, client_of, files_of, make_photos, run_all, source_of
from killable_run import WORKERS

from chat_server import Answer, ChatServer, good
from pixellm.curation.ledger import Ledger
from pixellm.curation.pipeline import select, work_all
from pixellm.llm.run import RequestRunner, RunLimits

PHOTOS = 14
KILLS_WHILE_SELECTING = 2
KILLS_WHILE_ASKING = 5
KILLS_WHILE_WRITING = 4


class Runner:
    """Starts runs in real processes and kills them."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        source = here.parents[1] / "src"
        self._process = subprocess.Popen(
            [sys.executable, str(here / "killable_run.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{here}"},
        )

    def start(self, folder: Path, url: str) -> int:
        return self._say(f"{folder} {url}")

    def outcome(self) -> int:
        """Exit status of the run, negative the number of the signal that ended it."""
        return self._say("how did it end?")

    def _say(self, line: str) -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


def test_killed_runs_end_with_the_same_files_and_no_repeated_request(
    tmp_path: Path, runner: Runner
) -> None:
    rng = random.Random(7)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for folder in (calm, killed):
        make_photos(folder, PHOTOS)
    with ChatServer() as server:
        run_all(source_of(calm, questions=3), calm / "out", server.url)
        assert len(server.bodies) == 3 * PHOTOS
    gate = Gate()
    with ChatServer(gate) as server:
        for _ in range(KILLS_WHILE_SELECTING):
            kill(runner, killed, server, rng.uniform(0, 0.06))
        for kills in range(KILLS_WHILE_ASKING):
            gate.open_until(len(server.bodies) + rng.randint(1, 6))
            ended = kill(
                runner,
                killed,
                server,
                rng.uniform(0, 0.015),
                lambda: len(server.bodies) > gate.limit,
            )
            assert ended == -signal.SIGKILL
            assert server.repeats() <= (KILLS_WHILE_SELECTING + kills) * WORKERS
        gate.open_until(10**6)
        ends = []
        for _ in range(KILLS_WHILE_WRITING):
            before_writing = traces_of_writing(killed / "out")
            ends.append(
                kill(
                    runner,
                    killed,
                    server,
                    rng.uniform(0, 0.25),
                    lambda: traces_of_writing(killed / "out") != before_writing,  # noqa: B023
                )
            )
        assert -signal.SIGKILL in ends
        runner.start(killed, server.url)
        assert runner.outcome() == 0
    assert server.repeats() <= (KILLS_WHILE_SELECTING + KILLS_WHILE_ASKING) * WORKERS
    assert files_of(killed / "out") == files_of(calm / "out")
    assert len(files_of(calm / "out")) > 6
    assert not list((killed / "out").glob(".writing-*"))


class Gate:
    """A server that answers the first ``limit`` requests and keeps the others waiting."""

    def __init__(self) -> None:
        self.limit, self._changed = 0, threading.Condition()

    def open_until(self, limit: int) -> None:
        with self._changed:
            self.limit = limit
            self._changed.notify_all()

    def __call__(self, number: int, body: dict[str, Any]) -> Answer:
        with self._changed:
            self._changed.wait_for(lambda: number < self.limit, timeout=120)
        return good(number, body)


def traces_of_writing(out: Path) -> set[tuple[str, int]]:
    """What changes when a set begins to be written, and when it is done."""
    traces = set()
    for path in (*out.glob(".writing-*"), *out.glob("README.md")):
        with suppress(FileNotFoundError):
            traces.add((path.name, path.stat().st_ino))
    return traces


def kill(
    runner: Runner,
    folder: Path,
    server: ChatServer,
    delay: float,
    ready: Callable[[], object] = lambda: True,
) -> int:
    """Start a run, wait for a state of things and a moment more, and kill it; how it ended."""
    child = runner.start(folder, server.url)
    deadline = time.monotonic() + 60
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return runner.outcome()


def test_a_full_disk_ends_in_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    make_photos(tmp_path, 10)
    source = source_of(tmp_path)
    with ChatServer() as server:
        ledger = Ledger(tmp_path / "out", create=True)
        select(ledger, source, None)
        (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
        ledger.close()
        with pytest.raises(OSError, match=r"disk is full.*nothing recorded is lost"):
            run_with_full_disk(source, tmp_path / "out", server.url, pages + 3)
        before = len(server.bodies)
        summary, _ = run_all(source, tmp_path / "out", server.url)
    assert 0 < before < 10 + WORKERS
    assert summary["tasks"] == {"accepted": 10}
    assert server.repeats() <= RunLimits().workers


def run_with_full_disk(source: Any, out: Path, url: str, pages: int) -> None:
    ledger = Ledger(out)
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    try:
        writing = select(ledger, source, None)
        runner = RequestRunner(ledger, {"": client_of(source, url)}, {}, QUICK)
        work_all(ledger, writing, runner, lambda *_: None)
    finally:
        ledger.close()


def test_only_one_process_writes_and_readers_are_not_held_up(tmp_path: Path) -> None:
    make_photos(tmp_path, 3)
    ledger = Ledger(tmp_path / "out", create=True)
    select(ledger, source_of(tmp_path), None)
    with pytest.raises(OSError, match="Another process is writing"):
        Ledger(tmp_path / "out")
    reader = Ledger(tmp_path / "out", writing=False)
    assert sum(reader.counts()["photos"].values()) == 3
    reader.close()
    ledger.close()
    Ledger(tmp_path / "out").close()


def test_going_on_with_other_settings_is_refused(tmp_path: Path) -> None:
    make_photos(tmp_path, 3)
    ledger = Ledger(tmp_path / "out", create=True)
    select(ledger, source_of(tmp_path), None)
    for change in ({"questions": 2}, {"model": "other"}):
        with pytest.raises(ValueError, match=f"was begun with {next(iter(change))}"):
            select(ledger, source_of(tmp_path, **change), None)
    ledger.close()


def test_more_photos_can_be_asked_for_later(tmp_path: Path) -> None:
    make_photos(tmp_path, 8)
    with ChatServer() as server:
        summary, _ = run_all(source_of(tmp_path), tmp_path / "out", server.url, max_images=3)
        assert summary["tasks"] == {"accepted": 3}
        summary, _ = run_all(source_of(tmp_path), tmp_path / "out", server.url, max_images=8)
    assert summary["tasks"] == {"accepted": 8}
    assert len(server.bodies) == 8


def test_an_interrupted_run_finishes_what_is_in_flight(tmp_path: Path) -> None:
    make_photos(tmp_path, 12)
    source = source_of(tmp_path)

    def interrupt(number: int, body: dict[str, Any]) -> Answer:
        if number == 4:
            runner.stop.set()
        return good(number, body)

    with ChatServer(interrupt) as server:
        ledger = Ledger(tmp_path / "out", create=True)
        writing = select(ledger, source, None)
        runner = RequestRunner(
            ledger, {"": client_of(source, server.url)}, {}, RunLimits(workers=2)
        )
        work_all(ledger, writing, runner, lambda *_: None)
        exchanges = ledger.counts()["requests"]
        ledger.close()
    assert 5 <= len(server.bodies) <= 6
    assert exchanges == {"propose answered": len(server.bodies)}
