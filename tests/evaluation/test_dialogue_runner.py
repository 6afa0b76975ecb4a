"""Dialogues put to a predictor: order, batches, histories, refusals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hand_made_scenes import Oracle, Silent, make_scene, true_prediction, with_segments

from conftest import TINY_QUESTION, square_sample
from pixellm.engine import load
from pixellm.engine.dialogues import answer_dialogues, mark_answer
from pixellm.types import Prediction, Request, Segment


def run(predictor: Oracle, num_scenes: int, batch_size: int) -> list:
    samples = [sample for i in range(num_scenes) for sample in make_scene(i)]
    return list(answer_dialogues(predictor, samples, batch_size))


def oracle(num_scenes: int) -> Oracle:
    return Oracle([make_scene(i) for i in range(num_scenes)])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_every_turn_is_answered_once_and_in_its_place(batch_size):
    answered = run(oracle(4), 4, batch_size)
    assert sorted(dialogue.index for dialogue in answered) == list(range(12))
    for dialogue in answered:
        questions = [prediction.question for prediction in dialogue.predictions]
        assert questions == [turn.question for turn in dialogue.sample.turns]
        assert len(dialogue.seconds) == len(questions)


def test_batches_are_full_while_dialogues_remain():
    predictor = oracle(8)
    run(predictor, 8, batch_size=6)
    sizes = [len(batch) for batch in predictor.batches]
    assert sum(sizes) == 8 * 5
    assert max(sizes) == 6
    assert sizes[:6] == [6] * 6


def test_a_later_turn_hears_the_own_earlier_answer():
    class Mistaken(Oracle):
        def change(self, prediction: Prediction) -> Prediction:
            wrong = Segment("cup", np.ones((16, 24), np.bool_), 0.5, (4, 7))
            return Prediction("The cup, I think.", (wrong,), prediction.question, (16, 24))

    predictor = Mistaken([make_scene(0)])
    run(predictor, 1, batch_size=3)
    later = [r for batch in predictor.batches for r in batch if "others" in r.question]
    assert [r.history for r in later] == [(("0: the left fruit?", "The cup {seg}, I think."),)]


def test_a_later_turn_hears_of_masks_that_were_withheld(tiny_model_dir):
    engine = load(tiny_model_dir, device="cpu", min_mask_score=1.0)
    heard: list[Request] = []

    class Listening:
        def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
            heard.extend(requests)
            return engine.predict_batch(requests)

    (answered,) = answer_dialogues(Listening(), [square_sample()], batch_size=1)
    assert all(not prediction.segments for prediction in answered.predictions)
    history = [(TINY_QUESTION, "There is a red square {seg} and a blue square {seg}.")]
    assert [list(request.history) for request in heard] == [[], history]


def test_first_turns_have_no_history_and_share_the_image():
    predictor = oracle(1)
    run(predictor, 1, batch_size=3)
    assert all(request.history == () for request in predictor.batches[0])
    assert len({id(request.image) for request in predictor.batches[0]}) == 1


def test_an_answer_is_marked_behind_each_phrase_and_nowhere_else():
    turn = make_scene(0)[0].turns[0]
    assert mark_answer(true_prediction(turn)) == turn.answer
    assert "{seg}" not in mark_answer(Prediction("a {seg} cup", (), "what?", (16, 24)))


def test_samples_are_read_only_as_fast_as_they_are_answered():
    read = []

    def samples():
        for i in range(50):
            read.append(i)
            yield make_scene(i)[0]

    stream = answer_dialogues(oracle(50), samples(), batch_size=4)
    next(stream)
    assert len(read) <= 5


def test_too_few_answers_are_refused():
    class Short(Silent):
        def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
            return super().predict_batch(requests)[1:]

    with pytest.raises(ValueError, match="2 answers to 3 requests"):
        run(Short([make_scene(0)]), 1, batch_size=3)


def test_masks_of_another_size_are_refused():
    class Small(Oracle):
        def change(self, prediction: Prediction) -> Prediction:
            mask = np.ones((8, 8), np.bool_)
            return with_segments(prediction, [Segment("apple", mask, 1.0, (0, 3))])

    with pytest.raises(ValueError, match=r"scene-0-0.*\(8, 8\)"):
        run(Small([make_scene(0)]), 1, batch_size=1)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch size"):
        run(oracle(1), 1, batch_size=0)
    predictor = oracle(1)
    assert list(answer_dialogues(predictor, [], 4)) == [] == predictor.batches
