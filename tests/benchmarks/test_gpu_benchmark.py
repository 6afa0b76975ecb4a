"""The benchmark for GPUs, tried to its end on a CPU at a tiny size."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing.dummy
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import run_command

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_7b.py"
GPU = torch.device("cuda")


class Begun(Exception):  # noqa: N818
    """Measuring has begun."""


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_7b", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_peak_memory_is_that_of_answering_with_nothing_left_of_earlier_rows(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    script, events = load_script(), list[str]()

    def note(name: str) -> Any:
        return lambda *arguments: events.append(name) or (SimpleNamespace(), None)

    def begin(*arguments: Any) -> Any:
        raise Begun

    monkeypatch.setattr(torch._dynamo, "reset", note("forget"))
    monkeypatch.setattr(torch.cuda, "empty_cache", note("free"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", note("count from here"))
    monkeypatch.setattr(script, "random_model", note("model"))
    monkeypatch.setattr(script, "quantize_model", note("round"))
    monkeypatch.setattr(script, "Bench", begin)
    with pytest.raises(Begun):
        script.measure(precision, "7b", 1, GPU)
    rounding = [] if precision == "bfloat16" else ["round"]
    assert events == ["forget", "free", "model", *rounding, "free", "count from here"]


def test_it_runs_to_its_end_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, report = load_script(), tmp_path / "report.json"
    options = ["--size", "tiny", "--repeats", "1", "--steps", "1", "--json", str(report)]
    options += ["--batches", "1", "2", "--precisions", "float32", "float32, int8"]
    monkeypatch.setattr(sys, "argv", ["gpu_7b.py", *options])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Only the peak of memory needs a process for each loop of training.
    monkeypatch.setattr(script, "MANY_TARGETS", 3)
    monkeypatch.setattr(script, "LENGTH", 24)
    threads = SimpleNamespace(get_context=lambda kind: multiprocessing.dummy)
    monkeypatch.setattr(script, "multiprocessing", threads)
    script.main()
    assert "tokens_per_s" in capsys.readouterr().out
    tables = json.loads(report.read_text("utf-8"))["tables"]
    whole, rounded = tables["answering"]
    assert whole["released_s"] > 0 and whole["images_per_s_batch_2"] > 0
    assert rounded["precision"] == "float32, int8"
    assert 0 <= rounded["masks_iou_with_first_row"] <= 1
    assert [row["loop"] for row in tables["training"]] == ["plain", "pixellm"]
    assert all(row["pictures_per_second"] > 0 for row in tables["training"])
    assert 0 <= rounded["tokens_as_in_first_row"] <= 1 and whole["until_first_answer_s"] > 0
    assert 10 < tables["training"][1]["dry_run_of_7b_gb"] < 80
    assert "not measured" in tables["the embedded model's recipe"][0]["photos"]


def test_masks_are_compared_pair_by_pair() -> None:
    left, right = np.zeros((2, 2), bool), np.zeros((2, 2), bool)
    left[0] = True
    right[0, 0] = True
    script = load_script()
    assert script.mean_iou([left], [right]) == 0.5
    assert script.mean_iou([left, ~left & left], [right, ~left & left]) == 0.75


def test_nothing_begins_that_no_time_is_left_for() -> None:
    clock = load_script().Clock(10)
    assert clock.run(5, lambda: 1) == 1
    assert clock.run(20, lambda: 1) == "no time left"


def test_what_fails_says_why_and_the_rest_goes_on() -> None:
    assert load_script().Clock(10).run(0, lambda: 1 / 0) == (
        "failed: ZeroDivisionError: division by zero"
    )


@pytest.mark.skipif(
    not {"PIXELLM_TEST_PHOTOS", "PIXELLM_DETECTOR_DIR"} <= os.environ.keys(),
    reason="PIXELLM_TEST_PHOTOS and PIXELLM_DETECTOR_DIR name photos and detector",
)
def test_the_recipe_on_photos_runs_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_here(command: list[str], **options: Any) -> Any:
        """A process of its own would take seconds to import everything again."""
        ended = run_command(*command[command.index("pixellm") + 1 :])
        return SimpleNamespace(returncode=ended.exit_code, stderr=ended.stderr)

    script = load_script()
    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=run_here))
    names = {"annotations": "annotations/instances_{split}.json", "images": "{split}/images"}
    changes = [f"data.{n}.args.{key}='{name}'" for n in (0, 1) for key, name in names.items()]
    changes += [f"stages.{n}.{what}" for n in (0, 1) for what in ("steps=2", "batch_size=1")]
    figures = script.measure_photos(
        Path(os.environ["PIXELLM_TEST_PHOTOS"]).resolve(),
        Path(os.environ["PIXELLM_DETECTOR_DIR"]).resolve() / "yolox_nano.onnx",
        minutes=1,
        changes=[*changes, "num_workers=0", "log_every=1", "precision=no"],
    )
    assert len(figures) == 2 and all(rate > 0 for rate in figures.values()), figures
