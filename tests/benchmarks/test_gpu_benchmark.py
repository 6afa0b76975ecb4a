"""The benchmark for GPUs, as far as it can be watched without one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_7b.py"


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
        script.measure(precision, "7b", 1)
    rounding = [] if precision == "bfloat16" else ["round"]
    assert events == ["forget", "free", "model", *rounding, "free", "count from here"]
