"""Several processes: how the modules of a run are prepared, and sharded tensors made whole.

Knows accelerate and its strategies (one process, DDP, FSDP2). It knows no losses, no data and no
files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from torch import Tensor, nn

from pixellm.training.config import RunConfig


def build_accelerator(config: RunConfig) -> Accelerator:
    """The accelerator of a run; the strategy is what the launcher set.

    Raises:
        ValueError: a strategy that the recipe cannot be trained with, or a tracker that is not
            installed.
    """
    _check_trackers(config)
    folder = config.run_folder
    accelerator = Accelerator(
        mixed_precision=config.precision,
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / "trackers")),
        # A picture without targets leaves the decoder idle on its process.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    _check_strategy(accelerator, config)
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
    if accelerator.is_fsdp2 and (config.ema_decay > 0 or len(config.stages) > 1):
        raise ValueError("FSDP2 trains runs of one stage without `ema_decay`; take these out.")


def prepare(
    accelerator: Accelerator, module: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> nn.Module:
    """Wraps or shards a module; the optimizers' parameters follow, in place."""
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

    Args:
        values: as a state dict holds them; every process must ask for the same.
        keep: whether this process needs the result; others return no sharded tensor.
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
