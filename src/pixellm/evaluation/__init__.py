"""Scores of answers with masks: benchmarks, records, metrics, intervals, comparison, judges.

It computes from :class:`~pixellm.types.Sample` and :class:`~pixellm.types.Prediction`; it neither
prints nor writes reports.
"""

from pixellm.engine.dialogues import Predictor, answer_dialogues
from pixellm.evaluation.evaluate import BenchmarkRun, Evaluation, answer_questions, evaluate
from pixellm.evaluation.intervals import Estimate, estimate_ratios
from pixellm.evaluation.metrics import MuseScorer, QuestionScore, score_masks

__all__ = [
    "BenchmarkRun",
    "Estimate",
    "Evaluation",
    "MuseScorer",
    "Predictor",
    "QuestionScore",
    "answer_dialogues",
    "answer_questions",
    "estimate_ratios",
    "evaluate",
    "score_masks",
]
