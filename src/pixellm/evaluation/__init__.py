"""Scores for answers with masks: matching, the two MUSE protocols, intervals, scenes.

It scores :class:`~pixellm.types.Prediction` against :class:`~pixellm.types.Sample` and never
prints. Which model made the predictions, and how, it does not know.
"""

from pixellm.engine.dialogues import Predictor, answer_dialogues
from pixellm.evaluation.intervals import Estimate, estimate_ratios
from pixellm.evaluation.metrics import MuseScorer, QuestionScore, score_masks
from pixellm.evaluation.scenes import evaluate_scenes
from pixellm.evaluation.scenes_report import ScenesReport

__all__ = [
    "Estimate",
    "MuseScorer",
    "Predictor",
    "QuestionScore",
    "ScenesReport",
    "answer_dialogues",
    "estimate_ratios",
    "evaluate_scenes",
    "score_masks",
]
