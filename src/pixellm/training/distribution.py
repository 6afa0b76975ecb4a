"""Several processes: how the modules of a run are prepared, and sharded tensors made whole.

The strategies are accelerate's: one process, DDP, FSDP2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from torch import Tensor, nn

from pixellm.training.config import RunConfig

LONGEST_WAIT = timedelta(hours=2)
"""How long processes wait for one that evaluates or writes a large model; then the run ends."""


def build_accelerator(config: RunConfig) -> Accelerator:
    """The accelerator of a run; the strategy is what the launcher set."""
    _check_trackers(config)
    folder = config.run_folder
    accelerator = Accelerator(
        mixed_precision=config.precision,
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / "trackers")),
        kwargs_handlers=[
            # An image without targets leaves the decoder idle on its process.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=LONGEST_WAIT),
        ],
    )
    _check_strategy(accelerator, config)
    _keep_sums_exact(accelerator)
    return accelerator


def _check_trackers(config: RunConfig) -> None:
    from importlib.util import find_spec

    packages = {"tensorboard": ("tensorboard", "tensorboardX")}
    for tracker in config.trackers:
        if not any(find_spec(package) for package in packages.get(tracker, (tracker,))):
            raise ValueError(
                f"The tracker {tracker!r} is not installed; run: pip install {tracker}, or take it "
                "out of `trackers`."
            )


def _check_strategy(accelerator: Accelerator, config: RunConfig) -> None:
    kind = str(accelerator.distributed_type.value)
    if kind == "FSDP" and not accelerator.is_fsdp2:
        raise ValueError("FSDP of version 1 is not supported; launch with --fsdp_version 2.")
    if accelerator.is_fsdp2 and accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "Every process loads the weights itself; launch with "
            "--fsdp_cpu_ram_efficient_loading false."
        )
    if kind not in ("NO", "FSDP") and not kind.startswith("MULTI"):
        raise ValueError(f"{kind} is not supported; launch with FSDP2 to shard, or with neither.")
    if kind == "FSDP" and (config.ema_decay > 0 or len(config.stages) > 1):
        raise ValueError("FSDP2 trains runs of one stage without `ema_decay`; take these out.")
    if kind == "FSDP" and config.checkpoint.merged and config.has_adapters:
        raise ValueError("Sharded runs write adapters; take checkpoint.merged out and merge later.")


def _keep_sums_exact(accelerator: Accelerator) -> None:
    """Sums over processes, and what modules hand on, stay in float32 where FSDP2 computes in bf16.

    Accelerate would round both: gradients of many processes, and losses, to 8 bits.
    """
    if accelerator.is_fsdp2 and accelerator.mixed_precision == "bf16":
        from torch.distributed.fsdp import MixedPrecisionPolicy

        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
        )


def agreed(value: float | None) -> float | None:
    """The main process's value, on every process; all must ask."""
    from accelerate.utils import broadcast_object_list

    result: float | None = broadcast_object_list([value])[0]
    return result


def prepare(
    accelerator: Accelerator, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> nn.Module:
    """Wrap or shard a module; the optimizers' parameters follow, in place."""
    if not accelerator.is_fsdp2:
        prepared: nn.Module = accelerator.prepare(module)
        return prepared
    prepared = accelerator.prepare(module, *optimizers)[0]
    if accelerator.device.type == "cpu":  # where gradients are added up, but not averaged, by gloo
        for part in _sharded_parts(prepared):
            part.set_force_sum_reduction_for_comms(True)
    return prepared


def whole(value: Tensor) -> Tensor:
    """A tensor with all its shards; every process must ask."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def gather(values: Any, *, keep: bool) -> Any:
    """Nested dicts, lists and tuples with every sharded tensor made whole, on the CPU.

    Every process must ask for the same; those that don't keep the result return no sharded tensor.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(values, DTensor):
        full = values.full_tensor()
        return full.cpu() if keep else full.new_empty(0)
    if isinstance(values, Mapping):
        return {name: gather(value, keep=keep) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(gather(value, keep=keep) for value in values)
    return values


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """The parts of a sharded module may be called by themselves inside, with whole parameters.

    Every process must make the same calls.
    """
    parts = _sharded_parts(module)
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def _sharded_parts(module: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]
