"""Evaluates a predictor on scenes by free generation: masks, names and texts of its answers.

Masks are scored by the strict protocol; a missing or a spurious mask is an IoU of 0. It draws
nothing and runs no model: scenes come from the data set, answers from the predictor. It never
prints; :class:`ScenesReport` hands out plain values and table rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pixellm.evaluation.intervals import Estimate, estimate_ratios
from pixellm.evaluation.metrics import QuestionScore, Ratio, score_masks, strict_ratios
from pixellm.evaluation.runner import Predictor, answer_dialogues
from pixellm.masks import decode_mask
from pixellm.types import SEG_MARK, BoolMask, Prediction, Sample, Turn

NameObject = Callable[[str], str | None]
"""From a phrase to the concept it names, or None."""

Progress = Callable[[int, int, float | None], None]
"""Called with scenes done, scenes in all, and the gIoU over targets so far."""

SPACE_AND_SIZE_KINDS = frozenset({"half", "relative", "nearest", "size", "instance"})
NEGATIVE_KIND = "absent"
TEXT_KINDS = frozenset({"count", "plain"})

DEFINITIONS = {
    "giou": "mean IoU over the max(predicted, true) slots of questions that have targets; "
    "missing and spurious masks are 0",
    "ciou": "summed intersection over summed union of the same slots",
    "set_accuracy": "questions with targets whose answer grounds exactly the right concepts, "
    "each as often as asked for",
    "mask_set_accuracy": "questions with targets in which every target is matched at IoU >= 0.5 "
    "and no mask is spurious",
    "precision": "masks that match a target at IoU >= 0.5, of all masks shown",
    "recall": "targets matched at IoU >= 0.5, of all targets",
    "n_acc": "questions without targets that are answered without masks",
    "t_acc": "questions with targets that are answered with at least one mask",
    "text_accuracy": "counting and plain questions answered word for word, case and "
    "punctuation aside",
    "giou_with_no_target": "giou over all questions; one without targets counts 1 when answered "
    "without masks, and each mask shown there is a 0",
    "ciou_with_no_target": "ciou over all questions",
}
"""What each score of a report means."""


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """One answer and what it is worth.

    Attributes:
        picture: number of the scene; answers of a scene are resampled together.
        kind: of the question.
        question: as asked.
        expected: the true answer, without marks.
        answer: the predicted one.
        masks: slots of the strict protocol.
        expected_names: concepts of the targets.
        given_names: concepts of the predicted segments' phrases; None for any other phrase.
        seconds: share of the batch's time.
    """

    picture: int
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
        text_right = _normalise(self.expected) == _normalise(self.answer)
        return {
            "giou": strict["giou_targets"],
            "ciou": strict["ciou_targets"],
            "set_accuracy": (float(names_right), 1.0) if self.expected_names else nothing,
            "mask_set_accuracy": strict["set_accuracy_targets"],
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
        num_scenes: pictures.
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
            "space_and_size_giou": space.scores["giou"] if space else unknown,
            "negatives_without_masks": absent.scores["n_acc"] if absent else unknown,
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
            "seconds_per_answer": self.seconds_per_answer,
            "headline": {name: asdict(estimate) for name, estimate in self.headline().items()},
            "groups": groups,
            "definitions": DEFINITIONS,
        }

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text, the header first; gIoU and set accuracy with their 95 % intervals."""
        header = ("questions", "number", "gIoU", "cIoU", "set accuracy", "mask set accuracy")
        rest = ("precision", "recall", "N-acc", "T-acc", "text", "gIoU with no-target")
        return [(*header, *rest), *(_table_row(*item) for item in self.groups.items())]


def evaluate_scenes(
    predictor: Predictor,
    split: str = "test",
    seed: int = 0,
    num_scenes: int = 500,
    batch_size: int = 16,
    progress: Progress | None = None,
    *,
    dialogues_per_image: int = 4,
) -> ScenesReport:
    """Draw scenes, put their questions to a predictor, and score its answers.

    Args:
        predictor: answers by free generation; in later turns its own earlier answers are the
            history.
        split: of the scenes data set.
        seed: of the scenes data set; any seed gives scenes that training never drew.
        num_scenes: pictures.
        batch_size: questions per call of the predictor.
        progress: told after every dialogue.
        dialogues_per_image: dialogues about each picture.

    Raises:
        ValueError: an unknown split, or answers that don't fit their questions.
        ImportError: the extra ``scenes`` is not installed.
    """
    from pixellm.data.scenes.dataset import ScenesDataset
    from pixellm.data.scenes.knowledge import load_knowledge
    from pixellm.data.scenes.questions import concept_of_phrase

    knowledge = load_knowledge()
    dataset = ScenesDataset(split, seed, num_scenes, dialogues_per_image)
    answers = score_dialogues(
        predictor,
        (dataset[i] for i in range(num_scenes)),
        lambda phrase: concept_of_phrase(phrase, knowledge),
        batch_size,
        None if progress is None else lambda done, giou: progress(done, num_scenes, giou),
    )
    return build_report(answers, split, seed)


def score_dialogues(
    predictor: Predictor,
    scenes: Iterable[Sequence[Sample]],
    name_object: NameObject,
    batch_size: int,
    on_dialogue: Callable[[int, float | None], None] | None = None,
) -> list[AnswerScore]:
    """Answer and score all dialogues of all scenes.

    Args:
        predictor: answers the questions.
        scenes: per picture its dialogues; read only as fast as they are answered.
        name_object: names the concept of a phrase.
        batch_size: questions per call of the predictor.
        on_dialogue: told after every dialogue how many scenes are done, the last perhaps in
            part, and the gIoU so far.

    Returns:
        One score per turn, in the order of scenes, dialogues and turns.

    Raises:
        ValueError: answers that don't fit their questions.
    """
    picture_of: list[int] = []
    scored: dict[int, list[AnswerScore]] = {}
    iou_sum = num_slots = 0.0
    num_begun = 0
    for answered in answer_dialogues(predictor, _flatten(scenes, picture_of), batch_size):
        picture = picture_of[answered.index]
        turns = zip(answered.sample.turns, answered.predictions, answered.seconds, strict=True)
        scored[answered.index] = [score_answer(picture, *turn, name_object) for turn in turns]
        for score in scored[answered.index]:
            ratio = score.ratios()["giou"]
            iou_sum, num_slots = iou_sum + ratio[0], num_slots + ratio[1]
        if on_dialogue is not None:
            num_begun = max(num_begun, picture + 1)
            on_dialogue(num_begun, iou_sum / num_slots if num_slots else None)
    return [score for index in sorted(scored) for score in scored[index]]


def score_answer(
    picture: int, turn: Turn, prediction: Prediction, seconds: float, name_object: NameObject
) -> AnswerScore:
    """Score one answer against the turn that it answers.

    Args:
        picture: number of the scene.
        turn: question, true answer and targets.
        prediction: the answer, masks (H, W) bool in pixels of the picture.
        seconds: the answer took.
        name_object: names the concept of a phrase.
    """
    truths = _stack([decode_mask(target.mask) for target in turn.targets], prediction.size)
    masks = _stack([segment.mask for segment in prediction.segments], prediction.size)
    return AnswerScore(
        picture=picture,
        kind=turn.kind,
        question=turn.question,
        expected=_without_marks(turn.answer),
        answer=prediction.text,
        masks=score_masks(masks, truths),
        expected_names=tuple(name_object(t.name) or t.name for t in turn.targets),
        given_names=tuple(name_object(segment.label) for segment in prediction.segments),
        seconds=seconds,
    )


def build_report(answers: Sequence[AnswerScore], split: str, seed: int) -> ScenesReport:
    """Group scores and compute intervals, resampling whole pictures."""
    pictures = sorted({answer.picture for answer in answers})
    row_of = {picture: row for row, picture in enumerate(pictures)}
    members: dict[str, list[AnswerScore]] = {"overall": []}
    for answer in answers:
        for group in _groups_of(answer):
            members.setdefault(group, []).append(answer)
    ordered = sorted(members, key=_group_order)
    table = np.zeros((len(pictures), len(ordered), len(DEFINITIONS), 2))
    for column, group in enumerate(ordered):
        for answer in members[group]:
            ratios = answer.ratios()
            table[row_of[answer.picture], column] += [ratios[name] for name in DEFINITIONS]
    flat = table.reshape(len(pictures), len(ordered) * len(DEFINITIONS), 2)
    estimates = iter(estimate_ratios(flat[..., 0], flat[..., 1]))
    groups = {
        group: GroupReport(len(members[group]), {name: next(estimates) for name in DEFINITIONS})
        for group in ordered
    }
    concepts = {name for answer in answers for name in answer.expected_names}
    seconds = sum(answer.seconds for answer in answers) / max(len(answers), 1)
    return ScenesReport(split, seed, len(pictures), len(concepts), seconds, groups, tuple(answers))


def _flatten(scenes: Iterable[Sequence[Sample]], picture_of: list[int]) -> Iterator[Sample]:
    """All dialogues in order; notes the picture of each."""
    for picture, dialogues in enumerate(scenes):
        for sample in dialogues:
            picture_of.append(picture)
            yield sample


def _stack(masks: Sequence[BoolMask], size: tuple[int, int]) -> BoolMask:
    return np.stack(masks) if masks else np.zeros((0, *size), dtype=np.bool_)


def _without_marks(answer: str) -> str:
    return re.sub(rf"\s*{re.escape(SEG_MARK)}", "", answer)


def _normalise(text: str) -> str:
    """Lower-case words only."""
    return " ".join(re.findall(r"\w+", text.casefold()))


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
    with_interval = ("giou", "set_accuracy")
    columns = [key for key in DEFINITIONS if key != "ciou_with_no_target"]
    cells = []
    for key in columns:
        estimate = group.scores[key]
        plain = "-" if estimate.value is None else f"{estimate.value:.3f}"
        cells.append(str(estimate) if key in with_interval else plain)
    return (name, str(group.num_questions), *cells)
