"""Two real processes over gloo share the questions, and report what one alone reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark_layouts import write_benchmark
from known_answers import Knowing
from reported import run_benchmark

from pixellm.evaluation.evaluate import BenchmarkRun
from pixellm.evaluation.records import AnswerRecord, read_run


def timeless(folder: Path) -> list[AnswerRecord]:
    return [replace(record, seconds=0.0) for record in read_run(folder).records]


def without_seconds(groups: dict[str, Any]) -> dict[str, Any]:
    for group in groups.values():
        group["scores"].pop("seconds", None)
    return groups


def test_two_processes_report_what_one_alone_reports(tmp_path):
    run = BenchmarkRun("coco", "oracle", "val", write_benchmark("coco", tmp_path / "data"))
    alone = Knowing(run.open())
    summary, _ = run_benchmark(run, tmp_path / "alone", lambda: alone, batch_size=1)
    script = Path(__file__).with_name("forked_evaluation.py")
    finished = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    told = [json.loads((tmp_path / f"told-{number}.json").read_text()) for number in (0, 1)]
    assert [one["asked"] for one in told] == [alone.num_asked // 2] * 2
    assert timeless(tmp_path / "run") == timeless(tmp_path / "alone")
    assert not list((tmp_path / "run").glob(".answers*"))
    expected = without_seconds(json.loads(json.dumps(summary.to_dict()["groups"])))
    assert [without_seconds(one["scores"]) for one in told] == [expected, expected]
