"""`predict` and `eval` write the same answers, and `score` reads either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_layouts import write_benchmark
from typer.testing import CliRunner

ASIDE = ("evaluation", "turn", "num_turns")


def invoke(*words: object) -> None:
    from pixellm.cli.main import app

    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output


def answers_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_predict_and_eval_write_the_same_answers_and_score_reads_both(tiny_model_dir, tmp_path):
    data = write_benchmark("muse", tmp_path / "data").absolute()
    model = ("--model", tiny_model_dir, "--device", "cpu", "--batch-size", 4)
    run, predicted = tmp_path / "run", tmp_path / "predicted.jsonl"
    invoke("eval", "muse", "--data", data, "--split", "val", "--mode", "free", *model, "--out", run)
    invoke("predict", "muse", "--data", data, "--split", "val", *model, "--out", predicted)
    evaluated = answers_of(run / "answers.jsonl")
    plain = [{k: v for k, v in one.items() if k not in ASIDE} for one in evaluated]
    assert plain == answers_of(predicted)

    report = json.loads((run / "report.json").read_text("utf-8"))
    wanted = report["groups"]["overall"]["scores"]["giou"]
    assert wanted["value"] is not None
    for path in (run / "answers.jsonl", predicted):
        out = tmp_path / f"{path.stem}.json"
        common = ("--benchmark", "muse", "--data", data, "--split", "val")
        invoke("score", path, *common, "--json", out)
        scored = json.loads(out.read_text("utf-8"))["without_judge"]
        found = scored["groups"]["overall"]["scores"]["giou"]
        assert found["value"] == pytest.approx(wanted["value"])
