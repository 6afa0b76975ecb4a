"""Benchmarks and their comparison from the command line, with the tiny model."""

from __future__ import annotations

import json

import pytest
from benchmark_layouts import write_benchmark
from typer.testing import CliRunner


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


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("eval", "grefcoco", "--protocol", "released"), "does not score grefcoco"),
        (("eval", "coco", "--mode", "given"), "free or forced"),
        (("eval", "muse", "--data", "nowhere"), "muse"),
        (("compare", "nowhere", "nowhere"), "holds no evaluation"),
    ],
)
def test_bad_options_end_in_one_sentence(words, sentence):
    from pixellm.cli.main import app

    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 2
    assert sentence in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_missing_files_are_told_before_a_model_takes_its_seconds(tmp_path, monkeypatch):
    from pixellm.cli import evaluate
    from pixellm.cli.main import app

    monkeypatch.setattr(evaluate, "import_quietly", lambda name: pytest.fail(f"imports {name}"))
    result = CliRunner().invoke(app, ["eval", "refcoco", "--data", str(tmp_path / "none")])
    assert result.exit_code == 2 and "instances.json, which is missing" in result.output
