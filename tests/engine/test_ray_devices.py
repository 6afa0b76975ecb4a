"""What a cluster's workers reserve, and where their engines run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from pixellm.cli.main import app
from pixellm.engine.jobs import JobState


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """(device, GPUs) of each worker, for jobs that are begun and never run."""
    asked: list[Any] = []

    def spread(load: Any, model: str, workers: int, gpus: float, temperature: float) -> Any:
        asked.append((load.options.device, gpus))

    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"image": "a.png", "question": "What?"}\n')
    monkeypatch.setattr("pixellm.engine.ray.answer_on_ray", spread)
    monkeypatch.setattr("pixellm.engine.questions.answer_rows", lambda *job: JobState(1, 0, 1))
    return asked


def predict(*options: str) -> Result:
    return CliRunner().invoke(app, ["predict", "rows.jsonl", "--ray", "2", *options])


@pytest.mark.parametrize(
    ("has_gpu", "device", "expected"),
    [
        (True, "auto", ("cuda", 1.0)),
        (False, "auto", ("auto", 0.0)),
        (True, "cuda", ("cuda", 1.0)),
        (False, "cuda", ("cuda", 1.0)),  # the machine that starts the job may have none
        (True, "cpu", ("cpu", 0.0)),
    ],
)
def test_each_worker_reserves_the_gpu_that_its_engine_runs_on(
    reserved: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    has_gpu: bool,
    device: str,
    expected: tuple[str, float],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    result = predict("--device", device)
    assert result.exit_code == 0, result.output
    assert reserved == [expected]


def test_a_certain_gpu_for_all_workers_is_refused(reserved: list[Any]) -> None:
    result = predict("--device", "cuda:1")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1 and "--device cuda" in result.stderr
    assert reserved == []
