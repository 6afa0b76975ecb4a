"""Several processes: how the modules of a run are prepared, and sharded tensors made whole.

Knows accelerate and its strategies (one process, DDP, FSDP2, ZeRO-2). It knows no losses, no
data and no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
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

from pixellm.training import zero
from pixellm.training.config import RunConfig
from pixellm.training.optim import StageOptimizer

LONGEST_WAIT = timedelta(hours=2)
"""How long processes wait for one that evaluates or writes a large model; then the run ends."""


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
    sharded = is_sharded(accelerator)
    if sharded and (config.ema_decay > 0 or len(config.stages) > 1):
        raise ValueError(
            "FSDP2 and DeepSpeed train runs of one stage without `ema_decay`; take these out."
        )
    if sharded and config.checkpoint.merged and config.has_adapters:
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


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process alone holds all that a checkpoint needs."""
    return accelerator.is_fsdp2 or zero.uses_zero(accelerator)


def agreed(value: float | None) -> float | None:
    """The main process's value, on every process; all must ask."""
    from accelerate.utils import broadcast_object_list

    result: float | None = broadcast_object_list([value])[0]
    return result


def prepare(
    accelerator: Accelerator, module: nn.Module, optimizer: StageOptimizer, batch_size: int
) -> nn.Module:
    """Wraps or shards a module; the optimizer's parameters follow, in place."""
    optimizers = list(optimizer.optimizers.values())
    if zero.uses_zero(accelerator):
        if len(optimizers) > 1:
            raise ValueError("DeepSpeed drives one optimizer; set optimizer.kind to adamw.")
        clip_norm = optimizer.config.clip_norm
        return zero.prepare_zero(accelerator, module, optimizers[0], batch_size, clip_norm)
    if not accelerator.is_fsdp2:
        prepared: nn.Module = accelerator.prepare(module)
        return prepared
    prepared = accelerator.prepare(module, *optimizers)[0]
    if accelerator.device.type == "cpu":  # where gradients are added up, but not averaged, by gloo
        for part in _sharded_parts(prepared):
            part.set_force_sum_reduction_for_comms(True)
    return prepared


@contextmanager
def micro_batch(accelerator: Accelerator, module: nn.Module, *, last: bool) -> Iterator[None]:
    """Around a micro-batch: gradients are exchanged at the last one of a step alone."""
    if zero.uses_zero(accelerator):
        zero.mark_micro_batch(accelerator, last=last)
        yield
    else:
        with nullcontext() if last else accelerator.no_sync(module):
            yield


def clip_gradients(
    accelerator: Accelerator, module: nn.Module, optimizer: StageOptimizer
) -> Tensor:
    """Scales the gradients of a step down to the recipe's norm; gives the norm before that."""
    if zero.uses_zero(accelerator):  # which has clipped them, and moved the weights
        return zero.gradient_norm(module, accelerator.device)
    clip_norm = optimizer.config.clip_norm
    return whole(nn.utils.clip_grad_norm_(optimizer.parameters, clip_norm, foreach=True))


def whole_state(accelerator: Accelerator, module: nn.Module) -> dict[str, Tensor]:
    """Weights of a module, whole and in full precision; every process must ask."""
    state: dict[str, Tensor] = gather(module.state_dict(), keep=accelerator.is_main_process)
    if zero.uses_zero(accelerator):
        state |= zero.whole_weights(dict(module.named_parameters(remove_duplicate=False)))
    return state


def whole_optimizer_state(
    accelerator: Accelerator, module: nn.Module, optimizer: StageOptimizer, step: int
) -> Any:
    """State of the optimizer after `step` steps, whole; every process must ask."""
    if zero.uses_zero(accelerator):
        return zero.whole_moments(dict(module.named_parameters()), step)
    return gather(optimizer.state_dict(), keep=accelerator.is_main_process)


def restore_optimizer(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: StageOptimizer,
    restored: Mapping[str, Any],
    *,
    with_state: bool,
) -> None:
    """Fills in the optimizer of a prepared module from a checkpoint.

    Args:
        accelerator: of the run.
        module: prepared; its weights are the checkpoint's, in its own precision.
        optimizer: of the present stage.
        restored: "weights" and "optimizer" of the checkpoint.
        with_state: false at the start of a stage, whose optimizer is a fresh one.
    """
    if zero.uses_zero(accelerator):
        state = restored["optimizer"] if with_state else None
        (inner,) = optimizer.optimizers.values()
        zero.restore(dict(module.named_parameters()), inner, restored["weights"], state)
    elif with_state:
        optimizer.load_state_dict(restored["optimizer"])


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
