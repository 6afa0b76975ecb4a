"""Runs through the Batch API, and on Ray: other ways to the same ledger."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, fingerprint, good
from curation_runs import client_of, files_of, make_photos, run_all, source_of

from pixellm.curation.batch import BatchRunner, run_batches
from pixellm.curation.client import OpenAIClient, Price
from pixellm.curation.ledger import Ledger
from pixellm.curation.pipeline import RunLimits, Source, select
from pixellm.curation.write import WriteSettings, write_set

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
        stopped = run_batches(runner, writing, lambda *_: None)
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
            patch.setattr("pixellm.curation.batch._collect", killed)
            run_in_batches(tmp_path, server.url)
        if not number_is_known:  # killed between sending the batch and writing its number down
            ledger = Ledger(tmp_path / "out")
            ledger.put("batch", {**ledger.get("batch"), "id": ""})
            ledger.close()
        summary, stopped = run_in_batches(tmp_path, server.url)
    assert (stopped, summary["tasks"]) == ("", {"accepted": PHOTOS})
    assert len(server.batches) == 1


def test_requests_that_a_batch_refuses_are_rejected_and_the_cap_holds(tmp_path: Path) -> None:
    make_photos(tmp_path, PHOTOS)

    def refuse_some(number: int, body: dict[str, Any]) -> Answer:
        return Answer("too large", status=400) if number == 2 else good(number, body)

    with ChatServer(refuse_some) as server:
        summary, stopped = run_in_batches(tmp_path, server.url, max_cost=0.0001)
        assert "cost cap" in stopped and not server.batches
        summary, stopped = run_in_batches(tmp_path, server.url, max_cost=1.0)
    assert stopped == ""
    assert summary["tasks"] == {"accepted": PHOTOS - 1, "rejected": 1}


def clients_for(source: Source, url: str) -> dict[str, OpenAIClient]:
    return {"": client_of(source, url)}


@pytest.mark.timeout(900)  # Ray's processes start slowly on a busy machine
def test_ray_keeps_the_same_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on Ray stops at the cap, and one without Ray goes on from its ledger."""
    import ray  # takes seconds

    from pixellm.curation.cluster import work_on_ray

    for name in ("cluster", "direct"):
        make_photos(tmp_path / name, PHOTOS)
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parents[1] / 'src'}")
    source, out = source_of(tmp_path / "cluster"), tmp_path / "cluster/out"
    prices = {"test": PRICE}
    with ChatServer() as server:
        ledger = Ledger(out, create=True)
        writing = select(ledger, source, None)
        ledger.close()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            make, seen = partial(clients_for, source, server.url), list[int]()
            limits = RunLimits(workers=2, max_cost=0.009, wait=0.01)  # 0.002 USD each
            progress = lambda done, *_: seen.append(done)  # noqa: E731
            stopped = work_on_ray(out, writing, make, prices, limits, progress)
        finally:
            ray.shutdown()
        assert "cost cap" in stopped
        assert max(seen) == len(server.bodies)
        assert 5 <= len(server.bodies) <= 6
        summary, stopped = run_all(source, out, server.url, prices=prices)
        assert (stopped, summary["tasks"]) == ("", {"accepted": PHOTOS})
        assert (len(server.bodies), server.repeats()) == (PHOTOS, 0)
        run_all(source_of(tmp_path / "direct"), tmp_path / "direct/out", server.url, prices=prices)
    assert files_of(out) == files_of(tmp_path / "direct/out")
