"""`pixellm eval muse --judge`: both scores in every report, ratings that are paid for once."""

from __future__ import annotations

import json
import sys

import pytest
from answered_muse import answer_muse
from typer.testing import CliRunner

from chat_server import Answer, ChatServer, user_text
from pixellm.cli.main import app
from pixellm.cli.options import JudgeOptions
from pixellm.evaluation.evaluate import BenchmarkRun
from pixellm.evaluation.evaluate import evaluate as answer
from pixellm.evaluation.judge import DEFAULT_THRESHOLD, LLMJudge, SimilarityJudge
from pixellm.evaluation.judgement import check_judging, judge_evaluation
from pixellm.evaluation.metrics import MuseScorer
from pixellm.evaluation.report import report_of
from pixellm.files import locked
from pixellm.llm.prices import Price
from pixellm.llm.store import RequestStore
from pixellm.report.page import write_report

pytestmark = pytest.mark.usefixtures("without_plots")

REPORTS = ("report.json", "report.md", "report.html")


def run(*words, **environment):
    result = CliRunner().invoke(
        app, ["eval", "muse", *map(str, words)], env={"COLUMNS": "200", **environment}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def evaluate(root, *options, code=0):
    """The command on a run that is answered already: a model that isn't there is never loaded."""
    where = ["--model", "oracle", "--data", root / "data", "--out", root / "run"]
    found, output = run(*where, "--dtype", "float32", *options)
    assert found == code, output
    return output


def read_report(root):
    return json.loads((root / "run" / "report.json").read_text())


def overall(values, name):
    return float(values["groups"]["overall"]["scores"][name]["value"])


def rate_words(number, body):
    """A sane judge: a hammer is no cup."""
    text = user_text(body)
    scores = {1: 2 if "hammer" in text else 9, 2: 8, 3: 10}
    return Answer(json.dumps({"ratings": [{"object": k, "score": v} for k, v in scores.items()]}))


@pytest.fixture
def server():
    with ChatServer(rate_words) as running:
        yield running


def llm(server, root, *more):
    cache = root / "cache.sqlite"
    options = ["--judge", "llm", "--judge-model", "m", "--base-url", server.url]
    return [*options, "--judge-cache", cache, "--price", "1,1", *more]


def test_the_similarity_judge_changes_the_scores_of_every_report(tmp_path):
    answer_muse(tmp_path)
    output = evaluate(tmp_path, "--judge", "similarity")
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
        assert "with judge" in shown and "similarity" in shown and "0.833" in shown
    rows = [mask for one in values["judge"]["answers"] for mask in one["masks"]]
    (rejected,) = [mask for mask in rows if mask["rejected"]]
    assert (rejected["phrase"], rejected["rating"]) == ("The hammer", 1.0)
    assert "cup" in rejected["description"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<dt>judge</dt>") == 2 and ": 1, rejected" in page

    evaluate(tmp_path, "--judge", "similarity", "--judge-threshold", 1)
    values = read_report(tmp_path)
    assert values["judge"]["masks_rejected"] == 0
    assert values["with_judge"] == values["without_judge"]
    assert "with judge" not in evaluate(tmp_path, "--judge", "none")
    assert not {"judge", "with_judge", "without_judge"} & read_report(tmp_path).keys()
    assert all("with judge" not in (tmp_path / "run" / name).read_text() for name in REPORTS)


def test_released_scores_stay_and_the_judge_counts_strictly_beside_them(tmp_path):
    answer_muse(tmp_path, "released")
    evaluate(tmp_path, "--protocol", "released", "--judge", "similarity")
    values = read_report(tmp_path)
    assert values["protocol"] == "released"
    assert overall(values, "giou") == overall(values, "strict_giou") == 1
    assert values["with_judge"]["protocol"] == values["without_judge"]["protocol"] == "strict"
    assert overall(values["with_judge"], "giou") == pytest.approx(5 / 6)


def test_a_language_model_judges_once_and_a_second_run_is_free_and_identical(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody")
    answer_muse(tmp_path)
    evaluate(tmp_path, *llm(server, tmp_path, "--max-cost", 0), code=2)
    assert server.bodies == [], "the cap stops before anything is spent"
    output = evaluate(tmp_path, *llm(server, tmp_path, "--max-cost", 1))
    assert len(server.bodies) == 2
    assert server.headers[0]["authorization"] == "Bearer sk-of-nobody"
    assert "have cost 0.0022 USD" in output
    assert overall(read_report(tmp_path)["with_judge"], "giou") == pytest.approx(5 / 6)
    assert read_report(tmp_path)["judge"]["server"] == server.url
    first = [(tmp_path / "run" / name).read_bytes() for name in REPORTS]
    assert not any(b"sk-of-nobody" in file.read_bytes() for file in (tmp_path / "run").iterdir())

    monkeypatch.delenv("OPENAI_API_KEY")
    server.behave = lambda number, body: Answer("down", status=500)
    assert evaluate(tmp_path, *llm(server, tmp_path, "--max-cost", 0)) == output
    assert [(tmp_path / "run" / name).read_bytes() for name in REPORTS] == first
    evaluate(tmp_path, *llm(server, tmp_path, "--judge-threshold", 9))
    assert read_report(tmp_path)["judge"]["masks_rejected"] == 3
    assert len(server.bodies) == 2


def test_judging_that_breaks_off_keeps_what_was_paid_for(server, tmp_path):
    answer_muse(tmp_path)

    def refuse_the_hammer(number, body):
        if "hammer" in user_text(body):
            return Answer("no such key", status=401, delay=0.5)  # the other one is done by then
        return rate_words(number, body)

    server.behave = refuse_the_hammer
    output = evaluate(tmp_path, *llm(server, tmp_path), code=2)
    assert "refuses every request" in output.strip().splitlines()[-1]
    assert overall(read_report(tmp_path), "giou") == 1, "the scores without a judge are there"
    assert "with_judge" not in read_report(tmp_path)
    assert not RequestStore(tmp_path / "cache.sqlite").is_empty()

    server.behave = rate_words
    evaluate(tmp_path, *llm(server, tmp_path))
    assert read_report(tmp_path)["judge"]["masks_rejected"] == 1
    asked = [user_text(body) for body in server.bodies]
    assert len(asked) == 3 and len(set(asked)) == 2, "only what failed is asked again"


def test_answers_without_a_verdict_are_counted_and_keep_their_scores(server, tmp_path):
    answer_muse(tmp_path)
    server.behave = lambda number, body: Answer("It all looks fine to me.")
    evaluate(tmp_path, *llm(server, tmp_path))
    values = read_report(tmp_path)
    assert values["judge"]["answers_without_verdict"] == 2
    assert overall(values["with_judge"], "giou") == 1
    assert "no verdict" in (tmp_path / "run" / "report.html").read_text()


def test_the_library_judges_a_run_too(tmp_path):
    benchmark_run, folder = answer_muse(tmp_path)
    evaluation = answer(benchmark_run, folder, lambda: None)
    scores = judge_evaluation(evaluation, SimilarityJudge())
    assert scores.plain.score("giou").value == 1
    assert scores.judged.score("giou").value == pytest.approx(5 / 6)
    assert scores.judgement.records[0] == evaluation.records[0]
    if sys.platform != "win32":  # files are not locked there
        with locked(folder), pytest.raises(OSError, match="Another process is writing"):
            write_report(folder, "report", report_of(evaluation, scores))
    write_report(folder, "report", report_of(evaluation, scores))
    assert read_report(tmp_path)["judge"]["masks_rejected"] == 1


def test_joined_masks_and_given_texts_are_not_judged():
    with pytest.raises(ValueError, match="joins the masks"):
        check_judging(BenchmarkRun("grefcoco", "m"))
    with pytest.raises(ValueError, match="nothing to judge"):
        check_judging(BenchmarkRun("muse", "m", mode="forced"))


# --- options -----------------------------------------------------------------------------------

LLM = ["--judge", "llm", "--judge-model", "gpt-4o-mini", "--base-url"]
HOSTED = [*LLM, "https://judge.example/v1"]
LOCAL = [*LLM, "http://127.0.0.1:9/v1"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--judge", "human"], "similarity or llm, not 'human'"),
        (["--judge", "llm"], "needs --judge-model NAME and --base-url ADDRESS"),
        ([*LLM, "localhost:8000"], "an address such as http://"),
        ([*LOCAL, "--max-cost", "-1"], "0 USD or more, not -1"),
        ([*LOCAL, "--price", "-1,2"], "0 USD or more per million tokens"),
        ([*LOCAL, "--price", "cheap"], "--price is INPUT,OUTPUT"),
        ([*LOCAL, "--judge-cache", "no/such/folder/cache"], "name another file"),
        (["--judge", "similarity", "--judge-threshold", "11"], "from 1 to 10, not 11"),
        (["--judge", "similarity", "--mode", "forced"], "nothing to judge"),
        (["--judge", "similarity", "--max-cost", "1"], "are for --judge llm, not --judge simil"),
        ([*LLM[:3], "own", *HOSTED[4:]], "price of 'own' is not known"),
        (HOSTED, "set the environment variable OPENAI_API_KEY"),
        (["--judge", "similarity"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_one_sentence(tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    code, output = run("--data", "nowhere", *options, OPENAI_API_KEY="")
    assert code == 2 and says in output
    assert len(output.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*/"))


def test_the_usual_threshold_is_that_of_the_paper_s_scorer():
    assert JudgeOptions().judge_threshold == DEFAULT_THRESHOLD == MuseScorer().judge_threshold


def test_reports_name_a_server_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody")
    url, price = "https://me:secret@judge.example/v1?key=1", Price(1, 1)
    judge = LLMJudge("m", url, tmp_path / "cache", price=price)
    named = {"kind": "llm", "threshold": DEFAULT_THRESHOLD, "model": "m"}
    assert judge.describe() == {**named, "server": "https://judge.example/v1"}
