"""One attempt at one request: what servers refuse, where replies stand, prices and keys."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chat_server import Answer, Behaviour, ChatServer, completion
from pixellm.llm.client import OpenAIClient, ReplySchema, Request, public_url
from pixellm.llm.prices import Price, price_of


class Words(ReplySchema):
    said: str


REQUEST = Request("1", "ask", "Keep the rules.", (("user", "What is it?"),), Words)
REPLY = '{"said": "a cup"}'
EXTRA = '{"type": "extra_forbidden", "loc": ["body", "%s"], "msg": "Extra inputs"}'


def refusing(part: str, status: int, content: str) -> Behaviour:
    """A server that takes no request with a part whose name begins so."""

    def behave(number: int, body: dict[str, Any]) -> Answer:
        has_system = body["messages"][0]["role"] == "system"
        if any(key.endswith(part) for key in body) or (part == "system" and has_system):
            return Answer(status=status, raw=content.encode())
        return Answer(REPLY)

    return behave


@pytest.mark.parametrize(
    ("part", "status", "content"),
    [
        ("completion_tokens", 422, '{"detail": [%s]}' % (EXTRA % "max_completion_tokens")),
        ("_tokens", 422, '{"detail": "unknown field max_completion_tokens, max_tokens"}'),
        ("response_format", 422, '{"detail": [%s]}' % (EXTRA % "response_format")),
        ("response_format", 400, '{"error": "This model does not support structured output"}'),
        ("response_format", 501, "grammar is not available"),
        ("system", 400, '{"object": "error", "message": "System role not supported"}'),
        ("system", 500, '{"error": {"code": 500, "message": "Jinja: System role not supported"}}'),
        ("system", 400, '{"error": {"message": "Conversation roles must alternate user/..."}}'),
        ("system", 400, '[{"error": {"message": "Developer instruction is not enabled"}}]'),
        ("system", 400, '{"message": "\'messages[0].role\' does not support \'system\'"}'),
    ],
)  # fmt: skip
def test_a_part_that_a_server_refuses_is_left_out_from_then_on(part, status, content):
    with ChatServer(refusing(part, status, content)) as server:
        client = OpenAIClient("m", server.url)
        assert [client.complete(REQUEST).text for _ in range(2)] == [REPLY, REPLY]
    first, *_, last = server.bodies
    assert len(server.bodies) == (4 if part == "_tokens" else 3), "learned once"
    assert not any(key.endswith(part) for key in last)
    if part == "system":
        (message,) = last["messages"]
        assert message["content"] == "Keep the rules.\n\nWhat is it?"
    else:
        assert last["messages"] == first["messages"]


THOUGHT = " ".join(f'{{"id": {n}, "box": [1, 2, 3, 4]}}' for n in range(25))


@pytest.mark.parametrize(
    "message",
    [
        {"content": f"<think>{THOUGHT}</think>{REPLY}"},
        {"content": f"Try: {THOUGHT} Bad.</think>\n{REPLY}"},
        {"content": None, "reasoning_content": REPLY},
        {"content": "", "reasoning_content": f"<think>{THOUGHT}</think>{REPLY}"},
        {"content": "<think></think>", "reasoning": REPLY},
        {"content": [{"type": "text", "text": REPLY}]},
    ],
)
def test_the_reply_is_found_behind_the_thinking(message):
    raw = json.dumps(completion(Answer(message=message))).encode()
    with ChatServer(lambda number, body: Answer(raw=raw)) as server:
        assert OpenAIClient("m", server.url).complete(REQUEST).text == REPLY


def test_prices_come_from_the_table_and_local_servers_are_free():
    assert price_of("gpt-4o-mini", None).input > 0
    assert price_of("anything", "http://127.0.0.1:8000/v1") == Price(0, 0)
    with pytest.raises(ValueError, match="--price"):
        price_of("unheard-of", "https://models.example.org/v1")


def test_a_hosted_server_needs_a_key_and_a_local_one_does_not(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        OpenAIClient("gpt-4o-mini")
    OpenAIClient("local", "http://localhost:8000/v1")


def test_addresses_in_reports_hold_no_password():
    secret = "https://user:secret@host.example:8443/v1?token=secret"
    assert public_url(secret) == "https://host.example:8443/v1"
