from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from plain_answers import assert_same, build_talker, mixed_requests

from pixellm.engine import AnswerOptions, Engine
from pixellm.types import Prediction, Request

GREEDY = AnswerOptions()


@pytest.fixture(scope="module")
def talker() -> Any:
    return build_talker()


def drain(batch: Any) -> dict[int, Prediction]:
    found = {}
    while len(batch):
        for number, piece in batch.step():
            if isinstance(piece, Prediction):
                found[number] = piece
    return found


def test_requests_enter_at_any_time_and_get_their_own_answers(talker: Any) -> None:
    engine = Engine(*talker, 30, max_batch=3)
    requests = mixed_requests()
    found: dict[int, Prediction] = {}
    numbers: list[int] = []
    with engine.open_batch() as batch:
        for request in requests:
            numbers += [n for n in batch.add([(request, GREEDY)]) if isinstance(n, int)]
            for number, piece in batch.step():
                if isinstance(piece, Prediction):
                    found[number] = piece
        found |= drain(batch)
    for request, number in zip(requests, numbers, strict=True):
        assert_same(found[number], engine.predict(request.image, request.question))


def test_who_leaves_makes_room_and_changes_no_other_answer(talker: Any) -> None:
    engine = Engine(*talker, 30, max_batch=2)
    first, second, third = mixed_requests(3)
    with engine.open_batch() as batch:
        one, two, three = batch.add([(r, GREEDY) for r in (first, second, third)])
        assert batch.room == 0
        batch.step()
        batch.cancel(one)
        batch.cancel(one)
        assert len(batch) == 2
        found = drain(batch)
        assert batch.room == 2
        batch.cancel(two)
    assert set(found) == {two, three}
    assert_same(found[two], engine.predict(second.image, second.question))
    assert_same(found[three], engine.predict(third.image, third.question))


def test_a_request_that_cannot_be_answered_keeps_nobody_from_it(talker: Any) -> None:
    engine = Engine(*talker, 10)
    (good,) = mixed_requests(1)
    bad = Request(Path("missing.png"), "What?")
    with engine.open_batch() as batch:
        refused, number = batch.add([(bad, GREEDY), (good, GREEDY)])
        assert isinstance(refused, FileNotFoundError) and isinstance(number, int)
        assert set(drain(batch)) == {number}


def test_answers_tell_how_long_they_are_and_whether_they_were_cut(talker: Any) -> None:
    (request,) = mixed_requests(1)
    cut = Engine(*talker, 2).predict(request.image, request.question)
    assert cut.info["is_cut"] and cut.info["num_tokens"] == 2
    assert cut.info["num_prompt_tokens"] > 4


def test_threads_take_turns_and_get_the_answers_of_one(talker: Any) -> None:
    engine = Engine(*talker, 20)
    requests = mixed_requests()
    wanted = [Engine(*talker, 20).predict(r.image, r.question) for r in requests]
    found: dict[int, list[Prediction]] = {}

    def ask(name: int) -> None:
        order = requests if name % 2 else requests[::-1]
        answers = engine.predict_batch(order)
        found[name] = answers if name % 2 else answers[::-1]

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for answers in found.values():
        for answer, one in zip(answers, wanted, strict=True):
            assert_same(answer, one)
