"""Requests in flight, and money: how fast a run goes and where it stops."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from curation_runs import files_of, make_photos, run_all, source_of

from chat_server import Answer, ChatServer, good
from pixellm.llm.prices import Price
from pixellm.llm.run import RunLimits


class Rounds:
    """A slow server without a clock: answers leave together, once nobody can send any more.

    ``num`` counts how often the server's latency would be paid, which is what a run costs where
    answers take long. A worker with a request in flight can't send another one.
    """

    def __init__(self, workers: int, requests: int) -> None:
        self.num, self._left, self._waiting = 0, requests, 0
        self._workers, self._turn = workers, threading.Condition()

    def __call__(self, number: int, body: dict[str, Any]) -> Answer:
        with self._turn:
            self._waiting += 1
            mine = self.num
            if self._waiting == min(self._workers, self._left):
                self._left -= self._waiting
                self._waiting = 0
                self.num += 1
                self._turn.notify_all()
            assert self._turn.wait_for(lambda: self.num > mine, timeout=120)
        return good(number, body)


def test_sixteen_workers_are_at_least_ten_times_as_fast_as_one(tmp_path: Path) -> None:
    make_photos(tmp_path, 48)
    rounds = {}
    for workers in (1, 16):
        rounds[workers] = Rounds(workers, 48)
        with ChatServer(rounds[workers]) as server:
            run_all(source_of(tmp_path), tmp_path / f"out{workers}", server.url, RunLimits(workers))
        assert server.most_in_flight == workers
    assert rounds[1].num >= 10 * rounds[16].num
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out16")


@pytest.mark.parametrize("workers", [1, 4])
def test_the_cost_cap_is_not_passed(tmp_path: Path, workers: int) -> None:
    make_photos(tmp_path, 30)
    each = Price(1.0, 10.0)  # 1000 tokens in and 100 out: 0.002 USD
    limits = RunLimits(workers=workers, max_cost=0.021, wait=0.01)
    source = source_of(tmp_path)
    with ChatServer() as server:
        summary, stopped = run_all(source, tmp_path / "out", server.url, limits, {"test": each})
        spent = len(server.bodies) * 0.002
        assert "cost cap of 0.021 USD" in stopped
        assert 0.01 < spent <= 0.021
        _, again = run_all(source, tmp_path / "out", server.url, limits, {"test": each})
        assert "cost cap" in again
        assert len(server.bodies) * 0.002 == pytest.approx(spent)
        higher = RunLimits(workers=workers, max_cost=1.0, wait=0.01)
        summary, stopped = run_all(source, tmp_path / "out", server.url, higher, {"test": each})
    assert stopped == ""
    assert summary["tasks"] == {"accepted": 30}
    assert server.repeats() == 0
    assert sum(row[-1] for row in summary["models"]) == pytest.approx(30 * 0.002)
