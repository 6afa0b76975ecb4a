"""Scored answers for tests of judges: two masks that match, one that matches nothing."""

from __future__ import annotations

import numpy as np
from hand_made_scenes import APPLE, CUP, PEAR, SIZE, cell_mask

from pixellm.evaluation.judge import JudgeItem, judge_item
from pixellm.evaluation.judgement import Judgement
from pixellm.evaluation.records import AnswerRecord, build_record
from pixellm.masks import decode_mask
from pixellm.types import Prediction, Sample, Segment, Turn

QUESTION = Turn("Which fruit is there?", "The apple {seg} and the pear {seg}.", (APPLE, PEAR))


def fruit_prediction(second: str = "the pear", *, spurious: bool = False) -> Prediction:
    """Both fruits are masked perfectly; the second one may be called by another name."""
    text = f"the apple and {second}."
    spans = [(0, 9), (14, 14 + len(second))]
    masks = [decode_mask(APPLE.mask), decode_mask(PEAR.mask)]
    if spurious:
        text += " Also a dog"
        spans.append((len(text) - 5, len(text)))
        masks.append(cell_mask(1, 0))
    segments = tuple(
        Segment(text[a:b], mask, 0.9, (a, b)) for (a, b), mask in zip(spans, masks, strict=True)
    )
    return Prediction(text, segments, QUESTION.question, SIZE)


CUP_QUESTION = Turn("Where is the cup?", "There {seg}.", (CUP,))
QUESTIONS = [
    Sample(np.zeros((*SIZE, 3), np.uint8), SIZE, (turn,), "sample")
    for turn in (QUESTION, CUP_QUESTION)
]


def fruit_record(second: str = "the pear", *, spurious: bool = False) -> AnswerRecord:
    return build_record(QUESTIONS[0], 0, 0, fruit_prediction(second, spurious=spurious), 0.0)


def silent_record() -> AnswerRecord:
    """An answer without masks to a question about a cup."""
    answer = Prediction("I see none.", (), CUP_QUESTION.question, SIZE)
    return build_record(QUESTIONS[1], 1, 0, answer, 0.0)


def item_of(record: AnswerRecord) -> JudgeItem:
    return judge_item(record, QUESTIONS[record.index].turns[0])


def ratings_of(judgement: Judgement) -> list[list[float | None]]:
    return [[mask.rating for mask in masks] for masks in judgement.masks]
