"""What an evaluation on scenes reports: scores by kind and number of targets, with intervals.

Takes scored answers, each with its matches, names and text, and makes tables and JSON values of
them. It never prints, and knows nothing of predictors or masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pixellm.evaluation.intervals import Estimate, estimate_ratios
from pixellm.evaluation.metrics import QuestionScore, Ratio, strict_ratios
from pixellm.evaluation.scores import TEXT_KINDS, is_text_right

SPACE_AND_SIZE_KINDS = frozenset({"half", "relative", "nearest", "size"})
NEGATIVE_KIND = "negative"

DEFINITIONS = {
    "giou": "mean IoU over the max(predicted, true) matches of questions that have targets; "
    "missing and spurious masks are 0",
    "ciou": "summed intersection over summed union of the same matches",
    "set_accuracy": "questions with targets in which every target is matched at IoU >= 0.5 and no "
    "mask is spurious",
    "named_set_accuracy": "right names: questions with targets whose phrases with masks name "
    "exactly the right concepts, each as often as asked for, wherever the masks lie",
    "precision": "masks that match a target at IoU >= 0.5, of all masks shown",
    "recall": "targets matched at IoU >= 0.5, of all targets",
    "n_acc": "questions without targets that are answered without masks",
    "t_acc": "questions with targets that are answered with at least one mask",
    "text_accuracy": "counting questions answered with the right number, and plain ones word "
    "for word, case and punctuation aside",
    "giou_with_no_target": "giou over all questions; one without targets counts 1 when answered "
    "without masks, and each mask shown there is a 0",
    "ciou_with_no_target": "ciou over all questions",
}
"""What each score of a report means."""


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """One answer and what it is worth.

    Attributes:
        image: number of the scene; answers of a scene are resampled together.
        kind: of the question.
        question: as asked.
        expected: the true answer, without marks.
        answer: the predicted one.
        masks: matches of the strict protocol.
        expected_names: concepts of the targets.
        given_names: concepts of the predicted segments' phrases; None for any other phrase.
        seconds: share of the batch's time.
    """

    image: int
    kind: str
    question: str
    expected: str
    answer: str
    masks: QuestionScore
    expected_names: tuple[str, ...]
    given_names: tuple[str | None, ...]
    seconds: float

    def ratios(self) -> dict[str, Ratio]:
        """What the answer adds to each score of :data:`DEFINITIONS`."""
        strict, nothing = strict_ratios(self.masks), (0.0, 0.0)
        names_right = Counter(self.expected_names) == Counter(self.given_names)
        text_right = is_text_right(self.kind, self.expected, self.answer)
        return {
            "giou": strict["giou_targets"],
            "ciou": strict["ciou_targets"],
            "set_accuracy": strict["set_accuracy_targets"],
            "named_set_accuracy": (float(names_right), 1.0) if self.expected_names else nothing,
            "precision": strict["precision"],
            "recall": strict["recall"],
            "n_acc": strict["n_acc"],
            "t_acc": strict["t_acc"],
            "text_accuracy": (float(text_right), 1.0) if self.kind in TEXT_KINDS else nothing,
            "giou_with_no_target": strict["giou"],
            "ciou_with_no_target": strict["ciou"],
        }


@dataclass(frozen=True, slots=True)
class GroupReport:
    """The scores of a group of questions, by the names of :data:`DEFINITIONS`."""

    num_questions: int
    scores: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class ScenesReport:
    """An evaluation on scenes.

    Attributes:
        split: of the data set.
        seed: of the data set.
        num_scenes: images.
        num_concepts: different concepts asked for.
        seconds_per_answer: wall time of the predictor, mean over answers.
        groups: by name: "overall", "space and size", "kind KIND", "targets N".
        answers: every answer, for a closer look; not part of :meth:`to_dict`.
    """

    split: str
    seed: int
    num_scenes: int
    num_concepts: int
    seconds_per_answer: float
    groups: dict[str, GroupReport]
    answers: tuple[AnswerScore, ...]

    def headline(self) -> dict[str, Estimate]:
        """The scores a model is judged by."""
        overall = self.groups["overall"].scores
        space = self.groups.get("space and size")
        absent = self.groups.get(f"kind {NEGATIVE_KIND}")
        unknown = Estimate(None, None, None, 0.0)
        return {
            "giou": overall["giou"],
            "ciou": overall["ciou"],
            "set_accuracy": overall["set_accuracy"],
            "named_set_accuracy": overall["named_set_accuracy"],
            "space_and_size_giou": space.scores["giou"] if space else unknown,
            "negatives_without_masks": absent.scores["n_acc"] if absent else unknown,
            "text_accuracy": overall["text_accuracy"],
            "giou_with_no_target": overall["giou_with_no_target"],
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single answers, as values that JSON knows."""
        groups = {
            name: {
                "num_questions": group.num_questions,
                "scores": {key: asdict(estimate) for key, estimate in group.scores.items()},
            }
            for name, group in self.groups.items()
        }
        return {
            "benchmark": "scenes",
            "mode": "free",
            "protocol": "strict",
            "split": self.split,
            "seed": self.seed,
            "num_scenes": self.num_scenes,
            "num_questions": len(self.answers),
            "num_concepts": self.num_concepts,
            "interval": "95 %, bootstrap over scenes",
            "seconds_per_answer": self.seconds_per_answer,
            "headline": {name: asdict(estimate) for name, estimate in self.headline().items()},
            "groups": groups,
            "definitions": DEFINITIONS,
        }

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text, the header first; gIoU and set accuracy with their 95 % intervals."""
        header = ("questions", "number", "gIoU", "cIoU", "set accuracy", "right names")
        rest = ("precision", "recall", "N-acc", "T-acc", "text", "gIoU with no-target")
        return [(*header, *rest), *(_table_row(*item) for item in self.groups.items())]


def build_report(answers: Sequence[AnswerScore], split: str, seed: int) -> ScenesReport:
    """Group scores and compute intervals, resampling whole images."""
    images = sorted({answer.image for answer in answers})
    row_of = {image: row for row, image in enumerate(images)}
    members: dict[str, list[AnswerScore]] = {"overall": []}
    for answer in answers:
        for group in _groups_of(answer):
            members.setdefault(group, []).append(answer)
    ordered = sorted(members, key=_group_order)
    table = np.zeros((len(images), len(ordered), len(DEFINITIONS), 2))
    for column, group in enumerate(ordered):
        for answer in members[group]:
            ratios = answer.ratios()
            table[row_of[answer.image], column] += [ratios[name] for name in DEFINITIONS]
    estimates = iter(
        estimate_ratios(table.reshape(len(images), len(ordered) * len(DEFINITIONS), 2))
    )
    groups = {
        group: GroupReport(len(members[group]), {name: next(estimates) for name in DEFINITIONS})
        for group in ordered
    }
    concepts = {name for answer in answers for name in answer.expected_names}
    seconds = sum(answer.seconds for answer in answers) / max(len(answers), 1)
    return ScenesReport(split, seed, len(images), len(concepts), seconds, groups, tuple(answers))


def _groups_of(answer: AnswerScore) -> list[str]:
    groups = ["overall", f"kind {answer.kind}", f"targets {_bin(answer.masks.num_truths)}"]
    if answer.kind in SPACE_AND_SIZE_KINDS:
        groups.append("space and size")
    return groups


def _bin(num_targets: int) -> str:
    if num_targets <= 3:
        return str(num_targets)
    return "4-5" if num_targets <= 5 else "6+"


def _group_order(group: str) -> tuple[int, str]:
    ranks = {"overall": 0, "space": 1, "kind": 2, "targets": 3}
    return ranks[group.partition(" ")[0]], group


def _table_row(name: str, group: GroupReport) -> tuple[str, ...]:
    with_interval = ("giou", "set_accuracy", "named_set_accuracy")
    columns = [key for key in DEFINITIONS if key != "ciou_with_no_target"]
    cells = []
    for key in columns:
        estimate = group.scores[key]
        plain = "-" if estimate.value is None else f"{estimate.value:.3f}"
        cells.append(str(estimate) if key in with_interval else plain)
    return (name, str(group.num_questions), *cells)
