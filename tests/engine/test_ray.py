"""Jobs on a cluster: the same file as here, what workers reserve, and where their engines run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from prediction_jobs import BATCH_SIZE, Stub, answer_job, make_job
from typer.testing import CliRunner, Result

from pixellm.cli.main import app
from pixellm.data.rows import read_rows
from pixellm.engine.jobs import JobState, answer_here
from pixellm.engine.questions import RowWorker, answer_rows
from pixellm.engine.ray import answer_on_ray
from pixellm.evaluation.benchmarks import open_rows


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """(device, GPUs) of each worker, for jobs that are begun and never run."""
    asked: list[Any] = []

    def spread(load: Any, model: str, workers: int, gpus: float, temperature: float) -> Any:
        asked.append((load.func.__self__.device, gpus))

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


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of two workers on this machine, which finds the stub and the sources.

    Ray gives its node 30 seconds to start, however busy the machine is; that is tried again.
    """
    import ray  # takes seconds

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "src")]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
    options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
    for left in (2, 1, 0):
        try:
            ray.init(**options, runtime_env=environment)
            break
        except Exception as error:  # Ray's own class of this fault is a bare Exception
            ray.shutdown()
            if "timed out during startup" not in str(error) or not left:
                raise
    yield
    ray.shutdown()


@pytest.mark.parametrize("kind", ["rows of a file", "a set, built by the workers"])
def test_a_cluster_gives_the_same_file(cluster: None, kind: str, tmp_path: Path) -> None:
    make_job(tmp_path)
    if kind == "rows of a file":
        answer_job(tmp_path, Stub())
        rows: Any = read_rows(tmp_path / "questions.jsonl")
    else:
        rows = open_rows("scenes", tmp_path, "test", {"num": 3, "dialogues": 2})
        spread = answer_here(lambda: RowWorker(Stub, "stub"))
        answer_rows(rows, tmp_path / "answers.jsonl", "stub", spread, BATCH_SIZE)
    whole = (tmp_path / "answers.jsonl").read_bytes()
    begun = b"".join(whole.splitlines(keepends=True)[:BATCH_SIZE])
    (tmp_path / "there.jsonl").write_bytes(begun)
    spread = answer_on_ray(Stub, "stub", workers=1)
    answer_rows(rows, tmp_path / "there.jsonl", "stub", spread, BATCH_SIZE)
    assert (tmp_path / "there.jsonl").read_bytes() == whole


def test_workers_get_what_builds_the_questions_about_photos(tmp_path: Path) -> None:
    from ray import cloudpickle

    annotations = [
        {"id": n, "image_id": 1, "category_id": n, "segmentation": [[x, 5, x + 40, 5, x, 60 + n]]}
        for n, x in ((1, 5), (2, 60), (3, 110))
    ]
    values = {
        "images": [{"id": 1, "file_name": "a.png", "height": 120, "width": 200}],
        "annotations": annotations,
        "categories": [{"id": n, "name": name} for n, name in ((1, "dog"), (2, "cat"), (3, "car"))],
    }
    for folder in ("train", "annotations"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (200, 120)).save(tmp_path / "train" / "a.png")
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(values))
    rows = open_rows("photos", tmp_path, "train")
    build = pickle.loads(cloudpickle.dumps(rows.build))
    assert [build(n).question for n in rows.numbers] == [row.question for row in rows]
    assert len(rows) > 1
