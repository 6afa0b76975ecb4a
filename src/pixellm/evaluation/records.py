"""One answered and scored question as a value that can be kept: in JSON, without the model.

A record holds what was asked, answered and true, all masks as run lengths, and the matches that
every score is computed from. It knows nothing of models or data sets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pixellm.answer_files import ShownMask, prediction_to_json, read_answer
from pixellm.engine.answer_file import is_bad
from pixellm.engine.run_folder import ANSWERS_FILE, answer_paths
from pixellm.evaluation.matching import Pairs
from pixellm.evaluation.metrics import (
    MaskMatch,
    Protocol,
    QuestionScore,
    match_masks,
    match_union,
    score_masks_as_released,
)
from pixellm.files import parse_json, read_lines, write_files
from pixellm.masks import decode_mask, encode_mask
from pixellm.types import BoolMask, Prediction, Sample, Segment, Target, split_marks

_BESIDE = ("sample", "image", "kind", "expected", "seconds", "num_tokens", "path", "source")
"""Fields that a line of an answers file holds as they are."""


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One question with its answer and what the answer is worth.

    Attributes:
        index: the dialogue's index in the benchmark.
        turn: the question's index in its dialogue, from 0.
        image: names the image; questions about one image are resampled together.
        expected: the true answer, without marks.
        answer: the predicted one; the true one where it was given.
        size: (height, width) of the image in pixels.
        matches: of the strict protocol, see :func:`~pixellm.evaluation.metrics.match_masks`.
        union: likewise for all masks joined, none or one.
        released: score under the released protocol; None where that was not asked for.
        seconds: the answer took, its share of a batch.
        num_tokens: of the answer; 0 where it is not known.
        num_filtered: masks that were too unsure to be shown.
        path: file of the image; "" where it was drawn.
        source: which collection the image is from; "" where unknown.
    """

    index: int
    turn: int
    num_turns: int
    sample: str
    image: str
    kind: str
    question: str
    expected: str
    answer: str
    size: tuple[int, int]
    targets: tuple[Target, ...]
    shown: tuple[ShownMask, ...]
    matches: tuple[MaskMatch, ...]
    union: tuple[MaskMatch, ...]
    released: QuestionScore | None = None
    seconds: float = 0.0
    num_tokens: int = 0
    num_filtered: int = 0
    path: str = ""
    source: str = ""

    @property
    def key(self) -> str:
        """Names the question among all of its benchmark."""
        return f"{self.sample}/{self.turn}"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A question that was not answered; it counts for no score.

    Its data can't be used, or it is too long for the model.

    Attributes:
        num_turns: of the dialogue; 1 where that is not known.
        reason: one sentence that names the file.
        sample: id of the dialogue; "" where that is not known.
        too_long: whether the model's context does not hold it; its data are sound then.
    """

    index: int
    turn: int
    num_turns: int
    reason: str
    sample: str = ""
    too_long: bool = False

    def all_turns(self) -> list[LeftOut]:
        """This question and those behind it in the dialogue."""
        return [replace(self, turn=turn) for turn in range(self.turn, self.num_turns)]

    @property
    def key(self) -> str:
        """Names the question among all of its benchmark; "" where the dialogue is not known."""
        return f"{self.sample}/{self.turn}" if self.sample else ""

    def to_json(self) -> dict[str, Any]:
        """As a line of an answers file has it."""
        numbers = {"row": self.index, "num_turns": self.num_turns, "turn": self.turn}
        why = {"too_long": True} if self.too_long else {}
        return {**numbers, **why, "error": self.reason, "id": self.key}


class RunAnswers(NamedTuple):
    """Questions of a run that were answered, and those left out, in the benchmark's order."""

    records: list[AnswerRecord]
    left_out: list[LeftOut]


def build_record(
    sample: Sample,
    index: int,
    number: int,
    prediction: Prediction,
    seconds: float,
    *,
    protocol: Protocol = "strict",
    pairs: Pairs | None = None,
) -> AnswerRecord:
    """Score an answer, masks (H, W) bool in pixels of the image, to a turn of a dialogue.

    Pixels that the targets mark as ignored (ReasonSeg, crowds) are taken out of all masks first; a
    mask that lies there by half or more and touches no target is no spurious one. The protocol
    "released" also scores the logits that the prediction carries. ``pairs`` say which mask answers
    which target, where the answer was given; they are matched where None.

    Raises:
        ValueError: logits are needed but missing, or masks differ in size.
    """
    turn = sample.turns[number]
    path = str(sample.image) if isinstance(sample.image, Path) else ""
    size = (int(prediction.size[0]), int(prediction.size[1]))
    truths = stack_masks([decode_mask(target.mask) for target in turn.targets], size)
    shown = stack_masks([segment.mask for segment in prediction.segments], size)
    ignored = ignored_pixels(turn.targets, size)
    scores = [float(segment.score) for segment in prediction.segments]
    return AnswerRecord(
        index=index,
        turn=number,
        num_turns=len(sample.turns),
        sample=sample.id,
        # Dialogues about one drawn scene are called SCENE-0, SCENE-1 and so on.
        image=path or sample.id.rpartition("-")[0] or sample.id,
        kind=turn.kind,
        question=turn.question,
        expected=split_marks(turn.answer)[0],
        answer=prediction.text,
        size=size,
        targets=turn.targets,
        shown=tuple(
            ShownMask(s.label, float(s.score), s.span, encode_mask(s.mask))
            for s in prediction.segments
        ),
        matches=_score_what_counts(shown, truths, ignored, scores, pairs),
        union=match_union(shown & ~ignored, truths, scores),
        released=_score_as_released(prediction, truths) if protocol == "released" else None,
        seconds=seconds,
        num_tokens=int(prediction.info.get("num_tokens", 0)),
        num_filtered=int(prediction.info.get("num_filtered", 0)),
        path=path,
        source=sample.source,
    )


def record_to_json(record: AnswerRecord, model: str = "", image: str = "") -> dict[str, Any]:
    """The record as a line of an answers file: the answer, and beside it what it was scored on.

    Without a name the image is called by its path, or by the sample where it was drawn.

    Returns:
        ``row`` (the dialogue's index), ``num_turns``, ``turn``, ``id``, then what
        :func:`~pixellm.answer_files.prediction_to_json` gives, and under ``evaluation`` the rest.
    """
    shown = [Segment(s.label, decode_mask(s.mask), s.score, s.span) for s in record.shown]
    info = {"num_filtered": record.num_filtered}
    answer = Prediction(record.answer, tuple(shown), record.question, record.size, info)
    beside = {name: getattr(record, name) for name in _BESIDE}
    beside["targets"] = [asdict(target) for target in record.targets]
    beside["released"] = None if record.released is None else asdict(record.released)
    # Fields in order: names would be most of a file of many matches.
    beside["slots"] = [astuple(match) for match in record.matches]
    beside["union"] = [astuple(match) for match in record.union]
    return {
        "row": record.index,
        "num_turns": record.num_turns,
        "turn": record.turn,
        "id": record.key,
        **prediction_to_json(answer, image or record.path or record.sample, model),
        "evaluation": beside,
    }


def record_from_json(values: Mapping[str, Any]) -> AnswerRecord:
    """The way back; other values raise ValueError, LookupError, TypeError or AttributeError."""
    answer, beside = read_answer(values), values["evaluation"]
    if answer is None:
        raise ValueError("it tells a problem instead of an answer")
    released = beside["released"]
    if released is not None:
        released = QuestionScore(**{**released, "pair_ious": tuple(released["pair_ious"])})
    return AnswerRecord(
        index=values["row"],
        turn=values["turn"],
        num_turns=values["num_turns"],
        question=answer.question,
        answer=answer.answer,
        size=answer.size,
        targets=tuple(Target(**target) for target in beside["targets"]),
        shown=answer.segments,
        matches=tuple(MaskMatch(*match) for match in beside["slots"]),
        union=tuple(MaskMatch(*match) for match in beside["union"]),
        released=released,
        num_filtered=answer.withheld,
        **{name: beside[name] for name in _BESIDE},
    )


def read_run(folder: Path) -> RunAnswers:
    """All complete dialogues of a run, in the order of the benchmark.

    A last line that was cut short and a dialogue that lacks a turn are passed over: they will be
    asked again. What processes of a killed run left in parts counts too.

    Raises:
        ValueError: a damaged line, or answers in another form.
    """
    dialogues: dict[int, dict[int, AnswerRecord | LeftOut]] = {}
    for path in answer_paths(folder):
        for number, line in read_lines(path):
            try:
                record = _from_line(parse_json(line))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"Line {number} of {path} is damaged; delete that line, and its question is "
                    "asked again."
                ) from error
            dialogues.setdefault(record.index, {}).setdefault(record.turn, record)
    complete = [
        turns[turn]
        for index, turns in sorted(dialogues.items())
        if len(turns) == next(iter(turns.values())).num_turns
        for turn in sorted(turns)
    ]
    return RunAnswers(
        [one for one in complete if isinstance(one, AnswerRecord)],
        [one for one in complete if isinstance(one, LeftOut)],
    )


def _from_line(values: Any) -> AnswerRecord | LeftOut:
    if not (isinstance(values, dict) and is_bad(values)):
        return record_from_json(values)
    numbers = values["row"], values["turn"], values["num_turns"]
    sample = values["id"].rpartition("/")[0]
    too_long = values.get("too_long") is True
    return LeftOut(*numbers, str(values["error"]), sample, too_long)


def write_run(folder: Path, answers: RunAnswers, model: str) -> None:
    """Write the answers of a whole run at once."""
    values = [record_to_json(record, model) for record in answers.records]
    values += [one.to_json() for one in answers.left_out]
    values.sort(key=lambda one: (one["row"], one["turn"]))
    lines = "".join(json.dumps(one) + "\n" for one in values)
    write_files({folder / ANSWERS_FILE: lines.encode("ascii")})


def stack_masks(masks: Sequence[BoolMask], size: tuple[int, int]) -> BoolMask:
    """(N, H, W) bool; N may be 0."""
    return np.stack(masks) if len(masks) else np.zeros((0, *size), dtype=np.bool_)


def ignored_pixels(targets: Sequence[Target], size: tuple[int, int]) -> BoolMask:
    """(H, W) bool pixels that a question's scores leave out; what a target claims always counts."""
    regions = [decode_mask(target.ignore) for target in targets if target.ignore is not None]
    if not regions:
        return np.zeros(size, dtype=np.bool_)
    claimed = np.logical_or.reduce([decode_mask(target.mask) for target in targets])
    return np.asarray(np.logical_or.reduce(regions) & ~claimed)


def _score_what_counts(
    shown: BoolMask, truths: BoolMask, ignored: BoolMask, scores: list[float], pairs: Pairs | None
) -> tuple[MaskMatch, ...]:
    """Matches over the pixels that count, of the masks that count."""
    kept = [*range(len(shown))]
    if pairs is None and ignored.any():
        claimed = truths.any(axis=0)
        kept = [
            i
            for i, mask in enumerate(shown)
            if (mask & claimed).any() or 2 * (mask & ignored).sum() < max(mask.sum(), 1)
        ]
    matches = match_masks(shown[kept] & ~ignored, truths, [scores[i] for i in kept], pairs)
    return tuple(
        match if match.prediction is None else replace(match, prediction=kept[match.prediction])
        for match in matches
    )


def _score_as_released(prediction: Prediction, truths: BoolMask) -> QuestionScore:
    """By the release's MUSE scorer, which knows no ignored pixels: all of them count here."""
    logits = prediction.info.get("logits")
    if logits is None:
        if prediction.segments:
            raise ValueError(
                f"The answer to {prediction.question!r} carries no mask logits; the released "
                "protocol can't score masks alone, use strict."
            )
        logits = np.zeros((0, *prediction.size), dtype=np.float32)
    return score_masks_as_released(np.asarray(logits, dtype=np.float32), truths)
