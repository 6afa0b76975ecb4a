"""Requests in flight, and money: how fast a run goes and where it stops."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, good
from curation_runs import files_of, make_photos, run_all, source_of

from pixellm.llm.client import OpenAIClient, public_url
from pixellm.llm.prices import Price, price_of
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


def test_prices_come_from_the_table_and_local_servers_are_free() -> None:
    assert price_of("gpt-4o-mini", None).input > 0
    assert price_of("anything", "http://127.0.0.1:8000/v1") == Price(0, 0)
    with pytest.raises(ValueError, match="--price"):
        price_of("unheard-of", "https://models.example.org/v1")


def test_a_hosted_server_needs_a_key_and_a_local_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        OpenAIClient("gpt-4o-mini")
    OpenAIClient("local", "http://localhost:8000/v1")


def test_addresses_in_reports_hold_no_password() -> None:
    secret = "https://user:secret@host.example:8443/v1?token=secret"
    assert public_url(secret) == "https://host.example:8443/v1"
