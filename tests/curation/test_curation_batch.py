"""Runs through the Batch API: another way to the same ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from curation_runs import client_of, files_of, make_photos, run_all, source_of

from chat_server import Answer, ChatServer, fingerprint, good
from pixellm.curation.ledger import Ledger
from pixellm.curation.pipeline import select, work_in_batches
from pixellm.curation.write import WriteSettings, write_set
from pixellm.llm.batch import BatchRunner
from pixellm.llm.prices import Price

PHOTOS = 8
PRICE = Price(1.0, 10.0)


def half_broken(number: int, body: dict[str, Any]) -> Answer:
    """Every second first draft is broken, repairs are good."""
    if len(body["messages"]) == 2 and int(fingerprint(body), 16) % 2:
        return Answer("no JSON at all")
    return good(number, body)


def run_in_batches(folder: Path, url: str, **options: Any) -> tuple[dict[str, Any], str]:
    source = source_of(folder)
    ledger = Ledger(folder / "out", create=True)
    try:
        writing = select(ledger, source, None)
        clients = {"": client_of(source, url)}
        runner = BatchRunner(ledger, clients, {"test": PRICE}, poll=0.01, **options)
        stopped = work_in_batches(ledger, writing, runner, lambda *_: None)
        return write_set(ledger, folder / "out", WriteSettings(train=0.6, val=0.2)), stopped
    finally:
        ledger.close()


def test_batches_give_the_same_set_at_half_the_price(tmp_path: Path) -> None:
    for name in ("batched", "direct"):
        make_photos(tmp_path / name, PHOTOS)
    with ChatServer(half_broken) as server:
        summary, stopped = run_in_batches(tmp_path / "batched", server.url)
        assert len(server.batches) == 2  # first drafts, then repairs
    with ChatServer(half_broken) as server:
        direct, _ = run_all(
            source_of(tmp_path / "direct"),
            tmp_path / "direct/out",
            server.url,
            prices={"test": PRICE},
        )
    assert stopped == ""
    assert summary["tasks"] == {"accepted": PHOTOS}
    half, full = (sum(row[-1] for row in s["models"]) for s in (summary, direct))
    assert half == pytest.approx(full / 2)
    sets = [files_of(tmp_path / name / "out") for name in ("batched", "direct")]
    assert [s["muse_train.json"] for s in sets] == [sets[0]["muse_train.json"]] * 2


@pytest.mark.parametrize("number_is_known", [True, False])
def test_a_killed_run_finds_its_batch_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number_is_known: bool
) -> None:
    make_photos(tmp_path, PHOTOS)

    def killed(*args: Any) -> int:
        raise KeyboardInterrupt

    with ChatServer() as server:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(BatchRunner, "_collect", killed)
            run_in_batches(tmp_path, server.url)
        if not number_is_known:  # killed between sending the batch and writing its number down
            ledger = Ledger(tmp_path / "out")
            ledger.put("batch", {**ledger.get("batch"), "id": ""})
            ledger.close()
        summary, stopped = run_in_batches(tmp_path, server.url)
    assert (stopped, summary["tasks"]) == ("", {"accepted": PHOTOS})
    assert len(server.batches) == 1


def test_requests_that_a_batch_refuses_are_asked_again_and_the_cap_holds(tmp_path: Path) -> None:
    make_photos(tmp_path, PHOTOS)

    def refuse_some(number: int, body: dict[str, Any]) -> Answer:
        return Answer("too large", status=400) if number == 2 else good(number, body)

    with ChatServer(refuse_some) as server:
        summary, stopped = run_in_batches(tmp_path, server.url, max_cost=0.0001)
        assert "cost cap" in stopped and not server.batches
        summary, stopped = run_in_batches(tmp_path, server.url, max_cost=1.0)
        assert (stopped, summary["tasks"]) == ("", {"accepted": PHOTOS - 1, "failed": 1})
        server.behave = good
        summary, _ = run_in_batches(tmp_path, server.url, max_cost=1.0)
    assert summary["tasks"] == {"accepted": PHOTOS}


def test_a_part_that_a_server_refuses_is_left_out_of_the_next_batch(tmp_path: Path) -> None:
    make_photos(tmp_path, PHOTOS)
    refusal = b'{"detail": [{"type": "extra_forbidden", "loc": ["body", "response_format"]}]}'

    def no_schema(number: int, body: dict[str, Any]) -> Answer:
        return Answer(status=422, raw=refusal) if "response_format" in body else good(number, body)

    with ChatServer(no_schema) as server:
        summary, stopped = run_in_batches(tmp_path, server.url)
    assert (stopped, summary["tasks"]) == ("", {"accepted": PHOTOS})
    assert len(server.batches) == 2
