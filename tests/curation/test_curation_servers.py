"""Servers that refuse or are gone, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from curation_runs import KEY, make_photos
from test_curation_commands import call, run_options

from chat_server import Answer, Behaviour, ChatServer, good, proposal

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


def test_what_is_refused_is_told_and_asked_again(photos: Path) -> None:
    words = json.dumps({"detail": {"reason": "no photos on Sundays"}}).encode()
    code, output, _ = run(photos, lambda number, body: Answer(status=413, raw=words))
    assert code == 1
    assert "HTTP 413" in output
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


def test_a_page_in_place_of_a_reply_is_told(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixellm.llm.run.LONGEST_WAIT", 0.01)
    page = Answer(raw=b"<html>Log in first</html>", headers={"Content-Type": "text/html"})
    code, output, _ = run(photos, lambda number, body: page)
    assert code == 1
    assert "got no reply" in output and "Log in first" in output


def test_half_a_character_in_a_reply_costs_that_reply_alone(photos: Path) -> None:
    def behave(number: int, body: dict[str, Any]) -> Answer:
        draft = proposal(body)
        return Answer(json.dumps({**draft, "question": draft["question"] + " \ud83d?"}))

    code, output, _ = run(photos, behave)
    assert (code, accepted(photos)) == (0, 0), output
    assert "foreign_text" in output


def test_a_wrong_folder_of_images_is_an_error_and_the_right_one_goes_on(photos: Path) -> None:
    (photos / "empty").mkdir()
    wrong = call("run", *run_options(photos, images=photos / "empty"))
    assert wrong.exit_code == 2
    assert "None of the 2 photos that could be used is in" in wrong.stderr
    assert "0000.jpg; check --images" in wrong.stderr
    assert call("run", *run_options(photos, split="1,0")).exit_code == 0


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_ends_the_run_at_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    wrong = Answer(f"Incorrect API key provided: {KEY}", status=status)
    code, output, bodies = run(photos, lambda number, body: wrong, workers=1)
    assert (code, len(bodies)) == (2, 1)
    assert "check the key, --model and --base-url" in output and KEY not in output
