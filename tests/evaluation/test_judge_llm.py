from __future__ import annotations

import json
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "curation"))

from chat_server import Answer, ChatServer, user_text
from judged_answers import QUESTIONS, fruit_record, item_of, ratings_of, silent_record

from pixellm.evaluation.judge import (
    JudgeSettings,
    LLMJudge,
    open_judge,
    read_ratings,
)
from pixellm.evaluation.judgement import judge_records
from pixellm.llm.store import RequestStore

RECORDS = [fruit_record(), fruit_record("the hammer", spurious=True), silent_record()]
FAULTS: dict[str, Callable[[], Answer]] = {
    "overloaded": lambda: Answer("slow down", status=429, headers={"retry-after": "0.05"}),
    "broken": lambda: Answer("oops", status=500),
    "hangs up": lambda: Answer(reset=True),
    "no JSON from the server": lambda: Answer(raw=b"<html>", status=200),
    "words": lambda: Answer("I would say it fits."),
    "half of the JSON": lambda: Answer('{"ratings": [{"object": 1,'),
    "an object too few": lambda: Answer('{"ratings": []}'),
    "off the scale": lambda: Answer('{"ratings": [{"object": 1, "score": 11}]}'),
    "empty": lambda: Answer(""),
}


def verdict(number: int, body: dict[str, Any]) -> Answer:
    """A sane judge: a hammer is no pear."""
    text = user_text(body)
    scores = {1: 9, 2: 1 if "hammer" in text else 10}
    rows = [{"object": k, "score": v} for k, v in scores.items() if f"[{k}:" in text]
    return Answer("Here you are:\n```json\n" + json.dumps({"ratings": rows}) + "\n```")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(verdict) as running:
        yield running


def make_judge(server: ChatServer, cache: Path, **changes: Any) -> LLMJudge:
    options = {"price": (1.0, 1.0), "workers": 2, "timeout": 60.0, **changes}
    judge = open_judge(JudgeSettings("llm", model="m", base_url=server.url, cache=cache, **options))
    judge.limits = replace(judge.limits, wait=0.01)
    return judge


def test_it_asks_about_what_matched_and_rejects_what_does_not_fit(
    server: ChatServer, tmp_path: Path
) -> None:
    judge = make_judge(server, tmp_path / "cache.sqlite")
    judgement = judge_records(judge, RECORDS, QUESTIONS)
    assert ratings_of(judgement) == [[9.0, 10.0], [9.0, 1.0], []]
    assert judgement.summary["masks_rejected"] == 1
    asked = sorted(user_text(body) for body in server.bodies)
    assert len(asked) == 2, "an answer without masks is not asked about"
    assert "Which fruit is there?" in asked[0]
    assert "the hammer [2: the pear]. Also a dog" in asked[0]


def test_a_second_run_sends_nothing_costs_nothing_and_says_the_same(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache.sqlite"
    first = judge_records(make_judge(server, cache), RECORDS, QUESTIONS)
    seen, spent = len(server.bodies), RequestStore(cache).spent()
    assert spent == pytest.approx(2 * 1100 / 1e6)
    server.behave = lambda number, body: Answer("down", status=500)
    again = make_judge(server, cache, max_cost=0.0)
    assert judge_records(again, RECORDS, QUESTIONS) == first
    assert len(server.bodies) == seen
    assert again.store.spent() == spent


def test_a_complete_cache_needs_no_key(tmp_path: Path, server: ChatServer) -> None:
    cache = RequestStore(tmp_path / "cache.sqlite")

    def refuse() -> Any:
        raise ValueError("No API key")

    judge = make_judge(server, cache.path)
    expected = judge.rate([item_of(record) for record in RECORDS])
    judge._connect, judge._client = refuse, None
    assert judge.rate([item_of(record) for record in RECORDS]) == expected


@pytest.mark.parametrize("fault", FAULTS)
def test_one_bad_answer_is_asked_again_and_leaves_no_trace(
    server: ChatServer, tmp_path: Path, fault: str
) -> None:
    server.behave = lambda number, body: FAULTS[fault]() if number == 0 else verdict(number, body)
    judge = make_judge(server, tmp_path / "cache.sqlite", workers=1)
    assert ratings_of(judge_records(judge, RECORDS[:1], QUESTIONS)) == [[9.0, 10.0]]
    assert len(server.bodies) == 2


def test_a_late_answer_is_given_up_and_asked_for_again(server: ChatServer, tmp_path: Path) -> None:
    asked_again = threading.Event()

    def behave(number: int, body: dict[str, Any]) -> Answer:
        if number == 0:
            asked_again.wait(60)  # later than the client waits, whatever the machine's pace
        else:
            asked_again.set()
        return verdict(number, body)

    server.behave = behave
    judge = make_judge(server, tmp_path / "cache.sqlite", timeout=2.0)
    assert ratings_of(judge_records(judge, RECORDS[:1], QUESTIONS)) == [[9.0, 10.0]]
    assert len(server.bodies) >= 2


def test_a_bad_reply_is_shown_to_the_model_with_what_is_wrong(
    server: ChatServer, tmp_path: Path
) -> None:
    server.behave = lambda number, body: Answer("Fine!") if number == 0 else verdict(number, body)
    make_judge(server, tmp_path / "cache.sqlite").rate([item_of(RECORDS[0])])
    said = [message["content"] for message in server.bodies[1]["messages"]]
    assert said[-2] == "Fine!"
    assert "not a JSON object" in said[-1]


@pytest.mark.parametrize("fault", ["overloaded", "words"])
def test_no_verdict_rejects_nothing_is_counted_and_is_asked_for_next_time(
    server: ChatServer, tmp_path: Path, fault: str
) -> None:
    def behave(number: int, body: dict[str, Any]) -> Answer:
        return FAULTS[fault]() if "hammer" in user_text(body) else verdict(number, body)

    server.behave = behave
    cache = tmp_path / "cache.sqlite"
    judgement = judge_records(make_judge(server, cache), RECORDS, QUESTIONS)
    assert ratings_of(judgement) == [[9.0, 10.0], [None, None], []]
    assert judgement.records == tuple(RECORDS)
    assert judgement.summary["answers_without_verdict"] == 1
    server.behave = verdict
    assert judge_records(make_judge(server, cache), RECORDS, QUESTIONS).summary["masks_rated"] == 4


@pytest.mark.parametrize("status", [422, 503])
def test_a_judge_without_any_reply_ends_in_the_words_of_the_server(
    server: ChatServer, tmp_path: Path, status: int
) -> None:
    server.behave = lambda number, body: Answer("no judging on Sundays", status=status)
    with pytest.raises(OSError, match=rf"\(HTTP {status}: no judging on Sundays\)"):
        make_judge(server, tmp_path / "cache.sqlite").rate([item_of(record) for record in RECORDS])


def test_the_cost_cap_stops_before_the_request_that_would_pass_it(
    server: ChatServer, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.sqlite"
    judge = make_judge(server, cache, price=(1000.0, 1000.0), max_cost=1.5, workers=1)
    with pytest.raises(OSError, match=r"cap of 1.5 USD leaves no room .*1\.1000 are spent"):
        judge.rate([item_of(record) for record in RECORDS])
    assert len(server.bodies) == 1
    more = make_judge(server, cache, price=(1000.0, 1000.0), max_cost=5.0)
    more.rate([item_of(record) for record in RECORDS])
    assert len(server.bodies) == 2, "what was paid for is not asked twice"


def test_a_wrong_key_stops_at_once_and_is_not_shown(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.behave = lambda number, body: Answer("bad key sk-secret", status=401)
    with pytest.raises(OSError, match="refuses every request") as caught:
        make_judge(server, tmp_path / "cache.sqlite", workers=1).rate(
            [item_of(record) for record in RECORDS]
        )
    assert "sk-secret" not in str(caught.value)
    assert len(server.bodies) == 1


def test_another_model_or_text_is_another_verdict(server: ChatServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    make_judge(server, cache).rate([item_of(RECORDS[0])])
    other = open_judge(
        JudgeSettings("llm", model="n", base_url=server.url, cache=cache, price=(0, 0))
    )
    other.rate([item_of(RECORDS[0])])
    assert [body["model"] for body in server.bodies] == ["m", "n"]


def test_verdicts_of_an_older_cache_are_taken_over(server: ChatServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    items = [item_of(record) for record in RECORDS]
    judge = make_judge(server, tmp_path / "other.sqlite")
    expected, asked = judge.rate(items), len(server.bodies)
    with sqlite3.connect(cache) as old:
        old.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, ratings TEXT NOT NULL)")
        old.execute("CREATE TABLE costs (id INTEGER PRIMARY KEY, usd REAL NOT NULL)")
        for item, ratings in zip(items[:2], expected, strict=False):
            row = (judge._key(item.to_prompt()), json.dumps(ratings))
            old.execute("INSERT INTO verdicts VALUES (?, ?)", row)
            old.execute("INSERT INTO costs (usd) VALUES (0.25)")
    old.close()
    for _ in range(2):  # taken over once
        again = make_judge(server, cache, max_cost=0.0)
        assert again.rate(items) == expected
        assert again.store.spent() == 0.5
    assert len(server.bodies) == asked


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_text("not a database, but long enough to be read as one " * 40)
    with pytest.raises(OSError, match="name another file"):
        RequestStore(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"ratings": [{"object": 1, "score": true}]}', "not one from 1 to 10"),
        ('{"ratings": [{"object": 1, "score": "9"}]}', "not one from 1 to 10"),
        ('{"ratings": [{"object": 1, "score": 9}, {"object": 1, "score": 2}]}', "each once"),
        ('{"ratings": [{"object": 2, "score": 9}]}', "are 1"),
        ('{"ratings": 5}', "not a JSON object"),
        ("[1]", "not a JSON object"),
    ],
)
def test_replies_that_cannot_be_used_are_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_ratings(text, [1])
