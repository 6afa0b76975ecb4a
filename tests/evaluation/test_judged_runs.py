"""`pixellm eval muse --judge`: both scores in every report, ratings that are paid for once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "curation"))

from answered_muse import answer_muse
from chat_server import Answer, ChatServer, user_text

from pixellm.cli.main import app
from pixellm.evaluation.evaluate import BenchmarkRun
from pixellm.evaluation.evaluate import evaluate as answer
from pixellm.evaluation.judge import JudgeSettings, SimilarityJudge
from pixellm.evaluation.judgement import check_judging, judge_evaluation
from pixellm.evaluation.report import report_of
from pixellm.files import locked
from pixellm.llm.store import RequestStore
from pixellm.report.page import write_report

REPORTS = ("report.json", "report.md", "report.html")


def evaluate(root: Path, *options: object) -> tuple[int, str]:
    """The command on a run that is answered already: a model that isn't there is never loaded."""
    words = ["eval", "muse", "--model", "oracle", "--data", root / "data", "--out", root / "run"]
    words += ["--dtype", "float32"]
    result = CliRunner().invoke(app, [str(w) for w in (*words, *options)], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def read_report(root: Path) -> dict[str, Any]:
    values = json.loads((root / "run" / "report.json").read_text())
    assert isinstance(values, dict)
    return values


def overall(values: dict[str, Any], name: str) -> float:
    return float(values["groups"]["overall"]["scores"][name]["value"])


def rate_words(number: int, body: dict[str, Any]) -> Answer:
    """A sane judge: a hammer is no cup."""
    text = user_text(body)
    scores = {1: 2 if "hammer" in text else 9, 2: 8, 3: 10}
    return Answer(json.dumps({"ratings": [{"object": k, "score": v} for k, v in scores.items()]}))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(rate_words) as running:
        yield running


def llm(server: ChatServer, root: Path, *more: object) -> list[object]:
    cache = root / "cache.sqlite"
    options = ["--judge", "llm", "--judge-model", "m", "--base-url", server.url]
    return [*options, "--judge-cache", cache, "--price", "1,1", *more]


def test_the_similarity_judge_changes_the_scores_of_every_report(tmp_path: Path) -> None:
    answer_muse(tmp_path)
    code, output = evaluate(tmp_path, "--judge", "similarity")
    assert code == 0, output
    values = read_report(tmp_path)
    assert overall(values, "giou") == overall(values["without_judge"], "giou") == 1
    judged = values["with_judge"]
    for name in ("giou", "ciou", "precision", "recall"):
        assert overall(judged, name) == pytest.approx(5 / 6), name
    assert overall(judged, "set_accuracy") == 0.5
    assert overall(judged, "union_giou") == 1, "what the masks show together is not judged"
    assert values["judge"]["kind"] == values["judge"]["judge"] == "similarity"
    assert (values["judge"]["masks_rated"], values["judge"]["masks_rejected"]) == (6, 1)
    for shown in (output, *((tmp_path / "run" / name).read_text() for name in REPORTS[1:])):
        assert "Judge similarity, threshold 3: 6 masks rated, 1 rejected" in shown
        assert "with judge" in shown and "similarity" in shown
        assert "0.833" in shown


def test_the_report_says_which_mask_was_rejected_and_why(tmp_path: Path) -> None:
    answer_muse(tmp_path)
    evaluate(tmp_path, "--judge", "similarity")
    rows = [m for a in read_report(tmp_path)["judge"]["answers"] for m in a["masks"]]
    assert [m["rejected"] for m in rows].count(True) == 1
    rejected = next(m for m in rows if m["rejected"])
    assert (rejected["phrase"], rejected["rating"]) == ("The hammer", 1.0)
    assert "cup" in rejected["description"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<dt>judge</dt>") == 2
    assert ": 1, rejected" in page


def test_without_a_judge_the_report_speaks_of_none(tmp_path: Path) -> None:
    answer_muse(tmp_path)
    evaluate(tmp_path, "--judge", "similarity")
    code, output = evaluate(tmp_path, "--judge", "none")
    assert code == 0, output
    assert "with judge" not in output
    assert not {"judge", "with_judge", "without_judge"} & read_report(tmp_path).keys()
    assert all("with judge" not in (tmp_path / "run" / name).read_text() for name in REPORTS)


def test_a_threshold_of_1_rejects_nothing(tmp_path: Path) -> None:
    answer_muse(tmp_path)
    evaluate(tmp_path, "--judge", "similarity", "--judge-threshold", 1)
    values = read_report(tmp_path)
    assert values["judge"]["masks_rejected"] == 0
    assert values["with_judge"] == values["without_judge"]


def test_released_scores_stay_and_the_judge_counts_strictly_beside_them(tmp_path: Path) -> None:
    answer_muse(tmp_path, "released")
    code, output = evaluate(tmp_path, "--protocol", "released", "--judge", "similarity")
    assert code == 0, output
    values = read_report(tmp_path)
    assert values["protocol"] == "released"
    assert overall(values, "giou") == overall(values, "strict_giou") == 1
    assert values["with_judge"]["protocol"] == values["without_judge"]["protocol"] == "strict"
    assert overall(values["with_judge"], "giou") == pytest.approx(5 / 6)


def test_a_language_model_judges_once_and_a_second_run_is_free_and_identical(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody")
    answer_muse(tmp_path)
    code, output = evaluate(tmp_path, *llm(server, tmp_path, "--max-cost", 1))
    assert code == 0, output
    assert len(server.bodies) == 2
    assert server.headers[0]["authorization"] == "Bearer sk-of-nobody"
    assert "have cost 0.0022 USD" in output
    assert overall(read_report(tmp_path)["with_judge"], "giou") == pytest.approx(5 / 6)
    assert read_report(tmp_path)["judge"]["server"] == server.url
    first = [(tmp_path / "run" / name).read_bytes() for name in REPORTS]
    assert not any(b"sk-of-nobody" in file.read_bytes() for file in (tmp_path / "run").iterdir())

    monkeypatch.delenv("OPENAI_API_KEY")
    server.behave = lambda number, body: Answer("down", status=500)
    code, again = evaluate(tmp_path, *llm(server, tmp_path, "--max-cost", 0))
    assert (code, again) == (0, output)
    assert [(tmp_path / "run" / name).read_bytes() for name in REPORTS] == first
    code, output = evaluate(tmp_path, *llm(server, tmp_path, "--judge-threshold", 9))
    assert code == 0, output
    assert read_report(tmp_path)["judge"]["masks_rejected"] == 3
    assert len(server.bodies) == 2


def test_judging_that_breaks_off_keeps_what_was_paid_for(
    server: ChatServer, tmp_path: Path
) -> None:
    answer_muse(tmp_path)

    def refuse_the_hammer(number: int, body: dict[str, Any]) -> Answer:
        if "hammer" in user_text(body):
            return Answer("no such key", status=401, delay=0.5)  # the other one is done by then
        return rate_words(number, body)

    server.behave = refuse_the_hammer
    code, output = evaluate(tmp_path, *llm(server, tmp_path))
    assert code == 2
    assert "refuses every request" in output.strip().splitlines()[-1]
    assert overall(read_report(tmp_path), "giou") == 1, "the scores without a judge are there"
    assert "with_judge" not in read_report(tmp_path)
    assert not RequestStore(tmp_path / "cache.sqlite").is_empty()

    server.behave = rate_words
    code, output = evaluate(tmp_path, *llm(server, tmp_path))
    assert code == 0, output
    assert read_report(tmp_path)["judge"]["masks_rejected"] == 1
    asked = [user_text(body) for body in server.bodies]
    assert len(asked) == 3 and len(set(asked)) == 2, "only what failed is asked again"


def test_the_cap_stops_before_anything_is_spent(server: ChatServer, tmp_path: Path) -> None:
    answer_muse(tmp_path)
    code, output = evaluate(tmp_path, *llm(server, tmp_path, "--max-cost", 0))
    assert code == 2
    assert "cap of 0 USD leaves no room" in output
    assert server.bodies == []


def test_answers_without_a_verdict_are_counted_and_keep_their_scores(
    server: ChatServer, tmp_path: Path
) -> None:
    answer_muse(tmp_path)
    server.behave = lambda number, body: Answer("It all looks fine to me.")
    code, output = evaluate(tmp_path, *llm(server, tmp_path))
    assert code == 0, output
    values = read_report(tmp_path)
    assert values["judge"]["answers_without_verdict"] == 2
    assert overall(values["with_judge"], "giou") == 1
    assert "no verdict" in (tmp_path / "run" / "report.html").read_text()


def test_the_library_judges_a_run_too(tmp_path: Path) -> None:
    run, folder = answer_muse(tmp_path)
    evaluation = answer(run, folder, lambda: None)
    settings = JudgeSettings("similarity")
    scores = judge_evaluation(evaluation, SimilarityJudge(), settings)
    assert scores.plain.score("giou").value == 1
    assert scores.judged.score("giou").value == pytest.approx(5 / 6)
    assert scores.judgement.records[0] == evaluation.records[0]
    if sys.platform != "win32":  # files are not locked there
        with locked(folder), pytest.raises(OSError, match="Another process is writing"):
            write_report(folder, "report", report_of(evaluation, scores))
    write_report(folder, "report", report_of(evaluation, scores))
    assert read_report(tmp_path)["judge"]["masks_rejected"] == 1


def test_joined_masks_and_given_texts_are_no_business_of_a_judge() -> None:
    with pytest.raises(ValueError, match="joins the masks"):
        check_judging(BenchmarkRun("grefcoco", "m"))
    with pytest.raises(ValueError, match="nothing to judge"):
        check_judging(BenchmarkRun("muse", "m", mode="forced"))
