"""Scores during a run: the model in training answers scenes of the validation split.

Reduces a full evaluation to a few numbers for the log. Knows nothing of the loop that calls it.
"""

from __future__ import annotations

from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.processing.processor import PixelLMProcessor
from pixellm.training.config import EvaluationConfig


def evaluate_on_scenes(
    model: PixelLMForConditionalGeneration,
    processor: PixelLMProcessor,
    settings: EvaluationConfig,
) -> dict[str, float]:
    """Headline scores of free generation on the first scenes of the split.

    Args:
        model: left in evaluation mode.
        processor: the model's own.
        settings: split, number of scenes and length of answers.

    Returns:
        Scores by name; those that no scene counts towards are left out.

    Raises:
        ImportError: the extra `scenes` is not installed.
    """
    from pixellm.engine import Engine
    from pixellm.evaluation.scenes import evaluate_scenes

    engine = Engine(model, processor, max_new_tokens=settings.max_new_tokens)
    report = evaluate_scenes(engine, settings.split, num_scenes=settings.num_scenes)
    headline = report.headline().items()
    return {name: score.value for name, score in headline if score.value is not None}
