"""Scores during a run: the model in training answers questions of a small split.

Reduces a full evaluation to a few numbers for the log. Knows nothing of the loop that calls it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.processing.processor import PixelLMProcessor
from pixellm.training.config import DataSource, EvaluationConfig
from pixellm.training.stream import SampleDataset, build_source

_BATCH = 16


def open_evaluation_data(settings: EvaluationConfig) -> SampleDataset:
    """The data set of a run's evaluations, its first image read.

    Made before a run starts, this finds what would stop it at its first evaluation.

    Raises:
        ImportError: scenes without the extra `scenes`.
        FileNotFoundError: files of the data set are missing; says where to get them.
        ValueError: a data set or a split that is unknown, damaged or empty.
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
    """Headline scores of free generation.

    Args:
        model: left in evaluation mode.
        processor: the model's own.
        settings: what to ask about, how much of it, and the length of answers.

    Returns:
        Scores by name; those that no image counts towards are left out.

    Raises:
        ImportError: scenes without the extra `scenes`.
        ValueError: a data set that is unknown or cannot be read.
    """
    from pixellm.engine import Engine

    engine = Engine(model, processor, max_new_tokens=settings.max_new_tokens)
    if settings.data is not None:
        return evaluate_on_data(engine, settings.data, settings.num_scenes)
    from pixellm.evaluation.scenes import evaluate_scenes

    report = evaluate_scenes(engine, settings.split, num_scenes=settings.num_scenes)
    headline = report.headline().items()
    return {name: score.value for name, score in headline if score.value is not None}


def evaluate_on_data(engine: Any, source: DataSource, num_images: int) -> dict[str, float]:
    """Mask scores of the answers to every dialogue about the first images of a data set.

    Masks are matched one to one; one too many or too few counts with IoU 0.
    """
    from pixellm.engine.dialogues import answer_dialogues
    from pixellm.evaluation.metrics import Ratio, add_ratios, score_masks, strict_ratios
    from pixellm.masks import decode_mask

    dataset = build_source(source)
    images = (dataset[index] for index in range(min(num_images, len(dataset))))
    total: dict[str, Ratio] = {}
    for dialogue in answer_dialogues(engine, itertools.chain.from_iterable(images), _BATCH):
        for turn, answer in zip(dialogue.sample.turns, dialogue.predictions, strict=True):
            truths = _stack([decode_mask(target.mask) for target in turn.targets], answer.size)
            masks = _stack([segment.mask for segment in answer.segments], answer.size)
            total = add_ratios(total, strict_ratios(score_masks(masks, truths)))
    return {name: part / count for name, (part, count) in total.items() if count}


def _stack(masks: Sequence[Any], size: tuple[int, int]) -> Any:
    return np.stack(masks) if masks else np.zeros((0, *size), dtype=np.bool_)
