"""Every benchmark from its files to its report; resumed, limited and refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmark_layouts import NUM_PICTURES, NUM_THINGS, write_benchmark
from hand_made_scenes import true_prediction
from typer.testing import CliRunner

from pixellm.evaluation.benchmark_run import BenchmarkRun, run_benchmark, run_of_folder
from pixellm.evaluation.benchmarks import BENCHMARKS
from pixellm.types import Prediction, Request, Sample

WITH_FILES = [name for name in BENCHMARKS if name != "scenes"]


class Knowing:
    """Gives the true answer to each question about each picture."""

    def __init__(self, questions: Sequence[Sample]) -> None:
        self.turns = {
            (sample.image, turn.question): (turn, sample.size)
            for sample in questions
            for turn in sample.turns
        }
        self.num_asked = 0

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        self.num_asked += len(requests)
        return [true_prediction(*self.turns[r.image, r.question]) for r in requests]


def refuse_to_load() -> None:
    raise AssertionError("A finished run needs no model.")


@pytest.mark.parametrize("name", WITH_FILES)
def test_true_answers_score_one_on_every_benchmark(name, tmp_path):
    run = BenchmarkRun(name, "oracle", "val", write_benchmark(name, tmp_path / "data"), mode="free")
    questions = run.open()
    assert len(questions) > 0
    predictor = Knowing(questions)
    folder = tmp_path / run.folder_name()
    summary, records = run_benchmark(run, folder, lambda: predictor, batch_size=3)
    assert len(records) == summary.num_questions == predictor.num_asked
    assert summary.num_pictures == NUM_PICTURES
    for score in run.benchmark.headline:
        if name != "grefcoco" or score != "n_acc":
            assert summary.score(score).value == 1, score
    report = json.loads((folder / "report.json").read_text())
    assert report["settings"]["mode"] == report["mode"] == "free"
    assert (folder / "report.html").is_file() and (folder / "report.md").is_file()
    again, _ = run_benchmark(run, folder, refuse_to_load)  # all answered: only the report is made
    assert again.to_dict() == summary.to_dict()
    assert run_of_folder(folder).settings() == run.settings()


def test_grefcoco_asks_for_none_one_and_several(tmp_path):
    run = BenchmarkRun("grefcoco", "oracle", "val", write_benchmark("grefcoco", tmp_path / "data"))
    summary, _ = run_benchmark(run, tmp_path / "run", lambda: Knowing(run.open()))
    assert summary.score("n_acc").value == summary.score("t_acc").value == 1
    assert {"targets 0", "targets 1", "targets 2"} <= summary.groups.keys()


def test_multi_refcoco_asks_for_several_expressions_at_once(tmp_path):
    run = BenchmarkRun("multi-refcoco", "m", "val", write_benchmark("multi-refcoco", tmp_path))
    assert [len(sample.turns[0].targets) for sample in run.open()] == [NUM_THINGS] * NUM_PICTURES


def test_reasonseg_ignores_what_it_marks_so(tmp_path):
    run = BenchmarkRun("reasonseg", "m", "val", write_benchmark("reasonseg", tmp_path))
    assert all(target.ignore is not None for s in run.open() for target in s.turns[0].targets)


def test_a_limit_takes_the_first_questions_and_names_the_folder(tmp_path):
    data = write_benchmark("coco", tmp_path / "data")
    run = BenchmarkRun("coco", "some/model", "val", data, limit=3)
    whole = BenchmarkRun("coco", "some/model", "val", data).open()
    assert [s.id for s in run.open()] == [whole[i].id for i in range(3)]
    assert run.folder_name() == "coco_val_model_free_strict_first3"
    summary, _ = run_benchmark(run, tmp_path / "run", lambda: Knowing(run.open()))
    assert summary.num_questions == 3


def test_another_run_does_not_go_on_in_the_same_folder(tmp_path):
    data = write_benchmark("coco", tmp_path / "data")
    run = BenchmarkRun("coco", "one", "val", data)
    run_benchmark(run, tmp_path / "run", lambda: Knowing(run.open()))
    with pytest.raises(ValueError, match="run with model 'one', not 'two'"):
        run_benchmark(BenchmarkRun("coco", "two", "val", data), tmp_path / "run", refuse_to_load)


@pytest.mark.parametrize("name", WITH_FILES)
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        BenchmarkRun(name, "m", "val", tmp_path).open()


@pytest.mark.parametrize("name", [*BENCHMARKS])
def test_every_benchmark_is_a_command_with_an_example(name):
    from pixellm.cli import app

    result = CliRunner().invoke(app, ["eval", name, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"pixellm eval {name} --" in " ".join(result.output.split())
    shown = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    for option in ("--model", "--split", "--mode", "--protocol", "--limit", "--out"):
        assert option in shown


def test_bad_settings_are_refused_before_files_are_read():
    with pytest.raises(ValueError, match="does not score grefcoco"):
        BenchmarkRun("grefcoco", "m", "val", Path("nowhere"), protocol="released")
    with pytest.raises(ValueError, match="no benchmark"):
        BenchmarkRun("refkoko", "m")
