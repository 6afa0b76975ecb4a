from typing import Any

import pytest
import torch
from torch import nn

from pixellm.training.config import OptimizerConfig, Stage
from pixellm.training.optim import (
    StageOptimizer,
    average_weights,
    group_parameters,
    learning_rate_factor,
    swap_weights,
)


def stage(**changes: Any) -> Stage:
    return Stage(**{"name": "s", "steps": 10, "batch_size": 1, "learning_rate": 0.1, **changes})


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.25), (3, 1.0), (5, 1.0), (59, 1.0), (60, 1.0), (70, 0.75), (99, 0.025), (100, 0.0)],
)
def test_trapezoid_schedule(step: int, expected: float) -> None:
    assert learning_rate_factor(step, 100, 4, 0.4) == pytest.approx(expected)
    assert learning_rate_factor(step, 100, 0, 0.0) == 1


def tiny_parameters() -> dict[str, nn.Parameter]:
    shapes = {
        "model.vision_tower.weight": (4, 4),
        "model.language_model.layers.0.weight": (4, 4),
        "model.language_model.layers.0.norm": (4,),
        "model.language_model.embed_tokens.weight": (4, 4),
        "lm_head.weight": (4, 4),
    }
    return {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}


def test_first_rule_wins_and_vectors_never_decay() -> None:
    config = OptimizerConfig.model_validate(
        {
            "weight_decay": 0.1,
            "rules": [
                {"pattern": "*vision_tower", "learning_rate": 0.3, "weight_decay": 0.0},
                {"pattern": "model.*", "learning_rate": 0.5},
                {"pattern": "*embed_tokens*", "frozen": True},
            ],
        }
    )
    parameters = tiny_parameters()
    found = {
        name: (group.optimizer, round(group.learning_rate, 4), group.weight_decay)
        for group in group_parameters(parameters, stage(freeze=["lm_head"]), config)
        for name in group.names
    }
    assert found == {
        "model.vision_tower.weight": ("adamw", 0.03, 0.0),
        "model.language_model.layers.0.weight": ("adamw", 0.05, 0.1),
        "model.language_model.layers.0.norm": ("adamw", 0.05, 0.0),
        "model.language_model.embed_tokens.weight": ("adamw", 0.05, 0.1),
        "lm_head.weight": ("", 0.0, 0.0),
    }
    assert not parameters["lm_head.weight"].requires_grad


def test_muon_takes_hidden_matrices_only() -> None:
    groups = group_parameters(tiny_parameters(), stage(), OptimizerConfig(kind="muon"))
    muon = [name for group in groups if group.optimizer == "muon" for name in group.names]
    assert muon == ["model.language_model.layers.0.weight"]
    rows = [row for group in groups for row in group.rows()]
    assert sum(row["parameters"] for row in rows) == 4 * 16 + 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ["*vison*"]}, "matches no parameter"),
        ({"freeze": ["*"]}, "leaves nothing to train"),
    ],
)
def test_bad_freeze_lists(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_parameters(tiny_parameters(), stage(**changes), OptimizerConfig())


def test_loading_optimizer_state_keeps_the_recipes_rates() -> None:
    def build(rate: float) -> tuple[StageOptimizer, dict[str, nn.Parameter]]:
        parameters = tiny_parameters()
        groups = group_parameters(parameters, stage(learning_rate=rate), OptimizerConfig())
        return StageOptimizer(parameters, groups, OptimizerConfig()), parameters

    first, parameters = build(0.1)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    first.set_learning_rates(1.0)
    first.step()
    second, parameters = build(0.2)
    second.load_state_dict(first.state_dict())
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    second.set_learning_rates(0.5)
    second.step()
    assert second.optimizers["adamw"].param_groups[0]["lr"] == pytest.approx(0.1)
    assert int(next(iter(second.optimizers["adamw"].state.values()))["step"]) == 2


def test_weight_average_follows_and_swaps_back() -> None:
    model = nn.Linear(2, 2)
    start = model.weight.detach().clone()
    followed = nn.ParameterList(model.parameters())
    average = average_weights(followed, 0.5)
    with torch.no_grad():
        model.weight += 1
    average.update_parameters(followed)
    decay = 2 / 11
    swap_weights(average, followed)
    torch.testing.assert_close(model.weight.detach(), start + (1 - decay))
    swap_weights(average, followed)
    torch.testing.assert_close(model.weight.detach(), start + 1)
