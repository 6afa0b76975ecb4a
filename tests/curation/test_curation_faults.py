"""Whole runs against a server that misbehaves in one way at a time."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from curation_runs import KEY, QUICK, client_of, files_of, make_photos, run_all, source_of

from chat_server import Answer, ChatServer, good, listed, proposal, user_text
from pixellm.curation.ledger import Ledger
from pixellm.curation.pipeline import select
from pixellm.data.muse import validate
from pixellm.llm.run import RunLimits

PHOTOS = 6
ONE_BY_ONE = RunLimits(workers=1, wait=0.01)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    make_photos(tmp_path, PHOTOS)
    return tmp_path


def rows_of(folder: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "out" / "ledger.sqlite")) as ledger:
        return ledger.execute(sql).fetchall()


def is_repair(body: dict[str, Any]) -> bool:
    return len(body["messages"]) > 2


def reply_with(**changes: Any) -> Any:
    return lambda body: Answer(json.dumps({**proposal(body), **changes}))


def wrong_id(body: dict[str, Any]) -> Answer:
    return Answer(json.dumps(proposal(body)).replace("{seg:2}", "{seg:77}"))


def missing_seg(body: dict[str, Any]) -> Answer:
    return Answer(json.dumps(proposal(body)).replace(" {seg:2}", ""))


def extra_object(body: dict[str, Any]) -> Answer:
    here = {o["class"] for o in listed(body)}
    absent = next(n for n in ("cup", "bowl", "spoon", "dog", "chair", "laptop") if n not in here)
    good_one = proposal(body)
    return Answer(
        json.dumps({**good_one, "answer": f"{good_one['answer']} Mind the {absent} too."})
    )


def broken_json(body: dict[str, Any]) -> Answer:
    return Answer(json.dumps(proposal(body))[:-9])


def truncated(body: dict[str, Any]) -> Answer:
    return Answer(json.dumps(proposal(body))[:60], finish="length")


def refusal(body: dict[str, Any]) -> Answer:
    return Answer(message={"refusal": "I can't help with that.", "content": None})


BAD_DRAFTS = [
    (wrong_id, "unknown_id"),
    (missing_seg, "object_without_mark"),
    (extra_object, "absent_object"),
    (broken_json, "bad_json"),
    (truncated, "truncated"),
    (reply_with(question="What is at [12, 30, 44, 50] that one could use?"), "leak"),
    (reply_with(question="What is it? And where is the rest of it?"), "several_questions"),
    (reply_with(answer="Nichts {seg:1} und nichts {seg:2}."), "phrase_differs"),
    (refusal, "refusal"),
]


@pytest.mark.parametrize("mends", [True, False])
def test_a_bad_draft_is_repaired_once_or_rejected_and_counted(tmp_path: Path, mends: bool) -> None:
    """Each photo's first draft is bad in a way of its own; a refusal is final."""
    num = len(BAD_DRAFTS)
    make_photos(tmp_path, num)
    asked: dict[str, int] = {}

    def behave(number: int, body: dict[str, Any]) -> Answer:
        photo = asked.setdefault(user_text(body), len(asked))
        return good(number, body) if mends and is_repair(body) else BAD_DRAFTS[photo][0](body)

    with ChatServer(behave) as server:
        summary, stopped = run_all(source_of(tmp_path), tmp_path / "out", server.url, ONE_BY_ONE)
    assert stopped == ""
    expected = {"accepted": num - 1, "rejected": 1} if mends else {"rejected": num}
    assert summary["tasks"] == expected
    assert len(server.bodies) == 2 * num - 1
    drafts = rows_of(tmp_path, "SELECT first_faults FROM tasks ORDER BY id")
    for (_, rule), (faults,) in zip(BAD_DRAFTS, drafts, strict=True):
        assert rule in [name for name, _ in json.loads(faults)]
    if mends:
        assert summary["final"] == {"refusal": 1}
        assert list(validate(tmp_path / "out")) == []
    else:
        assert sum(summary["final"].values()) >= num
        assert not list((tmp_path / "out").glob("muse_*.json"))


def test_a_failed_attempt_is_tried_again(photos: Path) -> None:
    faults = [
        Answer("slow down", status=429, headers={"Retry-After": "0.05"}),
        Answer("oops", status=500),
        Answer("overloaded", status=503),
        Answer(reset=True),
        Answer(raw=b"<html>proxy error</html>"),
        Answer(raw=b'{"choices": []}'),
    ]

    def every_other(number: int, body: dict[str, Any]) -> Answer:
        return good(number, body) if number % 2 else faults[number // 2]

    with ChatServer(every_other) as server:
        summary, _ = run_all(source_of(photos), photos / "out", server.url, ONE_BY_ONE)
    assert summary["tasks"] == {"accepted": PHOTOS}
    assert summary["requests"] == {"propose answered": PHOTOS, "propose error": len(faults)}


def test_all_workers_keep_to_retry_after(photos: Path) -> None:
    times: list[float] = []

    def first_429(number: int, body: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        if number == 0:
            return Answer("slow down", status=429, headers={"Retry-After": "0.4"})
        return Answer(json.dumps(proposal(body)), delay=0.15)

    with ChatServer(first_429) as server:
        run_all(source_of(photos), photos / "out", server.url, RunLimits(workers=2, wait=0.01))
    late = [t - times[0] for t in times[2:]]  # the second worker's first request was under way
    assert min(late) >= 0.39


def test_objects_in_another_order_follow_their_marks(photos: Path) -> None:
    def shuffled(number: int, body: dict[str, Any]) -> Answer:
        draft = proposal(body)
        text = json.dumps(dict(reversed({**draft, "objects": draft["objects"][::-1]}.items())))
        return Answer(f"Here you are:\n```json\n{text}\n```\nEnjoy!")

    with ChatServer(shuffled) as server:
        summary, _ = run_all(source_of(photos), photos / "out", server.url)
    assert summary["tasks"] == {"accepted": PHOTOS}
    for file in (photos / "out").glob("muse_*.json"):
        for entry in json.loads(file.read_text()):
            for text, targets in zip(entry["text_answers"], entry["answers"], strict=True):
                places = [text.index(f"{t['rephrased_name']} {{seg}}") for t in targets]
                assert places == sorted(places)


def test_a_server_that_is_gone_stops_the_run_and_nothing_is_lost(photos: Path) -> None:
    source, limits = source_of(photos, questions=3), RunLimits(workers=2, attempts=2, wait=0.001)
    with ChatServer() as server:
        url = server.url
    _, stopped = run_all(source, photos / "out", url, limits)
    assert "no reply" in stopped
    with ChatServer() as server:
        summary, stopped = run_all(source, photos / "out", server.url)
    assert stopped == ""
    assert summary["tasks"] == {"accepted": 3 * PHOTOS}
    assert server.repeats() == 0


def test_the_photo_and_its_boxes_are_sent(photos: Path) -> None:
    with ChatServer() as server:
        run_all(source_of(photos, text_only=False), photos / "out", server.url)
    image, text = server.bodies[0]["messages"][1]["content"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert "96 pixels wide and 64 pixels high" in text["text"]
    assert all(len(o["box"]) == 4 for o in listed(server.bodies[0]))


def test_a_second_model_can_reject_descriptions(photos: Path) -> None:
    def judge(number: int, body: dict[str, Any]) -> Answer:
        if "You check descriptions" not in json.dumps(body):
            return good(number, body)
        images = sum(part["type"] == "image_url" for part in body["messages"][0]["content"])
        return Answer(json.dumps({"fits": [True] * (images - 1) + [body["model"] == "kind"]}))

    for model, status in (("kind", "accepted"), ("strict", "rejected")):
        source = source_of(photos, check_model=model)
        with ChatServer(judge) as server:
            checker = client_of(source_of(photos, model=model), server.url)
            clients = {"": client_of(source, server.url), "fit": checker}
            summary, _ = run_all(source, photos / model, clients)
        assert summary["tasks"] == {status: PHOTOS}


def test_the_key_is_nowhere(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def tattle(number: int, body: dict[str, Any]) -> Answer:
        if number % 3 == 0:
            return Answer(f"bad gateway for Bearer {KEY}", status=502)
        if number % 3 == 1:
            return Answer(f"your key is {KEY}")
        return good(number, body)

    with ChatServer(tattle) as server:
        run_all(source_of(photos), photos / "out", server.url)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    for path in (photos / "out").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
    assert KEY not in "".join(capfd.readouterr())
    assert "[key]" in json.dumps(rows_of(photos, "SELECT reply, error FROM requests"))


def test_a_damaged_photo_is_rejected_alone(photos: Path) -> None:
    source = source_of(photos, text_only=False)
    ledger = Ledger(photos / "out", create=True)
    select(ledger, source, None)
    ledger.close()
    (photos / "images" / "0002.jpg").write_bytes(b"gone bad")
    with ChatServer() as server:
        summary, _ = run_all(source, photos / "out", server.url, QUICK)
    assert summary["tasks"] == {"accepted": PHOTOS - 1, "rejected": 1}
    assert summary["final"] == {"unanswerable": 1}
    assert files_of(photos / "out")
