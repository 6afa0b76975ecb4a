"""Several processes against one, sharded against whole, killed against uninterrupted.

Two that evaluate are forked from the same one, which takes seconds to import everything.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmark_layouts import write_benchmark
from forked_runs import KILLS
from known_answers import Knowing
from reported import run_benchmark
from safetensors.torch import load_file
from tiny_training import assert_same_weights

from pixellm.checkpoint.io import load_model_and_processor
from pixellm.evaluation.evaluate import BenchmarkRun
from pixellm.evaluation.records import AnswerRecord, read_run
from pixellm.training import distribution

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all that a process and those that it forks have trained."""
    folder = tmp_path_factory.mktemp("forked")
    write_benchmark("coco", folder / "evaluated" / "data")
    finished = subprocess.run(
        [sys.executable, str(HERE / "forked_runs.py"), str(folder)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def runs(both: Path) -> Path:
    return both / "distributed"


@pytest.fixture(scope="module")
def killed(both: Path) -> Path:
    return both / "killed"


def steps_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


@pytest.mark.parametrize(
    ("name", "like"),
    [("two", "one"), ("two_long", "one_long"), ("sharded", "one"), ("sharded_lora", "one_lora")],
)
def test_two_processes_give_the_losses_and_gradients_of_one(
    runs: Path, name: str, like: str
) -> None:
    ours, expected = steps_of(runs / name / "run"), steps_of(runs / like / "run")
    assert [step["step"] for step in ours] == [1, 2, 3]
    for step, other in zip(ours, expected, strict=True):
        for value in ("text", "mask", "dice", "patch_class", "total"):
            assert step[value] == pytest.approx(other[value], abs=1e-5), (step["step"], value)
        assert step["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_samples_that_do_not_fit_are_counted_over_all_processes(runs: Path) -> None:
    for name in ("one_long", "two_long"):  # twelve images
        steps = steps_of(runs / name / "run")
        assert sum(step["dropped_rows"] for step in steps) == 2
        assert sum(step["dropped_turns"] for step in steps) == 4


def test_sharded_bf16_gives_about_the_losses_of_one_process(runs: Path) -> None:
    ours, expected = steps_of(runs / "sharded_bf16" / "run"), steps_of(runs / "one_bf16" / "run")
    assert [step["step"] for step in ours] == [1, 2, 3]
    for step, other in zip(ours, expected, strict=True):
        for value in ("text", "mask", "dice", "patch_class", "total"):
            assert step[value] == pytest.approx(other[value], rel=0.05), (step["step"], value)


def test_processes_wait_two_hours_for_each_other(runs: Path) -> None:
    waits = [float((runs / f"wait_{rank}.txt").read_text()) for rank in (0, 1)]
    assert waits == [7200.0, 7200.0]


def test_shards_compute_in_bf16_and_are_summed_in_float32() -> None:
    plugin = SimpleNamespace(mixed_precision_policy=None)
    state = SimpleNamespace(fsdp_plugin=plugin)
    accelerator: Any = SimpleNamespace(is_fsdp2=True, mixed_precision="bf16", state=state)
    distribution._keep_sums_exact(accelerator)
    policy = plugin.mixed_precision_policy
    assert policy.param_dtype == torch.bfloat16
    assert policy.reduce_dtype == policy.output_dtype == torch.float32


def assert_same_model(model: Any, expected: Any) -> None:
    """Weights agree, save those that softmax ignores: rounding errors alone move these."""
    other = expected.state_dict()
    for key, value in model.state_dict().items():
        if not key.endswith("k_proj.bias"):
            torch.testing.assert_close(value, other[key], atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["two", "sharded"])
def test_what_two_processes_save_loads_whole_and_equals_one(runs: Path, name: str) -> None:
    ours, _ = load_model_and_processor(runs / name / "run")
    assert_same_model(ours, load_model_and_processor(runs / "one" / "run")[0])
    load_model_and_processor(runs / name / "run" / "checkpoints" / "step_00000002")


def test_a_sharded_run_keeps_the_best_and_resumes(runs: Path) -> None:
    load_model_and_processor(runs / "sharded" / "run" / "best")
    whole = load_file(runs / "sharded" / "run" / "model" / "model.safetensors")
    again = load_file(runs / "resumed" / "run" / "model" / "model.safetensors")
    for key, value in whole.items():
        if not key.endswith("k_proj.bias"):
            torch.testing.assert_close(again[key], value, atol=1e-5, rtol=1e-5, msg=key)


def test_sharded_adapters_load_unsharded(runs: Path) -> None:
    model, _ = load_model_and_processor(runs / "sharded_lora" / "run")
    assert_same_model(model, load_model_and_processor(runs / "one_lora" / "run")[0])


def test_ten_kills_change_neither_weights_nor_losses_nor_data(killed: Path) -> None:
    deaths = (killed / "deaths.txt").read_text().splitlines()
    assert len(deaths) == len(KILLS) == 10
    assert {"before replace", "after save"} & set(deaths)
    whole, broken = killed / "whole" / "tiny", killed / "killed" / "tiny"
    assert_same_weights(whole, broken)
    expected = [json.loads(line) for line in (whole / "order.jsonl").read_text().splitlines()]
    made = [json.loads(line) for line in (broken / "order.jsonl").read_text().splitlines()]
    by_step = {entry["step"]: entry for entry in expected}
    assert len(made) > len(expected) == 14
    assert all(entry == by_step[entry["step"]] for entry in made)
    assert {entry["step"] for entry in made} == set(by_step)


def timeless(folder: Path) -> list[AnswerRecord]:
    return [replace(record, seconds=0.0) for record in read_run(folder).records]


def without_seconds(groups: dict[str, Any]) -> dict[str, Any]:
    for group in groups.values():
        group["scores"].pop("seconds", None)
    return groups


def test_two_processes_report_what_one_alone_reports(both: Path) -> None:
    folder = both / "evaluated"
    run = BenchmarkRun("coco", "oracle", "val", folder / "data")
    alone = Knowing(run.open())
    summary, _ = run_benchmark(run, folder / "alone", lambda: alone, batch_size=1)
    told = [json.loads((folder / f"told-{number}.json").read_text()) for number in (0, 1)]
    assert [one["asked"] for one in told] == [alone.num_asked // 2] * 2
    assert timeless(folder / "run") == timeless(folder / "alone")
    assert not list((folder / "run").glob(".answers*"))
    expected = without_seconds(json.loads(json.dumps(summary.to_dict()["groups"])))
    assert [without_seconds(one["scores"]) for one in told] == [expected, expected]
