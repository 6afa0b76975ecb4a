"""Dialogues put to a predictor: order, batches, histories, refusals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hand_made_scenes import Oracle, Silent, make_scene, true_prediction, with_segments

from conftest import TINY_QUESTION, square_sample
from pixellm.engine import load
from pixellm.engine.dialogues import AnsweredDialogue, answer_dialogues, answer_each, mark_answer
from pixellm.types import Prediction, Request, Segment


def run(kind: type[Oracle], num_scenes: int = 1) -> tuple[Oracle, list[AnsweredDialogue]]:
    predictor = kind([make_scene(i) for i in range(num_scenes)])
    samples = [sample for i in range(num_scenes) for sample in make_scene(i)]
    return predictor, answer_dialogues(predictor, samples)


def test_every_turn_is_answered_in_its_place_the_first_ones_together_without_history():
    predictor, answered = run(Oracle, 4)
    assert [dialogue.index for dialogue in answered] == list(range(12))
    for dialogue in answered:
        questions = [prediction.question for prediction in dialogue.predictions]
        assert questions == [turn.question for turn in dialogue.sample.turns]
        assert len(dialogue.seconds) == len(questions)
    assert [len(batch) for batch in predictor.batches] == [12, 8]
    assert all(request.history == () for request in predictor.batches[0])
    assert len({id(request.image) for request in predictor.batches[0]}) == 4
    assert answer_dialogues(predictor, []) == []


def test_a_later_turn_hears_the_own_earlier_answer():
    class Mistaken(Oracle):
        def change(self, prediction: Prediction) -> Prediction:
            wrong = Segment("cup", np.ones((16, 24), np.bool_), 0.5, (4, 7))
            return Prediction("The cup, I think.", (wrong,), prediction.question, (16, 24))

    predictor, _ = run(Mistaken)
    later = [r for batch in predictor.batches for r in batch if "others" in r.question]
    assert [r.history for r in later] == [(("0: the left fruit?", "The cup {seg}, I think."),)]


def test_a_later_turn_hears_of_masks_that_were_withheld(tiny_model_dir):
    engine = load(tiny_model_dir, device="cpu", min_mask_score=1.0)
    heard: list[Request] = []

    class Listening:
        def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
            heard.extend(requests)
            return engine.predict_batch(requests)

    (answered,) = answer_dialogues(Listening(), [square_sample()])
    assert all(not prediction.segments for prediction in answered.predictions)
    history = [(TINY_QUESTION, "There is a red square {seg} and a blue square {seg}.")]
    assert [list(request.history) for request in heard] == [[], history]


def test_an_answer_is_marked_behind_each_phrase_and_nowhere_else():
    turn = make_scene(0)[0].turns[0]
    assert mark_answer(true_prediction(turn)) == turn.answer
    assert "{seg}" not in mark_answer(Prediction("a {seg} cup", (), "what?", (16, 24)))


def test_too_few_answers_are_refused():
    class Short(Silent):
        def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
            return super().predict_batch(requests)[1:]

    with pytest.raises(ValueError, match="2 answers to 3 requests"):
        run(Short)


def test_masks_of_another_size_are_refused():
    class Small(Oracle):
        def change(self, prediction: Prediction) -> Prediction:
            mask = np.ones((8, 8), np.bool_)
            return with_segments(prediction, [Segment("apple", mask, 1.0, (0, 3))])

    with pytest.raises(ValueError, match=r"scene-0-0.*\(8, 8\)"):
        run(Small)


def test_one_that_has_no_answer_costs_no_other_and_an_error_without_any_ends_all():
    def answer(asked: Sequence[int]) -> list[int]:
        if 3 in asked or not asked:
            raise ValueError("Not this one.")
        return [2 * one for one in asked]

    found = answer_each(answer, [1, 2, 3, 4, 5], lambda error: True)
    assert [one if isinstance(one, int) else str(one) for one in found] == [
        2,
        4,
        "Not this one.",
        8,
        10,
    ]
    with pytest.raises(ValueError, match="Not this one"):
        answer_each(answer, [], lambda error: True)
