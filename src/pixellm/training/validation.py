"""Scores during a run: the model in training answers questions of a small split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.processing.processor import PixelLMProcessor
from pixellm.training.config import DataSource, EvaluationConfig, ValidationScore
from pixellm.training.stream import SampleDataset, build_source
from pixellm.types import Sample

_LOG = logging.getLogger(__name__)


def open_evaluation_data(settings: EvaluationConfig) -> SampleDataset:
    """The data set of a run's evaluations, its first image read.

    Made before a run starts, this finds what would stop it at its first evaluation.
    """
    source = evaluation_source(settings)
    dataset = build_source(source)
    if not len(dataset):
        raise ValueError(f"The evaluation data {source.name!r} of the recipe hold no image.")
    dataset[0]
    return dataset


def evaluation_source(settings: EvaluationConfig) -> DataSource:
    """What a run is evaluated on, scenes where the recipe names no data."""
    if settings.data is not None:
        return settings.data
    args = {"split": settings.split, "length": settings.num_scenes}
    return DataSource(name="scenes", args=args)


def evaluate_run(
    model: PixelLMForConditionalGeneration,
    processor: PixelLMProcessor,
    settings: EvaluationConfig,
) -> dict[str, float]:
    """Scores of free generation, by the strict protocol, where any image counts towards them.

    Asked is every dialogue about the first images of the data set; of drawn scenes the benchmark's
    questions. The model is left in evaluation mode. Scores go by the names of
    :data:`~pixellm.training.config.ValidationScore`. ImportError for scenes without the extra
    `scenes`, ValueError for a data set that is unknown or cannot be read.
    """
    from pixellm.engine import Engine
    from pixellm.evaluation.benchmarks import SCENES, find_benchmark, open_questions
    from pixellm.evaluation.evaluate import answer_freely, answer_questions
    from pixellm.evaluation.left_out import describe_left_out
    from pixellm.evaluation.scores import Rules
    from pixellm.evaluation.summary import summarize

    engine = Engine(model, processor, max_new_tokens=settings.max_new_tokens)
    questions: Sequence[Sample]
    if settings.data is None:
        rules = find_benchmark(SCENES).rules("free")
        questions = open_questions(SCENES, settings.split, Path(), {"num": settings.num_scenes})
    else:
        rules = Rules("slots", "free", "strict")
        dataset = build_source(settings.data)
        images = range(min(settings.num_scenes, len(dataset)))
        questions = [sample for image in images for sample in dataset[image]]
    answers = answer_questions(answer_freely(engine), questions, rules)
    if answers.left_out:
        _LOG.warning(describe_left_out(answers.left_out))
    summary = summarize(answers.records, rules)
    values = {name: summary.score(name).value for name in get_args(ValidationScore)}
    return {name: value for name, value in values.items() if value is not None}
