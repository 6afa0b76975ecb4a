"""Benchmarks, their comparison and their answers from the command line, with the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_layouts import write_benchmark
from typer.testing import CliRunner

ASIDE = ("evaluation", "turn", "num_turns")


def invoke(*words: object) -> str:
    from pixellm.cli.main import app

    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def test_benchmarks_and_their_comparison_from_the_command_line(tiny_model_dir, tmp_path):
    data = write_benchmark("coco", tmp_path / "data")
    common = ("eval", "coco", "--model", tiny_model_dir, "--data", data, "--device", "cpu")
    output = invoke(*common, "--mode", "forced", "--out", tmp_path / "forced")
    assert "teacher-forced" in output and "95 % interval" in output
    report = json.loads((tmp_path / "forced" / "report.json").read_text())
    assert (report["mode"], report["protocol"]) == ("forced", "strict")
    invoke(*common, "--mode", "forced", "--protocol", "released", "--out", tmp_path / "released")
    released = json.loads((tmp_path / "released" / "report.json").read_text())
    overall = released["groups"]["overall"]["scores"]
    assert overall["strict_giou"]["value"] == pytest.approx(
        report["groups"]["overall"]["scores"]["giou"]["value"]
    )
    out = tmp_path / "difference"
    output = invoke("compare", tmp_path / "forced", tmp_path / "released", "--out", out)
    assert "B - A" in output and "paired bootstrap" in output
    assert (out / "compare.html").is_file()


def test_missing_files_are_told_before_a_model_takes_its_seconds(tmp_path, monkeypatch):
    from pixellm.cli import evaluate
    from pixellm.cli.main import app

    monkeypatch.setattr(evaluate, "import_quietly", lambda name: pytest.fail(f"imports {name}"))
    result = CliRunner().invoke(app, ["eval", "refcoco", "--data", str(tmp_path / "none")])
    assert result.exit_code == 2 and "instances.json, which is missing" in result.output


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
