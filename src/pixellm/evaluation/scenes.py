"""Evaluates a predictor on scenes by free generation: masks, names and texts of its answers.

Masks are scored by the strict protocol; a missing or a spurious mask is an IoU of 0. It draws
nothing and runs no model: scenes come from the data set, answers from the predictor. It never
prints; the report that it returns hands out plain values and table rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from pixellm.engine.dialogues import Predictor, answer_dialogues
from pixellm.evaluation.metrics import score_masks, sum_matches
from pixellm.evaluation.records import AnswerRecord, stack_masks
from pixellm.evaluation.scenes_report import AnswerScore, ScenesReport, build_report
from pixellm.masks import decode_mask
from pixellm.types import Prediction, Sample, Turn, split_marks

NameObject = Callable[[str], str | None]
"""From a phrase to the concept it names, or None."""

Progress = Callable[[int, int, float | None], None]
"""Called with scenes done, scenes in all, and the gIoU over targets so far."""


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
        num_scenes: images.
        batch_size: questions per call of the predictor.
        progress: told after every dialogue.
        dialogues_per_image: dialogues about each image.

    Raises:
        ValueError: an unknown split, or answers that don't fit their questions.
        ImportError: the extra ``scenes`` is not installed.
    """
    from pixellm.scenes.dataset import ScenesDataset
    from pixellm.scenes.knowledge import load_knowledge
    from pixellm.scenes.phrasing import concept_of_phrase

    knowledge = load_knowledge()
    dataset = ScenesDataset(
        split=split, seed=seed, length=num_scenes, dialogues_per_image=dialogues_per_image
    )
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
        scenes: per image its dialogues; read only as fast as they are answered.
        name_object: names the concept of a phrase.
        batch_size: questions per call of the predictor.
        on_dialogue: told after every dialogue how many scenes are done, the last perhaps in
            part, and the gIoU so far.

    Returns:
        One score per turn, in the order of scenes, dialogues and turns.

    Raises:
        ValueError: answers that don't fit their questions.
    """
    image_of: list[int] = []
    scored: dict[int, list[AnswerScore]] = {}
    iou_sum = num_slots = 0.0
    num_begun = 0
    for answered in answer_dialogues(predictor, _flatten(scenes, image_of), batch_size):
        image = image_of[answered.index]
        turns = zip(answered.sample.turns, answered.predictions, answered.seconds, strict=True)
        scored[answered.index] = [score_answer(image, *turn, name_object) for turn in turns]
        for score in scored[answered.index]:
            ratio = score.ratios()["giou"]
            iou_sum, num_slots = iou_sum + ratio[0], num_slots + ratio[1]
        if on_dialogue is not None:
            num_begun = max(num_begun, image + 1)
            on_dialogue(num_begun, iou_sum / num_slots if num_slots else None)
    return [score for index in sorted(scored) for score in scored[index]]


def report_records(records: Sequence[AnswerRecord], split: str, seed: int) -> ScenesReport:
    """The report on scenes from kept records; their masks were scored when they were answered.

    Args:
        records: of a run of the benchmark ``scenes``.
        split: of the scenes data set.
        seed: of the scenes data set.

    Raises:
        ImportError: the extra ``scenes`` is not installed.
    """
    from pixellm.scenes.knowledge import load_knowledge
    from pixellm.scenes.phrasing import concept_of_phrase

    knowledge = load_knowledge()
    numbers: dict[str, int] = {}
    answers = []
    for record in records:
        names = [concept_of_phrase(target.name, knowledge) for target in record.targets]
        answers.append(
            AnswerScore(
                image=numbers.setdefault(record.image, len(numbers)),
                kind=record.kind,
                question=record.question,
                expected=record.expected,
                answer=record.answer,
                masks=sum_matches(record.matches),
                expected_names=tuple(
                    name or target.name for name, target in zip(names, record.targets, strict=True)
                ),
                given_names=tuple(concept_of_phrase(m.label, knowledge) for m in record.shown),
                seconds=record.seconds,
            )
        )
    return build_report(answers, split, seed)


def score_answer(
    image: int, turn: Turn, prediction: Prediction, seconds: float, name_object: NameObject
) -> AnswerScore:
    """Score one answer against the turn that it answers.

    Args:
        image: number of the scene.
        turn: question, true answer and targets.
        prediction: the answer, masks (H, W) bool in pixels of the image.
        seconds: the answer took.
        name_object: names the concept of a phrase.
    """
    truths = stack_masks([decode_mask(target.mask) for target in turn.targets], prediction.size)
    masks = stack_masks([segment.mask for segment in prediction.segments], prediction.size)
    return AnswerScore(
        image=image,
        kind=turn.kind,
        question=turn.question,
        expected=split_marks(turn.answer)[0],
        answer=prediction.text,
        masks=score_masks(masks, truths),
        expected_names=tuple(name_object(t.name) or t.name for t in turn.targets),
        given_names=tuple(name_object(segment.label) for segment in prediction.segments),
        seconds=seconds,
    )


def _flatten(scenes: Iterable[Sequence[Sample]], image_of: list[int]) -> Iterator[Sample]:
    """All dialogues in order; notes the image of each."""
    for image, dialogues in enumerate(scenes):
        for sample in dialogues:
            image_of.append(image)
            yield sample
