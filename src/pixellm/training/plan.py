"""A run before it runs: data, steps, what trains, and memory, from a recipe alone.

Models are built on meta tensors, so that a 13 B one takes no memory; where a checkpoint or a data
set is not at hand the plan says so and goes on with the sizes that the recipe gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pixellm.checkpoint.adapters import Adapters, attach_adapters, read_adapter_config
from pixellm.checkpoint.build import (
    BAD_SETTINGS,
    derive_config,
    known_settings,
    part_config,
    read_parts,
)
from pixellm.checkpoint.encoder_weights import missing_vision_weights
from pixellm.checkpoint.parts import ModelParts
from pixellm.checkpoint.pretrained import from_pretrained, told_as
from pixellm.checkpoint.sources import is_adapter_folder, resolve_source
from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.training.config import RunConfig, Stage
from pixellm.training.memory import MemoryEstimate, estimate_memory
from pixellm.training.optim import group_parameters
from pixellm.training.setup import fixed_names, names_that_train
from pixellm.training.stream import build_source, distinct_changes
from pixellm.training.validation import evaluation_source, open_evaluation_data

_CONTROL_TOKENS = 2
"""Tokens that a dialogue template adds beside the image's and the codebook's."""

_NO_MODEL_RULES = ("patch_class_head", "patch_box_head", "feature_class_head")


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """A data set of the mixture: its share of the samples, its items (None if it can't be read)."""

    name: str
    share: float
    length: int | None


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """Evaluations during the run; ``num_images`` is None where the data set can't be read."""

    name: str
    every_steps: int
    num_images: int | None


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage of the run.

    Attributes:
        samples_per_step: images, over all GPUs.
        steps_per_epoch: until every item of the slowest data set was seen once; None where the
            data cannot be read.
        rows: what trains, as the run itself will show it.
    """

    name: str
    steps: int
    samples_per_step: int
    steps_per_epoch: int | None
    rows: tuple[dict[str, Any], ...]
    memory: tuple[MemoryEstimate, ...]


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a recipe would do.

    Attributes:
        num_parameters: of the model without adapters.
        stages: in their order; () where the model's sizes are not known.
        problems: one sentence for each thing that is not there yet.
    """

    name: str
    num_parameters: int | None
    sources: tuple[SourcePlan, ...]
    evaluation: EvaluationPlan | None
    stages: tuple[StagePlan, ...]
    problems: tuple[str, ...]


def plan_run(config: RunConfig, num_gpus: int = 1) -> RunPlan:
    """Plan a run that is launched with so many processes.

    Settings that don't fit each other are a ValueError; what is not there is reported instead.
    """
    problems: list[str] = []
    sources = _plan_sources(config, problems)
    evaluation = _plan_evaluation(config, problems)
    model, problem = model_on_meta(config)
    if problem:
        problems.append(problem)
    num_parameters: int | None = None
    stages: tuple[StagePlan, ...] = ()
    if model is not None:
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        attach_adapters(model, _adapters(config, model))
        plain = _without_heads(config)
        with told_as(BAD_SETTINGS):  # that it can be built does not say that it runs
            stages = tuple(_plan_stage(plain, s, model, sources, num_gpus) for s in plain.stages)
    return RunPlan(config.name, num_parameters, sources, evaluation, stages, tuple(problems))


def _plan_sources(config: RunConfig, problems: list[str]) -> tuple[SourcePlan, ...]:
    """Every data set as the recipe names it, and whether each stage's arguments open it too."""
    total = sum(source.weight for source in config.data)
    changes = [{}, *filter(None, distinct_changes(config.stages))]
    plans = []
    for source in config.data:
        length = None
        try:
            length, *_ = [len(build_source(source, change)) for change in changes]
        except (OSError, ImportError) as error:
            problems.append(f"Data set {source.name}: {_one_line(error)}")
        plans.append(SourcePlan(source.name, source.weight / total, length))
    return tuple(plans)


def _plan_evaluation(config: RunConfig, problems: list[str]) -> EvaluationPlan | None:
    settings = config.evaluation
    if not settings.every_steps:
        return None
    name, count = evaluation_source(settings).name, None
    try:
        count = min(settings.num_scenes, len(open_evaluation_data(settings)))
    except (OSError, ImportError) as error:
        problems.append(f"Evaluation data {name}: {_one_line(error)}")
    return EvaluationPlan(name, settings.every_steps, count)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def model_on_meta(config: RunConfig) -> tuple[Any | None, str]:
    """The model of a recipe on meta tensors, and what is not at hand, in a sentence or "".

    It is None where nothing tells its sizes.
    """
    with told_as(BAD_SETTINGS):
        shape, problem = _shape_of(config.model)
        if shape is None:
            return None, problem
        with torch.device("meta"):
            return PixelLMForConditionalGeneration(shape), problem


def _shape_of(section: Mapping[str, Any]) -> tuple[Any | None, str]:
    """The model's configuration, from its folder or from the recipe."""
    if section.get("initial_weights") is not None:
        return _shape_around(read_parts(section))
    if "checkpoint" not in section:
        return model_shape_from_parts(section)
    source = str(section["checkpoint"])
    found = _checkpoint_shape(source)
    if found is not None:
        return found, missing_vision_weights(section.get("vision_weights"))
    problem = f"The model {source!r} is not here."
    if "sizes" not in section:
        return None, f"{problem} Put it there, or give its parts under model.sizes."
    shape, missing = model_shape_from_parts(section["sizes"])
    return shape, f"{problem} Sizes are the recipe's. {missing}".strip()


def _shape_around(parts: ModelParts) -> tuple[Any | None, str]:
    """The configuration of a fresh model around the encoder and language model of another one."""
    source = str(parts.initial_weights)
    donor = _checkpoint_shape(source)
    if donor is None:
        return None, f"The model {source!r} is not here."
    shape = derive_config(donor, parts.settings)
    shape.text_config.num_hidden_layers += parts.comparing_layer
    added = max(0, shape.group_size - len(donor.codebook_token_ids))
    vocabulary = donor.text_config.vocab_size + added
    shape.text_config.vocab_size = vocabulary
    shape.codebook_token_ids = list(range(vocabulary - shape.group_size, vocabulary))
    return shape, ""


def _checkpoint_shape(source: str) -> Any | None:
    """The configuration of a checkpoint that lies on this machine."""
    try:
        found = Path(resolve_source(source))
    except (FileNotFoundError, ValueError):
        return None
    if is_adapter_folder(found):
        return _checkpoint_shape(read_adapter_config(found)[1])
    return from_pretrained(PixelLMConfig, found) if found.is_dir() else None


def model_shape_from_parts(section: Mapping[str, Any]) -> tuple[Any | None, str]:
    """The configuration that parts would give; parts without sizes are looked for on disk."""
    parts = read_parts(section)
    found = {}
    for name, part in (("vision", parts.vision), ("text", parts.text)):
        try:
            found[name] = part_config(part.source, part.config, name, is_fetched=False)
        except OSError:
            where = f"{part.source!r} is not here and the recipe gives no sizes."
            return None, f"model.{name}: {where}"
    settings, text = known_settings(parts.settings), found["text"]
    text.num_hidden_layers += parts.comparing_layer
    group = settings.get("num_scales", 2) * settings.get("tokens_per_scale", 3)
    if parts.text.config and "vocab_size" not in parts.text.config:
        is_new = parts.text.source is None and parts.tokenizer.source is None
        full = 32000 + _CONTROL_TOKENS + 1 + group
        text.vocab_size = parts.tokenizer.vocab_size if is_new else full
    found["vision"].image_size = settings.get("image_size", 448)
    shape = PixelLMConfig(
        vision_config=found["vision"],
        text_config=text,
        image_token_id=text.vocab_size - group - 1,
        **settings,
    )
    return shape, missing_vision_weights(parts.vision.source, parts.vision.path)


def _adapters(config: RunConfig, model: Any) -> Adapters:
    """The recipe's adapters; as many token rows as its tokenizer will add."""
    rows: tuple[int, ...] = ()
    if config.rows_that_train == "added":
        shape = model.config
        first = min(shape.image_token_id, *shape.codebook_token_ids) - _CONTROL_TOKENS
        ids = {*shape.codebook_token_ids, shape.image_token_id, *range(max(first, 0), first + 2)}
        rows = tuple(sorted(i for i in ids if i < shape.text_config.vocab_size))
    return Adapters(config.lora, rows)


def _without_heads(config: RunConfig) -> RunConfig:
    """The recipe without what it says of auxiliary heads, which only a run makes."""

    def is_of_model(pattern: str) -> bool:
        return not pattern.startswith(_NO_MODEL_RULES)

    rules = tuple(rule for rule in config.optimizer.rules if is_of_model(rule.pattern))
    stages = tuple(
        stage.model_copy(update={"freeze": tuple(filter(is_of_model, stage.freeze))})
        for stage in config.stages
    )
    optimizer = config.optimizer.model_copy(update={"rules": rules})
    return config.model_copy(update={"optimizer": optimizer, "stages": stages})


def _plan_stage(
    config: RunConfig, stage: Stage, model: Any, sources: Sequence[SourcePlan], num_gpus: int
) -> StagePlan:
    if config.gradient_checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = dict(model.named_parameters())
    fixed = fixed_names(model, config)
    trained = names_that_train(parameters, config, fixed)
    groups = group_parameters(parameters, stage, config.optimizer, fixed)
    rows = [row for group in groups for row in group.rows()]
    samples = stage.batch_size * stage.accumulation * num_gpus
    return StagePlan(
        stage.name,
        stage.steps,
        samples,
        _steps_per_epoch(sources, samples),
        tuple(rows),
        tuple(estimate_memory(model, trained, config, stage, num_gpus)),
    )


def _steps_per_epoch(sources: Sequence[SourcePlan], samples_per_step: int) -> int | None:
    """Steps until the last data set to come round has been seen once; None where unknown."""
    if any(source.length is None for source in sources):
        return None
    samples = max((source.length or 0) / source.share for source in sources)
    return math.ceil(samples / samples_per_step)
