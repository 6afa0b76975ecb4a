"""What accelerate is told: how long processes wait, and in which types shards are summed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import InitProcessGroupKwargs
from tiny_training import tiny_config

from pixellm.training import distribution


class ShardingAccelerator:
    """What accelerate gives a process that it launched with FSDP2."""

    is_fsdp2 = True
    distributed_type = SimpleNamespace(value="FSDP")

    def __init__(self, mixed_precision: str, kwargs_handlers: list[Any], **others: Any) -> None:
        self.mixed_precision = mixed_precision
        self.handlers = kwargs_handlers
        plugin = SimpleNamespace(mixed_precision_policy=None, cpu_ram_efficient_loading=False)
        self.state = SimpleNamespace(fsdp_plugin=plugin)


@pytest.fixture
def sharding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "Accelerator", ShardingAccelerator)


def one_stage(folder: Path, precision: str) -> Any:
    stage = tiny_config(folder).stages[1].model_dump()
    return tiny_config(folder, stages=[stage], ema_decay=0.0, precision=precision)


@pytest.mark.usefixtures("sharding")
def test_shards_compute_in_bf16_and_are_summed_in_float32(tmp_path: Path) -> None:
    built: Any = distribution.build_accelerator(one_stage(tmp_path, "bf16"))
    policy = built.state.fsdp_plugin.mixed_precision_policy
    assert policy.param_dtype == torch.bfloat16
    assert policy.reduce_dtype == policy.output_dtype == torch.float32
    plain: Any = distribution.build_accelerator(one_stage(tmp_path, "no"))
    assert plain.state.fsdp_plugin.mixed_precision_policy is None


@pytest.mark.usefixtures("sharding")
def test_processes_wait_two_hours_for_one_that_writes_or_evaluates(tmp_path: Path) -> None:
    built: Any = distribution.build_accelerator(one_stage(tmp_path, "no"))
    (wait,) = [one for one in built.handlers if isinstance(one, InitProcessGroupKwargs)]
    assert wait.to_kwargs() == {"timeout": timedelta(hours=2)}
