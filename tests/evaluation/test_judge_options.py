"""Options of a judge that can't work: one sentence, exit code 2, before anything is read."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "curation"))

from chat_server import Answer, ChatServer

from pixellm.cli.main import app
from pixellm.cli.options import JudgeOptions
from pixellm.evaluation.judge import DEFAULT_THRESHOLD, JudgeItem, JudgeSettings, open_judge

LLM = ["--judge", "llm", "--judge-model", "gpt-4o-mini", "--base-url"]
HOSTED = [*LLM, "https://judge.example/v1"]
LOCAL = [*LLM, "http://127.0.0.1:9/v1"]


def evaluate(*options: object) -> tuple[int, str]:
    words = ["eval", "muse", "--data", "nowhere", *map(str, options)]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200", "OPENAI_API_KEY": ""})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--judge", "human"], "similarity or llm, not 'human'"),
        (["--judge", "llm"], "needs --judge-model NAME and --base-url ADDRESS"),
        (["--judge", "llm", "--judge-model", "m"], "and --base-url ADDRESS"),
        (["--judge", "llm", "--base-url", "http://127.0.0.1:9/v1"], "needs --judge-model NAME"),
        ([*LLM, "localhost:8000"], "an address such as http://"),
        ([*LLM, "http://host:port/v1"], "an address such as http://"),
        ([*LOCAL, "--max-cost", "-1"], "0 USD or more, not -1"),
        ([*LOCAL, "--max-cost", "nan"], "0 USD or more, not nan"),
        ([*LOCAL, "--price", "-1,2"], "0 USD or more per million tokens"),
        ([*LOCAL, "--price", "cheap"], "--price is INPUT,OUTPUT"),
        ([*LOCAL, "--judge-cache", "no/such/folder/cache"], "name another file"),
        (["--judge", "similarity", "--judge-threshold", "11"], "from 1 to 10, not 11"),
        (["--judge", "similarity", "--mode", "forced"], "nothing to judge"),
        (["--judge", "similarity", "--max-cost", "1"], "are for --judge llm, not --judge simil"),
        (["--judge-model", "m"], "are for --judge llm, not --judge none"),
        ([*LLM[:3], "own", *HOSTED[4:]], "price of 'own' is not known"),
        (HOSTED, "set the environment variable OPENAI_API_KEY"),
        (["--judge", "similarity"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = evaluate(*options)
    assert code == 2
    assert says in output
    assert len(output.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*/"))


def test_help_names_the_judges_and_where_the_key_comes_from() -> None:
    code, output = evaluate("--help")
    assert code == 0
    text = " ".join(output.split())
    for words in ("none, similarity", "OPENAI_API_KEY", "--judge-cache", "--judge similarity"):
        assert words in text


def test_the_usual_threshold_is_that_of_the_library() -> None:
    assert JudgeOptions().judge_threshold == DEFAULT_THRESHOLD


def test_reports_name_a_server_without_its_password() -> None:
    settings = JudgeSettings("llm", model="m", base_url="https://me:secret@judge.example/v1?key=1")
    assert settings.describe() == {
        "kind": "llm",
        "threshold": DEFAULT_THRESHOLD,
        "model": "m",
        "server": "https://judge.example/v1",
    }


def test_a_server_that_never_replies_is_given_up(tmp_path: Path) -> None:
    items = [JudgeItem(f"{i}?", "the cup", ((0, 7),), ("a cup",)) for i in range(8)]
    with ChatServer(lambda number, body: Answer("down", status=500)) as server:
        cache = tmp_path / "cache.sqlite"
        judge = open_judge(
            JudgeSettings("llm", model="m", base_url=server.url, cache=cache, workers=1)
        )
        judge.limits = replace(judge.limits, wait=0.001)
        with pytest.raises(OSError, match=r"3 requests in a row got no reply \(HTTP 500: down\)"):
            judge.rate(items)
        assert len(server.bodies) == 3 * judge.limits.attempts
