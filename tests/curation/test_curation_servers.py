"""Servers that refuse a part of a request, think aloud, or are gone: what a run makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, Behaviour, ChatServer, completion, good, proposal
from curation_runs import make_photos
from test_curation_commands import call, run_options

PHOTOS = 2


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make_photos(tmp_path, PHOTOS)
    return tmp_path


def run(folder: Path, behave: Behaviour, **changes: object) -> tuple[int, str, list[dict]]:
    """Exit code, what is said, and the requests that came."""
    with ChatServer(behave) as server:
        options = run_options(folder, model="m", base_url=server.url, questions=1, **changes)
        result = call("run", *options, "--split", "1,0")
    assert "Traceback" not in result.output
    return result.exit_code, result.output, server.bodies


def accepted(folder: Path) -> int:
    return json.loads((folder / "out/summary.json").read_text())["tasks"].get("accepted", 0)


def refusing(part: str, status: int, content: bytes) -> Behaviour:
    def behave(number: int, body: dict[str, Any]) -> Answer:
        has_system = body["messages"][0]["role"] == "system"
        if part in body or (part == "system" and has_system):
            return Answer(status=status, raw=content)
        return good(number, body)

    return behave


EXTRA = '{"type": "extra_forbidden", "loc": ["body", "%s"], "msg": "Extra inputs"}'


@pytest.mark.parametrize(
    ("part", "status", "content"),
    [
        (
            "max_completion_tokens",
            422,
            '{"object": "error", "message": {"detail": [%s]}}' % (EXTRA % "max_completion_tokens"),
        ),
        ("response_format", 422, '{"detail": [%s]}' % (EXTRA % "response_format")),
        ("response_format", 400, '{"error": "This model does not support structured output"}'),
        ("response_format", 501, "grammar is not available"),
        ("system", 400, '{"object": "error", "message": "System role not supported"}'),
        ("system", 500, '{"error": {"code": 500, "message": "Jinja: System role not supported"}}'),
        ("system", 400, '{"error": {"message": "Conversation roles must alternate user/..."}}'),
        ("system", 400, '[{"error": {"message": "Developer instruction is not enabled"}}]'),
        (
            "system",
            400,
            '{"error": {"message": "\'messages[0].role\' does not support \'system\'"}}',
        ),
    ],
)
def test_a_part_that_a_server_refuses_is_left_out(
    photos: Path, part: str, status: int, content: str
) -> None:
    code, output, bodies = run(photos, refusing(part, status, content.encode()), workers=1)
    assert (code, accepted(photos)) == (0, PHOTOS), output
    assert len(bodies) == PHOTOS + 1, "learned once"
    assert part not in bodies[-1]
    if part == "system":
        assert len(bodies[-1]["messages"]) == 1
        text = bodies[-1]["messages"][0]["content"][-1]["text"]
        assert text.startswith(bodies[0]["messages"][0]["content"])


def test_a_server_that_takes_no_limit_at_all_is_asked_without(photos: Path) -> None:
    def behave(number: int, body: dict[str, Any]) -> Answer:
        limits = [key for key in body if key.endswith("_tokens")]
        content = json.dumps({"detail": f"unknown field {limits}"}).encode()
        return Answer(status=422, raw=content) if limits else good(number, body)

    code, _, bodies = run(photos, behave, workers=1)
    assert (code, accepted(photos), len(bodies)) == (0, PHOTOS, PHOTOS + 2)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_refused_is_told_and_asked_again(photos: Path, status: int) -> None:
    words = json.dumps({"detail": {"reason": "no photos on Sundays"}}).encode()
    code, output, _ = run(photos, lambda number, body: Answer(status=status, raw=words))
    assert code == 1
    assert f"HTTP {status}" in output
    assert "no photos on Sundays" in output
    code, output, bodies = run(photos, good)
    assert (code, accepted(photos), len(bodies)) == (0, PHOTOS, PHOTOS), output


def test_a_server_that_refuses_everything_ends_the_run(tmp_path: Path) -> None:
    make_photos(tmp_path, 20)
    refuse = Answer("no photos on Sundays", status=400)
    code, output, bodies = run(tmp_path, lambda number, body: refuse, workers=1)
    assert code == 1
    assert "3 requests in a row were refused (HTTP 400: no photos on Sundays)" in output
    assert len(bodies) == 3


def test_a_small_run_without_replies_says_why(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixellm.llm.run.LONGEST_WAIT", 0.01)
    code, output, _ = run(photos, lambda number, body: Answer("out of memory", status=500))
    assert code == 1
    assert "2 questions got no reply (HTTP 500: out of memory)" in " ".join(output.split())


BOXES = " ".join(f'{{"id": {n}, "box": [1, 2, 3, 4]}}' for n in range(25))
TRY = '{"question": "What?", "answer": "no marks", "objects": []}'


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: {"content": f"<think>{BOXES}</think>{text}"},
        lambda text: {"content": f"<think>Try: {TRY} Bad.</think>\n{text}"},
        lambda text: {"content": f"Try: {TRY} Bad.</think>\n{text}"},
        lambda text: {"content": None, "reasoning_content": text},
        lambda text: {"content": "", "reasoning_content": f"<think>{TRY}</think>{text}"},
        lambda text: {"content": "<think></think>", "reasoning": text},
        lambda text: {"content": [{"type": "text", "text": text}]},
    ],
)
def test_the_reply_is_found_behind_the_thinking(
    photos: Path, wrap: Callable[[str], dict[str, Any]]
) -> None:
    def behave(number: int, body: dict[str, Any]) -> Answer:
        answer = completion(Answer(message=wrap(json.dumps(proposal(body)))))
        return Answer(raw=json.dumps(answer).encode())

    code, output, bodies = run(photos, behave)
    assert (code, accepted(photos), len(bodies)) == (0, PHOTOS, PHOTOS), output


def test_a_wrong_folder_of_images_is_an_error_and_the_right_one_goes_on(photos: Path) -> None:
    (photos / "empty").mkdir()
    wrong = call("run", *run_options(photos, images=photos / "empty"))
    assert wrong.exit_code == 2
    assert "None of the 2 photos that could be used is in" in wrong.stderr
    assert "0000.jpg; check --images" in wrong.stderr
    assert call("run", *run_options(photos, split="1,0")).exit_code == 0
