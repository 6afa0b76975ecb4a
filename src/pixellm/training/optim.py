"""Which parameters train, how fast, and with which optimizer.

Turns names into groups by the rules of a recipe, builds AdamW (and Muon for hidden matrices), and
gives the learning rate of every step.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pixellm.training.config import OptimizerConfig, ParameterRule, Stage
from pixellm.training.distribution import whole
from pixellm.training.muon import Muon

ENCODER_PATTERNS = ("*vision_tower*", "patch_class_head*", "patch_box_head*")
"""What an encoder-only stage may move."""

FEATURE_PATTERNS = (*ENCODER_PATTERNS, "*feature_projector*", "feature_class_head*")
"""The same where it has the loss of the decoder's features."""

REGION_PATTERNS = (
    *("*vision_tower*", "*feature_projector*"),
    *("*pixel_decoder.regions*", "*pixel_decoder.draw*"),
)
"""The same where it has the loss of the instances found."""

_LOSSES_OF_HEADS = {
    "patch_class_head": ("patch_class",),
    "patch_box_head": ("patch_box",),
    "feature_class_head": ("feature_class", "target_class"),
}

FROZEN = ("", 0.0, 0.0)
"""Optimizer, learning rate and decay of what stays as it is."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters, in the model's order, that share optimizer, learning rate and weight decay.

    Attributes:
        optimizer: "adamw", "muon", or "" where the parameters stay frozen.
        learning_rate: at its peak; 0 where frozen.
    """

    optimizer: str
    learning_rate: float
    weight_decay: float
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The group by module, as plain rows for a table and the log."""
        values: dict[str, int] = {}
        for name, size in zip(self.names, self.sizes, strict=True):
            module = _part_of(name)
            values[module] = values.get(module, 0) + size
        return [
            {
                "module": module,
                "optimizer": self.optimizer or "frozen",
                "learning_rate": self.learning_rate,
                "weight_decay": self.weight_decay,
                "parameters": count,
            }
            for module, count in values.items()
        ]


def _part_of(name: str) -> str:
    """The part of the model that a parameter counts to in a table."""
    part = ".".join(name.removesuffix(".rows").split(".")[:2])
    if ".lora_" in name:
        return f"{part} (LoRA)"
    return f"{part} (added token rows)" if name.endswith(".rows") else part


def learning_rate_factor(step: int, steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Factor of the next step, above 0: linear rise, constant, linear fall to the stage's end."""
    rise = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    decay_steps = decay_fraction * steps
    fall = (steps - step) / decay_steps if decay_steps > 0 else 1.0
    return min(1.0, rise, max(fall, 0.0))


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a parameter or a module that it lies in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def group_parameters(
    parameters: Mapping[str, Tensor],
    stage: Stage,
    optimizer: OptimizerConfig,
    fixed: Collection[str] = (),
) -> list[ParameterGroup]:
    """Sort all parameters into groups and freeze those that don't train in this stage.

    ``fixed`` names those that lie under adapters and never train. ``requires_grad`` of all is set.
    Groups come in order of first appearance, as the table that is shown before training.
    """
    patterns = [*stage.freeze, *(rule.pattern for rule in optimizer.rules)]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in parameters):
            raise ValueError(
                f"Stage {stage.name!r}: pattern {pattern!r} matches no parameter; "
                f"names look like {next(iter(parameters))!r}."
            )
    members: dict[tuple[str, float, float], list[str]] = {}
    for name, parameter in parameters.items():
        key = FROZEN if name in fixed else _group_of(name, parameter, stage, optimizer)
        parameter.requires_grad_(bool(key[0]))
        members.setdefault(key, []).append(name)
    if not any(key[0] for key in members):
        raise ValueError(f"Stage {stage.name!r} leaves nothing to train; loosen its `freeze`.")
    return [
        ParameterGroup(*key, tuple(names), tuple(parameters[name].numel() for name in names))
        for key, names in members.items()
    ]


def _group_of(
    name: str, parameter: Tensor, stage: Stage, config: OptimizerConfig
) -> tuple[str, float, float]:
    """(optimizer, peak learning rate, weight decay) of one parameter."""
    rule = next((rule for rule in config.rules if matches(name, rule.pattern)), None)
    rule = rule or ParameterRule(pattern=name)
    reached = FEATURE_PATTERNS if stage.loss.feature_class > 0 else ENCODER_PATTERNS
    if stage.loss.region > 0:
        reached = (*reached, *REGION_PATTERNS)
    outside = stage.loss.encoder_only and not _matches_any(name, reached)
    idle_head = any(
        matches(name, head) and not any(getattr(stage.loss, loss) for loss in losses)
        for head, losses in _LOSSES_OF_HEADS.items()
    )
    frozen = rule.frozen or rule.learning_rate == 0
    if frozen or outside or idle_head or _matches_any(name, stage.freeze):
        return FROZEN
    decay = config.weight_decay if rule.weight_decay is None else rule.weight_decay
    muon = (
        config.kind == "muon" and parameter.ndim == 2 and _matches_any(name, config.muon_patterns)
    )
    return (
        "muon" if muon else "adamw",
        stage.learning_rate * rule.learning_rate,
        decay if parameter.ndim >= 2 else 0.0,
    )


def _matches_any(name: str, patterns: Iterable[str]) -> bool:
    return any(matches(name, pattern) for pattern in patterns)


class StageOptimizer:
    """One or two optimizers over the groups of a stage, driven by one schedule.

    Frozen groups are left out.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        groups: Iterable[ParameterGroup],
        config: OptimizerConfig,
    ) -> None:
        self.config = config
        self.groups = [group for group in groups if group.optimizer]
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for kind in ("adamw", "muon"):
            chosen = [
                {
                    "params": [parameters[name] for name in group.names],
                    "weight_decay": group.weight_decay,
                    "peak_lr": group.learning_rate,
                }
                for group in self.groups
                if group.optimizer == kind
            ]
            if chosen:
                self.optimizers[kind] = _build_optimizer(kind, chosen, config)

    @property
    def parameters(self) -> list[Tensor]:
        """Everything that moves; sharding puts others in place of those handed in."""
        groups = (group for o in self.optimizers.values() for group in o.param_groups)
        return [parameter for group in groups for parameter in group["params"]]

    def set_learning_rates(self, factor: float) -> None:
        """Put the rates of the step to come at `factor` times their peaks."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor

    def clip_gradients(self) -> Tensor:
        """Scale the gradients of a step down to the recipe's norm; gives the norm before that."""
        limit = self.config.clip_norm
        return whole(nn.utils.clip_grad_norm_(self.parameters, limit, foreach=True))

    def step(self) -> None:
        """Move the parameters and clear the gradients."""
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts; rates and decays belong to the recipe."""
        return {kind: optimizer.state_dict() for kind, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take moments and step counts over; rates and decays stay as the recipe says."""
        if set(state) != set(self.optimizers):
            raise ValueError(
                f"The checkpoint holds the state of {sorted(state)}, the recipe asks for "
                f"{sorted(self.optimizers)}; resume with the optimizer that was saved."
            )
        for kind, optimizer in self.optimizers.items():
            ours = [
                {key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(_placed_like(optimizer, state[kind]))
            for group, settings in zip(optimizer.param_groups, ours, strict=True):
                group.update(settings)


def _placed_like(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state of whole tensors, cut as the parameters are where these are sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = list(itertools.chain.from_iterable(g["params"] for g in optimizer.param_groups))
    placed = {}
    for index, values in state["state"].items():
        parameter = parameters[index]
        placed[index] = {
            name: distribute_tensor(value, parameter.device_mesh, parameter.placements)
            if isinstance(parameter, DTensor) and value.shape == parameter.shape
            else value
            for name, value in values.items()
        }
    return {**state, "state": placed}


def _build_optimizer(
    kind: str, groups: list[dict[str, Any]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)
    return Muon(groups, momentum=config.muon_momentum)


def average_weights(parameters: nn.ParameterList, decay: float) -> AveragedModel:
    """Start the exponential moving average of parameters.

    The average warms up: early on it follows the weights closely, so that it never carries the
    initial ones for long. ``decay`` is the long-run share of it that is kept at every update.
    """

    def follow(averages: Any, weights: Any, updates: Any) -> None:
        kept = min(decay, (1 + int(updates)) / (10 + int(updates)))
        torch._foreach_lerp_(averages, weights, 1 - kept)

    average = AveragedModel(parameters, multi_avg_fn=follow)
    average.update_parameters(parameters)  # the first call takes the weights as they are
    return average


@torch.no_grad()
def swap_weights(average: AveragedModel, parameters: nn.ParameterList) -> None:
    """Exchange average and weights, in place; a second call undoes it."""
    for parameter, averaged in zip(parameters, average.module.parameters(), strict=True):
        held = parameter.clone()
        parameter.copy_(averaged)
        averaged.copy_(held)
