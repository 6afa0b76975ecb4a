"""Judges: what they are shown, what they say, and what comes of a server that misbehaves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hand_made_scenes import APPLE, CUP
from judged_answers import QUESTIONS, fruit_record, item_of, ratings_of, silent_record

from chat_server import Answer, ChatServer, user_text
from pixellm.evaluation.judge import (
    JudgeItem,
    LLMJudge,
    SimilarityJudge,
    describe_targets,
    phrase_similarity,
    read_ratings,
)
from pixellm.evaluation.judgement import judge_records
from pixellm.evaluation.metrics import sum_matches
from pixellm.llm.prices import Price
from pixellm.types import Turn

RECORDS = [fruit_record(), fruit_record("the hammer", spurious=True), silent_record()]


def test_masks_in_the_text_give_way_to_descriptions_of_what_they_matched():
    item = item_of(fruit_record("the pears", spurious=True))
    assert [text for _, text in item.masks] == ["The apple", "the pear", None]
    described = "the apple [1: The apple] and the pears [2: the pear]. Also a dog"
    assert item.described_answer() == described
    brackets = JudgeItem("Which?", "the cup [9: all] here", (((0, 7), "a [blue]\ncup"),))
    assert brackets.described_answer() == "the cup [1: a blue\ncup] 9: all here"


def test_targets_are_described_as_the_true_answer_speaks_of_them():
    turn = Turn("What?", "Use the sharp thing {seg} and the big apple {seg}.", (CUP, APPLE))
    assert describe_targets(turn) == ("the sharp thing (cup)", "the big apple")


@pytest.mark.parametrize(
    ("first", "second", "similarity"),
    [
        ("the apple", "an apple", 1.0),
        ("the red cups", "red cup", 1.0),
        ("the left apple", "apple", 2 / 3),
        ("the apple", "the banana on the left", 0.0),
        ("it", "", 0.0),
        ("the", "the", 0.0),
    ],
)
def test_phrases_are_compared_by_the_words_that_they_share(first, second, similarity):
    assert phrase_similarity(first, second) == pytest.approx(similarity)
    assert phrase_similarity(second, first) == pytest.approx(similarity)


def test_a_mask_whose_words_speak_of_something_else_counts_with_intersection_0():
    right, wrong, silent = RECORDS
    judgement = judge_records(SimilarityJudge(), RECORDS, QUESTIONS)
    kept, rejected, nothing = (sum_matches(record.matches) for record in judgement.records)
    assert (kept, nothing) == (sum_matches(right.matches), sum_matches(silent.matches))
    before = sum_matches(wrong.matches)
    assert (before.pair_ious, rejected.pair_ious) == ((1.0, 1.0), (1.0, 0.0))
    assert rejected.intersection == before.intersection - 64
    assert rejected.union == before.union
    counts = {"masks_rated": 4, "masks_rejected": 1, "answers_without_verdict": 0}
    assert judgement.summary == {"judge": "similarity", "threshold": 3.0, **counts}
    assert judge_records(SimilarityJudge(1.0), [wrong], QUESTIONS).records == (wrong,)


# --- a language model --------------------------------------------------------------------------


def verdict(number, body):
    """A sane judge: a hammer is no pear."""
    text = user_text(body)
    scores = {1: 9, 2: 1 if "hammer" in text else 10}
    rows = [{"object": k, "score": v} for k, v in scores.items() if f"[{k}:" in text]
    return Answer("Here you are:\n```json\n" + json.dumps({"ratings": rows}) + "\n```")


@pytest.fixture
def server():
    with ChatServer(verdict) as running:
        yield running


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache.sqlite"


def make_judge(server, cache, **changes):
    options = {"price": Price(1.0, 1.0), "workers": 2, **changes}
    judge = LLMJudge("m", server.url, cache, **options)
    judge.limits = replace(judge.limits, wait=0.01)
    return judge


def rate(judge):
    return judge.rate([item_of(record) for record in RECORDS])


def test_it_asks_about_what_matched_and_rejects_what_does_not_fit(server, cache):
    judgement = judge_records(make_judge(server, cache), RECORDS, QUESTIONS)
    assert ratings_of(judgement) == [[9.0, 10.0], [9.0, 1.0], []]
    assert judgement.summary["masks_rejected"] == 1
    asked = sorted(user_text(body) for body in server.bodies)
    assert len(asked) == 2, "an answer without masks is not asked about"
    assert "Which fruit is there?" in asked[0]
    assert "the hammer [2: the pear]. Also a dog" in asked[0]


def test_a_bad_reply_is_told_what_was_wrong_and_asked_again(server, cache):
    server.behave = lambda n, body: verdict(n, body) if n else Answer("I would say it fits.")
    judge = make_judge(server, cache, workers=1)
    assert ratings_of(judge_records(judge, RECORDS[:1], QUESTIONS)) == [[9.0, 10.0]]
    said = [message["content"] for message in server.bodies[1]["messages"]]
    assert said[-2] == "I would say it fits." and "not a JSON object" in said[-1]


@pytest.mark.parametrize("reply", [Answer("slow down", status=429), Answer("It fits.")])
def test_no_verdict_rejects_nothing_is_counted_and_is_asked_for_next_time(server, cache, reply):
    server.behave = lambda n, body: reply if "hammer" in user_text(body) else verdict(n, body)
    judgement = judge_records(make_judge(server, cache), RECORDS, QUESTIONS)
    assert ratings_of(judgement) == [[9.0, 10.0], [None, None], []]
    assert judgement.records == tuple(RECORDS)
    assert judgement.summary["answers_without_verdict"] == 1
    server.behave = verdict
    assert judge_records(make_judge(server, cache), RECORDS, QUESTIONS).summary["masks_rated"] == 4


@pytest.mark.parametrize(
    ("answer", "says", "num_asked"),
    [
        (Answer("no judging on Sundays", status=422), r"\(HTTP 422: no judging on Sundays\)", 2),
        (Answer("bad key sk-secret", status=401), "refuses every request", 1),
    ],
)
def test_a_judge_without_any_reply_ends_in_the_words_of_the_server(
    server, cache, monkeypatch, answer, says, num_asked
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.behave = lambda number, body: answer
    with pytest.raises(OSError, match=says) as caught:
        rate(make_judge(server, cache, workers=1))
    assert "sk-secret" not in str(caught.value)
    assert len(server.bodies) == num_asked


def test_another_model_or_text_is_another_verdict(server, cache):
    for model in ("m", "n"):
        LLMJudge(model, server.url, cache).rate([item_of(RECORDS[0])])
    assert [body["model"] for body in server.bodies] == ["m", "n"]


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
def test_replies_that_cannot_be_used_are_refused(text, says):
    with pytest.raises(ValueError, match=says):
        read_ratings(text, [1])
