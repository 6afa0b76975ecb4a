"""DeepSpeed's ZeRO stages 1 and 2 under the loop's own schedule and checkpoint format.

DeepSpeed owns the step: it reduces, clips and moves weights inside the last backward pass, and
keeps float32 weights and moments in flat shards. This module sets it up, asks it for whole
tensors and hands these back on resume. It knows no losses and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def uses_zero(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed moves the weights."""
    return str(accelerator.distributed_type.value) == "DEEPSPEED"


def prepare_zero(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    clip_norm: float,
) -> nn.Module:
    """Gives a module and its optimizer to DeepSpeed.

    Raises:
        ValueError: a stage that shards weights too, for which there is FSDP2.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin.zero_stage not in (1, 2):
        raise ValueError(
            f"ZeRO stage {plugin.zero_stage} is not supported; take stage 2, or FSDP2 to shard "
            "weights too."
        )
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": 1,  # the loop says where a step ends
        "gradient_clipping": clip_norm,
    }
    engine: nn.Module = accelerator.prepare(module, optimizer)[0]
    return engine


def mark_micro_batch(accelerator: Accelerator, *, last: bool) -> None:
    """Tells DeepSpeed whether the backward pass to come ends the step."""
    accelerator.gradient_state._set_sync_gradients(last)


def gradient_norm(engine: Any, device: torch.device) -> Tensor:
    """Total norm of the step that DeepSpeed has just made, before clipping."""
    return torch.as_tensor(float(engine.get_global_grad_norm() or 0.0), device=device)


def whole_weights(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 weights of what trains, by name; every process must ask."""
    get_weight = _deepspeed("safe_get_full_fp32_param")
    return {
        name: get_weight(parameter).cpu()
        for name, parameter in parameters.items()
        if parameter.requires_grad
    }


def whole_moments(parameters: Mapping[str, Tensor], step: int) -> dict[str, Any]:
    """Moments of what trains as AdamW's own state holds them, but by name."""
    get_moment = _deepspeed("safe_get_full_optimizer_state")
    state: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            moments = {key: get_moment(parameter, key).cpu() for key in MOMENTS}
            state[name] = {"step": torch.tensor(float(step)), **moments}
    return {"zero": state}


def restore(
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Any] | None,
) -> None:
    """Puts whole weights and moments back into DeepSpeed's shards.

    Args:
        parameters: of the prepared module, by name.
        optimizer: the one that DeepSpeed was given.
        weights: what :func:`whole_weights` gave.
        moments: what :func:`whole_moments` gave; None at the start of a stage.

    Raises:
        ValueError: the checkpoint was written under another strategy.
    """
    if moments is not None and "zero" not in moments:
        raise ValueError("Resume a DeepSpeed run from a checkpoint that DeepSpeed wrote.")
    state: Mapping[str, Any] = {} if moments is None else moments["zero"]
    set_weight = _deepspeed("safe_set_full_fp32_param")
    set_moment = _deepspeed("safe_set_full_optimizer_state")
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        set_weight(parameter, weights[name].to(parameter.device))
        for key in MOMENTS if name in state else ():
            set_moment(parameter, state[name][key].to(parameter.device), key)
    if state:
        step = next(iter(state.values()))["step"]
        for values in optimizer.state.values():
            values["step"] = step.to(values["step"].device) if "step" in values else step.clone()


def _deepspeed(name: str) -> Any:
    """A function of DeepSpeed's for whole tensors; the package is there when it is launched."""
    return getattr(import_module("deepspeed.utils"), name)
