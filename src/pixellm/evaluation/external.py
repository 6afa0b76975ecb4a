"""Other systems: a benchmark's questions out, their predictions in, records and scores of them.

The form of both files is in ``docs/external-predictions.md``. Questions are named as everywhere:
``SAMPLE_ID/TURN``. Predictions are checked as what comes from outside, and scored exactly as a
benchmark scores a model of ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict, Field

from pixellm.answer_files import SavedAnswer, read_answer
from pixellm.data.dataset import Row
from pixellm.data.json_values import inner_path
from pixellm.engine.dialogues import AnsweredDialogue
from pixellm.evaluation.evaluate import Evaluation, score_dialogue
from pixellm.evaluation.judge import Judge
from pixellm.evaluation.judgement import JudgedScores, Judgement, judge_records, rejected_of
from pixellm.evaluation.left_out import (
    NothingAnsweredError,
    describe_left_out,
    open_question,
)
from pixellm.evaluation.metrics import score_masks_as_released
from pixellm.evaluation.records import AnswerRecord, LeftOut, stack_masks
from pixellm.evaluation.scores import Rules
from pixellm.files import STANDARD, new_folder, parse_json, read_input
from pixellm.llm.run import RequestProgress
from pixellm.masks import decode_mask, segmentation_to_rle
from pixellm.processing.phrases import phrase_before
from pixellm.types import SEG_MARK, Prediction, Sample, Segment, join_marks, split_marks

CONFIDENT_LOGIT = 20.0
"""Run lengths carry no logits; the released protocol takes them as +20 inside and -20 outside."""

QUESTIONS_NAME = "questions.jsonl"


class PredictionRow(Row):
    """A line of a file of predictions; see ``docs/external-predictions.md``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    noun = "prediction"

    id: str
    text: str = ""
    masks: list[Any]
    scores: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    logits: str | None = None

    @classmethod
    def of(cls, answer: SavedAnswer) -> Self:
        """An answer of `pixellm predict` in the form of a prediction."""
        shown = answer.segments
        return cls(
            id=answer.id,
            text=join_marks(answer.answer, [one.span for one in shown]),
            masks=[one.mask for one in shown],
            scores=[one.score for one in shown],
        )


_NO_ANSWER = PredictionRow(id="", masks=[])


@dataclass(frozen=True, slots=True)
class ExternalScores:
    """What another system's predictions are worth.

    Attributes:
        records: of every question, in order, without a judge.
        left_out: questions that are not scored, since their data can't be used.
        judgement: the records as judged, with the ratings; None without a judge.
    """

    records: list[AnswerRecord]
    left_out: list[LeftOut]
    judgement: Judgement | None
    num_missing: int

    def judged(self, evaluation: Evaluation) -> JudgedScores | None:
        """The scores without and with the judge; None without one."""
        if self.judgement is None:
            return None
        judged = evaluation.run.summarize(self.judgement.records)
        return JudgedScores(self.judgement, evaluation.summary, judged)


def score_predictions(
    predictions: ExternalPredictions,
    samples: Sequence[Sample],
    rules: Rules,
    *,
    judge: Judge | None = None,
    allow_missing: bool = False,
    progress: RequestProgress | None = None,
) -> ExternalScores:
    """Score another system's predictions of a benchmark's dialogues, in the mode "free".

    Questions without a prediction count as answered without masks where ``allow_missing`` is on,
    and are an error otherwise.

    Raises:
        NothingAnsweredError: there is no question whose data can be used.
        ValueError: predictions that don't fit the questions, or texts without marks for a judge.
        OSError: the judge can't be asked.
    """
    asked, left_out = {}, []
    for index in range(len(samples)):
        found = open_question(samples, index)
        if isinstance(found, LeftOut):
            left_out += found.all_turns()
        else:
            asked[index] = [question_id(found, number) for number in range(len(found.turns))]
    if not asked:
        raise NothingAnsweredError(f"There is no question to score. {describe_left_out(left_out)}")
    ids = [key for keys in asked.values() for key in keys]
    unasked = {one.key for one in left_out}
    missing = predictions.check_questions(ids, unasked, allow_missing=allow_missing)
    records: list[AnswerRecord] = []
    for index in asked:
        sample = samples[index]
        answers = [*_answers(predictions, sample, needs_phrases=judge is not None)]
        dialogue = AnsweredDialogue(index, sample, answers, [0.0] * len(answers))
        records += score_dialogue(dialogue, index, rules)
    if judge is None:
        return ExternalScores(records, left_out, None, missing)
    judgement = judge_records(judge, records, samples, progress)
    if rules.protocol == "released":
        judgement = _rejudge_released(judgement, predictions, samples)
    return ExternalScores(records, left_out, judgement, missing)


def _answers(
    predictions: ExternalPredictions, sample: Sample, *, needs_phrases: bool
) -> Iterator[Prediction]:
    for number, turn in enumerate(sample.turns):
        key = question_id(sample, number)
        answer = predictions.predict(key, turn.question, sample.size)
        if needs_phrases and any(segment.span == (0, 0) for segment in answer.segments):
            raise ValueError(
                f"{predictions.path}: the text of {key!r} has no {SEG_MARK} behind the phrase of "
                "each mask, so a judge can't tell what the masks are meant to be; add the marks, "
                "or pass --judge none."
            )
        yield answer


def _rejudge_released(
    judgement: Judgement, predictions: ExternalPredictions, samples: Sequence[Sample]
) -> Judgement:
    """Scores of the released protocol with the rejected masks at intersection 0."""
    judged = []
    for record, masks in zip(judgement.records, judgement.masks, strict=True):
        if rejected := rejected_of(masks):
            turn = samples[record.index].turns[record.turn]
            logits = predictions.predict(record.key, turn.question, record.size).info["logits"]
            truths = stack_masks([decode_mask(t.mask) for t in turn.targets], record.size)
            released = score_masks_as_released(logits, truths, rejected)
            record = replace(record, released=released)
        judged.append(record)
    return replace(judgement, records=tuple(judged))


def scores_to_dict(
    evaluation: Evaluation, judged: JudgedScores | None, num_missing: int
) -> dict[str, Any]:
    """Everything but the single answers, as values that JSON knows."""
    return {
        "settings": evaluation.run.settings(),
        "num_missing": num_missing,
        "left_out": [one.to_json() for one in evaluation.left_out],
        "headline": [*evaluation.run.benchmark.headline],
        "without_judge": evaluation.summary.to_dict(),
        "with_judge": None if judged is None else judged.judged.to_dict(),
        "judge": None if judged is None else judged.judgement.summary,
    }


def question_id(sample: Sample, number: int) -> str:
    """Names a question among all of its benchmark."""
    return f"{sample.id}/{number}"


def question_to_json(sample: Sample, number: int, image: str) -> dict[str, Any]:
    """What another system is told about a question; nothing of its answer.

    It has ``id``, ``image``, ``width`` and ``height`` in pixels, ``question`` and ``history``, the
    true earlier turns as [question, answer] pairs.
    """
    earlier = sample.turns[:number]
    return {
        "id": question_id(sample, number),
        "image": image,
        "width": sample.size[1],
        "height": sample.size[0],
        "question": sample.turns[number].question,
        "history": [[turn.question, split_marks(turn.answer)[0]] for turn in earlier],
    }


class ExternalPredictions:
    """A file of predictions: checked as a whole, its masks decoded when asked for.

    It holds JSON, one object a line, or the answers of `pixellm predict`; "-" is standard input.

    Raises:
        ValueError: a line that is no prediction, or two for one question; names the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if str(path) != STANDARD and (path.is_dir() or not path.exists()):
            raise FileNotFoundError(f"There are no predictions at {path}; pass a JSONL file.")
        self._lines: dict[str, tuple[int, PredictionRow]] = {}
        for number, line in enumerate(read_input(path).split(b"\n"), start=1):
            if line.strip():
                self._add(number, line)

    def __len__(self) -> int:
        return len(self._lines)

    def check_questions(
        self, ids: Sequence[str], left_out: Set[str] = frozenset(), *, allow_missing: bool
    ) -> int:
        """Compare the questions answered with those asked; gives how many have no prediction.

        Those in ``left_out`` are not scored, answered or not.

        Raises:
            ValueError: a prediction for a question that was not asked, or none for one that was
                and ``allow_missing`` is off.
        """
        asked = set(ids)
        stray = next((key for key in self._lines if key not in asked | left_out), None)
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

    def predict(self, key: str, question: str, size: tuple[int, int]) -> Prediction:
        """The answer to a question by its id, about an image of (height, width); empty without one.

        Mask logits are in its ``info``. Where the text has no marks, segments have no label and the
        span (0, 0).

        Raises:
            ValueError: masks, scores or logits that don't fit the image; names the line.
        """
        number, row = self._lines.get(key, (0, _NO_ANSWER))
        try:
            return self._decode(row, question, size)
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"{self.path}, line {number}: {error}") from error

    def _add(self, number: int, line: bytes) -> None:
        where = f"{self.path}, line {number}"
        try:
            values = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON ({error}); write one object a line.") from error
        try:
            if isinstance(values, dict) and "row" in values:  # of `pixellm predict`
                answer = read_answer(values)
                if answer is None:
                    return
                row = PredictionRow.of(answer)
            else:
                row = PredictionRow.read(values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if row.id in self._lines:
            first = self._lines[row.id][0]
            raise ValueError(f"{where} answers {row.id!r} again, after line {first}.")
        self._lines[row.id] = (number, row)

    def _decode(self, row: PredictionRow, question: str, size: tuple[int, int]) -> Prediction:
        masks = [decode_mask(segmentation_to_rle(mask, size)) for mask in row.masks]
        text, clauses = split_marks(row.text)
        spans = [phrase_before(text, end, start) for start, end in clauses]
        if spans and len(spans) != len(masks):
            raise ValueError(
                f"the text holds {len(spans)} {SEG_MARK} marks for {len(masks)} masks; mark each "
                "mask's phrase, or none."
            )
        scores = [1.0] * len(masks) if row.scores is None else row.scores
        if len(scores) != len(masks):
            raise ValueError(f"there are {len(scores)} scores for {len(masks)} masks.")
        stacked = stack_masks(masks, size)
        if row.logits is None:
            logits = np.where(stacked, CONFIDENT_LOGIT, -CONFIDENT_LOGIT).astype(np.float32)
        else:
            logits = _read_logits(self.path.parent / inner_path(row.logits), stacked.shape)
        parts = zip(masks, scores, spans or [(0, 0)] * len(masks), strict=True)
        segments = tuple(Segment(text[a:b], mask, score, (a, b)) for mask, score, (a, b) in parts)
        return Prediction(text, segments, question, size, {"logits": logits})


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


def write_questions(samples: Sequence[Sample], out: Path) -> tuple[int, list[LeftOut]]:
    """Write ``questions.jsonl``, and ``images/*.png`` of images that were drawn, into a new folder.

    Images with files stay where they are. Gives how many questions were written, and those that are
    left out, as their data can't be used.

    Raises:
        NothingAnsweredError: there is no question whose data can be used.
        FileExistsError: the folder is not empty.
    """
    count, left_out = 0, []
    with new_folder(out) as folder, (folder / QUESTIONS_NAME).open("w", encoding="utf-8") as file:
        for index in range(len(samples)):
            sample = open_question(samples, index)
            if isinstance(sample, LeftOut):
                left_out += sample.all_turns()
                continue
            image = _place_image(sample, folder)
            for number in range(len(sample.turns)):
                line = question_to_json(sample, number, image)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
        if not count:
            raise NothingAnsweredError(
                f"There is no question to ask. {describe_left_out(left_out)}"
            )
    return count, left_out


def _place_image(sample: Sample, folder: Path) -> str:
    """The image's path, relative to the folder where it was drawn and written there."""
    if not isinstance(sample.image, np.ndarray):
        return str(Path(sample.image).absolute())
    name = f"images/{sample.id.rpartition('-')[0] or sample.id}.png"
    path = folder / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(sample.image).save(path)
    return name
