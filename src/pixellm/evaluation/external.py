"""Predictions of any other system, from one JSON object a line to scores with intervals.

The file's form is in ``docs/external-predictions.md``. Questions are named as everywhere:
``SAMPLE_ID/TURN``. What made the predictions is nobody's business here; they are checked as what
comes from outside, and scored by the same :class:`~pixellm.evaluation.metrics.MuseScorer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixellm.evaluation.intervals import Estimate
from pixellm.evaluation.judge import (
    JudgeItem,
    JudgeProgress,
    JudgeSettings,
    Ratings,
    describe_targets,
    open_judge,
    summarise_ratings,
)
from pixellm.evaluation.matching import Pairs, match_by_iou, match_by_released_cost
from pixellm.evaluation.metrics import MuseScorer, Protocol
from pixellm.evaluation.records import stack_masks, without_marks
from pixellm.masks import decode_mask, segmentation_to_rle
from pixellm.processing.phrases import phrase_before
from pixellm.types import SEG_MARK, BoolMask, Sample, Turn

CONFIDENT_LOGIT = 20.0
"""Run lengths carry no logits; the released protocol takes them as +20 inside and -20 outside."""

_KEYS = frozenset({"id", "text", "masks", "logits"})


@dataclass(frozen=True, slots=True)
class ExternalAnswer:
    """One answer of another system.

    Attributes:
        text: without marks.
        masks: (P, H, W) bool in pixels of the original picture.
        spans: per mask the phrase that it grounds; None where the text has no marks.
        logits: (P, H, W) float32, where the system gives them.
    """

    text: str
    masks: BoolMask
    spans: tuple[tuple[int, int], ...] | None = None
    logits: NDArray[np.float32] | None = None

    def mask_logits(self) -> NDArray[np.float32]:
        """The logits, or what stands for them."""
        if self.logits is not None:
            return self.logits
        return np.where(self.masks, CONFIDENT_LOGIT, -CONFIDENT_LOGIT).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ExternalQuestion:
    """A question as another system is asked it, and the truth.

    Attributes:
        id: ``SAMPLE_ID/TURN``.
        picture: names the picture; its questions are resampled together.
        size: (height, width) of the picture.
        turn: question, true answer and targets.
    """

    id: str
    picture: str
    size: tuple[int, int]
    turn: Turn


def list_questions(samples: Iterable[Sample]) -> Iterator[ExternalQuestion]:
    """All questions of a benchmark in order."""
    for sample in samples:
        path = str(sample.image) if isinstance(sample.image, Path) else ""
        picture = path or sample.id.rpartition("-")[0] or sample.id
        for number, turn in enumerate(sample.turns):
            yield ExternalQuestion(f"{sample.id}/{number}", picture, sample.size, turn)


def question_to_json(sample: Sample, number: int, image: str) -> dict[str, Any]:
    """What another system is told about a question; nothing of its answer.

    Args:
        sample: the dialogue.
        number: of the turn in it.
        image: path of the picture.

    Returns:
        ``id``, ``image``, ``width``, ``height``, ``question`` and ``history``, the true earlier
        turns as [question, answer] pairs.
    """
    earlier = sample.turns[:number]
    return {
        "id": f"{sample.id}/{number}",
        "image": image,
        "width": sample.size[1],
        "height": sample.size[0],
        "question": sample.turns[number].question,
        "history": [[turn.question, without_marks(turn.answer)] for turn in earlier],
    }


class ExternalPredictions:
    """A file of predictions: checked as a whole, its masks decoded when asked for.

    Args:
        path: JSON, one object a line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no prediction, or two for one question; names the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"There are no predictions at {path}; pass a JSONL file.")
        self._lines: dict[str, tuple[int, dict[str, Any]]] = {}
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._add(number, line)

    def __len__(self) -> int:
        return len(self._lines)

    def check_questions(self, ids: Sequence[str], *, allow_missing: bool) -> int:
        """Compare the questions answered with those asked.

        Returns:
            How many have no prediction.

        Raises:
            ValueError: a prediction for a question that was not asked, or none for one that was
                and ``allow_missing`` is off.
        """
        asked = set(ids)
        stray = next((key for key in self._lines if key not in asked), None)
        if stray is not None:
            raise ValueError(
                f"{self.path}, line {self._lines[stray][0]}: there is no question {stray!r} "
                f"among the {len(asked)} asked; give the same data, split and number."
            )
        missing = [key for key in ids if key not in self._lines]
        if missing and not allow_missing:
            raise ValueError(
                f"{self.path} answers {len(ids) - len(missing)} of {len(ids)} questions; the "
                f"first without an answer is {missing[0]!r}; add them, or pass --allow-missing "
                "to count them as answered without masks."
            )
        return len(missing)

    def answer(self, question: ExternalQuestion) -> ExternalAnswer:
        """The answer to a question; an empty one where there is none.

        Raises:
            ValueError: masks or logits that don't fit the picture; names the line.
        """
        number, values = self._lines.get(question.id, (0, {"text": "", "masks": []}))
        try:
            return self._decode(values, question.size)
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path}, line {number}: {error}") from error

    def _add(self, number: int, line: str) -> None:
        where = f"{self.path}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}); write one object a line.") from error
        if not isinstance(values, dict) or not isinstance(values.get("id"), str):
            raise ValueError(f'{where} must be an object with the question\'s "id".')
        if unknown := sorted(values.keys() - _KEYS):
            raise ValueError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}.")
        if not isinstance(values.get("text", ""), str):
            raise ValueError(f'{where}: "text" must be a string.')
        if not isinstance(values.get("masks"), list):
            raise ValueError(f'{where}: "masks" must be a list, empty for no mask.')
        if values["id"] in self._lines:
            first = self._lines[values["id"]][0]
            raise ValueError(f"{where} answers {values['id']!r} again, after line {first}.")
        self._lines[values["id"]] = (number, values)

    def _decode(self, values: Mapping[str, Any], size: tuple[int, int]) -> ExternalAnswer:
        masks = [decode_mask(segmentation_to_rle(mask, size)) for mask in values["masks"]]
        stacked = stack_masks(masks, size)
        text, spans = read_marks(values.get("text", ""))
        if spans and len(spans) != len(masks):
            raise ValueError(
                f"the text holds {len(spans)} {SEG_MARK} marks for {len(masks)} masks; mark each "
                "mask's phrase, or none."
            )
        logits = None
        if "logits" in values:
            logits = _read_logits(self.path.parent / str(values["logits"]), stacked.shape)
        return ExternalAnswer(text, stacked, spans if len(spans) == len(masks) else None, logits)


def read_marks(marked: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text without its ``{seg}`` marks, and the phrase in front of each."""
    text, spans = "", list[tuple[int, int]]()
    *pieces, rest = marked.split(SEG_MARK)
    for piece in pieces:
        start = len(text)
        text += piece.rstrip()
        spans.append(phrase_before(text, len(text), start))
    return text + rest, tuple(spans)


def _read_logits(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        logits = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"there are no logits at {path}.") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of numbers ({error}).") from error
    if not isinstance(logits, np.ndarray) or logits.shape != shape:
        found = getattr(logits, "shape", "several arrays")
        raise ValueError(f"{path} holds {found}, the masks are {shape}.")
    if not (np.issubdtype(logits.dtype, np.floating) and np.isfinite(logits).all()):
        raise ValueError(f"{path} must hold finite floating-point numbers.")
    return logits.astype(np.float32)


@dataclass(frozen=True, slots=True)
class ExternalReport:
    """Scores of another system's predictions.

    Attributes:
        protocol: "strict" or "released".
        counts: pictures, questions, predictions, targets, and questions without a prediction.
        scores: name -> score with its 95 % interval, without a judge.
        judged: likewise with the judge; empty without one.
        judge: its name and what it did; empty without one.
    """

    protocol: Protocol
    counts: dict[str, int]
    scores: dict[str, Estimate]
    judged: dict[str, Estimate]
    judge: dict[str, float | int | str]

    def to_dict(self) -> dict[str, Any]:
        """Everything as values that JSON knows."""
        return {
            "protocol": self.protocol,
            "interval": "95 %, bootstrap over pictures",
            "counts": self.counts,
            "scores": {name: asdict(score) for name, score in self.scores.items()},
            "judged": {name: asdict(score) for name, score in self.judged.items()},
            "judge": self.judge,
        }

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text, the header first; scores that nothing counts for are left out."""
        names = [name for name, score in self.scores.items() if score.value is not None]
        if not self.judged:
            return [("score", self.protocol), *((n, str(self.scores[n])) for n in names)]
        rows = ((n, str(self.scores[n]), str(self.judged[n])) for n in names)
        return [("score", self.protocol, f"with judge {self.judge['judge']}"), *rows]


def score_predictions(
    predictions: ExternalPredictions,
    samples: Sequence[Sample],
    *,
    protocol: Protocol = "strict",
    judge: JudgeSettings | None = None,
    allow_missing: bool = False,
    progress: JudgeProgress | None = None,
) -> ExternalReport:
    """Score another system's predictions.

    Args:
        predictions: one for each question.
        samples: the questions with their truth, those about one picture next to each other.
        protocol: "strict" or "released".
        judge: rates the answers; scores with and without it are reported.
        allow_missing: count questions without a prediction as answered without masks.
        progress: told about the judge's work.

    Raises:
        ValueError: predictions that don't fit the questions, or texts without marks for a judge.
        ImportError: scipy is missing.
    """
    questions = list(list_questions(samples))
    missing = predictions.check_questions([q.id for q in questions], allow_missing=allow_missing)
    judge = judge or JudgeSettings()
    opened = open_judge(judge)
    ratings: dict[str, Ratings] = {}
    summary: dict[str, float | int | str] = {}
    if opened is not None:
        items = [_judge_item(predictions, question, protocol) for question in questions]
        rated = opened.rate(items, progress)
        ratings = {question.id: row for question, row in zip(questions, rated, strict=True)}
        summary = summarise_ratings(opened.name, judge.threshold, items, rated)
    plain, judged = (MuseScorer(protocol, judge.threshold) for _ in range(2))
    for _, group in groupby(questions, key=lambda question: question.picture):
        rows = [(question, predictions.answer(question)) for question in group]
        pairs = [(q.id, *_arrays(q, answer, protocol)) for q, answer in rows]
        plain.update([(masks, truths) for _, masks, truths in pairs])
        if opened is not None:
            judged.update([_with_ratings(ratings.get(key), *rest) for key, *rest in pairs])
    scores = plain.compute()
    counts = {name: int(value or 0) for name, value in scores.items() if name.startswith("num_")}
    return ExternalReport(
        protocol,
        {**counts, "num_missing": missing},
        plain.estimate(),
        {} if opened is None else judged.estimate(),
        summary,
    )


def _arrays(
    question: ExternalQuestion, answer: ExternalAnswer, protocol: Protocol
) -> tuple[NDArray[Any], BoolMask]:
    """Predictions as the protocol takes them, and truths."""
    truths = stack_masks([decode_mask(t.mask) for t in question.turn.targets], question.size)
    return answer.masks if protocol == "strict" else answer.mask_logits(), truths


def _with_ratings(ratings: Ratings, masks: NDArray[Any], truths: BoolMask) -> Any:
    return (masks, truths) if ratings is None else (masks, truths, ratings)


def _judge_item(
    predictions: ExternalPredictions, question: ExternalQuestion, protocol: Protocol
) -> JudgeItem:
    answer = predictions.answer(question)
    if answer.spans is None:
        raise ValueError(
            f"{predictions.path}: the text of {question.id!r} has no {SEG_MARK} behind the phrase "
            "of each mask, so a judge can't tell what the masks are meant to be; add the marks, "
            "or pass --judge none."
        )
    masks, truths = _arrays(question, answer, protocol)
    match = match_by_iou if protocol == "strict" else match_by_released_cost
    pairs: Pairs = match(masks, truths)
    turn = question.turn
    return JudgeItem.from_pairs(
        turn.question, answer.text, answer.spans, pairs, describe_targets(turn)
    )
