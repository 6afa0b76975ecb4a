"""Answers that are given, and answers that carry the logits of their masks, with the tiny model."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from conftest import TINY_QUESTION, TINY_QUESTION_WITHOUT_MASKS, square_sample
from pixellm.engine import AnswerOptions, Engine
from pixellm.types import Prediction, Request, Sample, Turn


def dialogues() -> list[Sample]:
    """One of two turns, and its first turn alone over an image of another shape."""
    whole, other = square_sample(), square_sample((10, 14))
    return [whole, Sample(other.image, other.size, other.turns[:1], "other")]


def assert_alike(one: Prediction, other: Prediction) -> None:
    """Equal but for sums of floats in another order."""
    assert (one.text, one.question, one.size) == (other.text, other.question, other.size)
    for left, right in zip(one.segments, other.segments, strict=True):
        assert left.span == right.span
        assert (left.mask != right.mask).mean() < 0.01
        assert left.score == pytest.approx(right.score, abs=1e-3)


def test_given_answers_keep_their_text_and_the_order_of_targets(tiny_engine: Engine) -> None:
    samples = dialogues()
    answered = tiny_engine.predict_given(samples, keep_logits=True)
    for predictions, sample in zip(answered, samples, strict=True):
        for turn, prediction in zip(sample.turns, predictions, strict=True):
            assert prediction.text == re.sub(r"\s*\{seg\}", "", turn.answer)
            assert prediction.info["marked_text"] == turn.answer
            assert [s.label for s in prediction.segments] == [t.name for t in turn.targets]
            assert prediction.info["logits"].shape == (len(turn.targets), *sample.size)
    assert "logits" not in tiny_engine.predict_given(samples)[0][0].info
    assert tiny_engine.predict_given([]) == []


def test_given_answers_show_what_the_model_shows_by_itself(tiny_engine: Engine) -> None:
    sample = square_sample()
    ((given, _),) = tiny_engine.predict_given([sample])
    free = tiny_engine.predict(sample.image, TINY_QUESTION)
    assert free.text == given.text and len(given.segments) == 2  # the model knows it by heart
    for own, drawn in zip(free.segments, given.segments, strict=True):
        assert (own.mask != drawn.mask).mean() < 0.01
        assert own.score == pytest.approx(drawn.score, abs=1e-3)


def test_given_answers_show_masks_that_free_ones_filter(tiny_engine: Engine) -> None:
    strict = Engine(tiny_engine.model, tiny_engine.processor, min_mask_score=1.0)
    ((given, _),) = strict.predict_given([square_sample()])
    assert len(given.segments) == 2
    assert strict.predict(square_sample().image, TINY_QUESTION).segments == ()


def test_given_answers_do_not_depend_on_the_batch(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = tiny_engine.predict_given(dialogues())
    tight = Engine(tiny_engine.model, tiny_engine.processor)
    read, calls = type(tight.model.model).forward, list[int]()

    def forward(self, ids, *others, **options):
        calls.append(len(ids))
        if len(ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return read(self, ids, *others, **options)

    monkeypatch.setattr(type(tight.model.model), "forward", forward)
    alone = tight.predict_given(dialogues())
    assert calls == [2, 1, 1]
    for first, second in zip(together, alone, strict=True):
        for one, other in zip(first, second, strict=True):
            assert_alike(one, other)


def test_a_given_dialogue_beyond_the_context_is_named(tiny_engine: Engine) -> None:
    sample = square_sample()
    long = Turn("What? " * 5000, "Nothing.")
    with pytest.raises(ValueError, match=r"'long' takes \d+ tokens .* context holds"):
        tiny_engine.predict_given([Sample(sample.image, sample.size, (long,), "long")])


@pytest.mark.parametrize("kept", [2, 1, 0])
def test_answers_with_logits_are_the_same_answers(tiny_engine: Engine, kept: int) -> None:
    image = square_sample().image
    scores = sorted(s.score for s in tiny_engine.predict(image, TINY_QUESTION).segments)
    limit = [1.0, scores[1], 0.0][kept]
    engine = Engine(tiny_engine.model, tiny_engine.processor, 48, min_mask_score=limit)
    requests = [Request(image, TINY_QUESTION), Request(image, TINY_QUESTION_WITHOUT_MASKS)]
    plain = engine.predict_batch(requests)
    with_logits = engine.predict_batch(requests, AnswerOptions(keep_logits=True))
    assert [len(answer.segments) for answer in plain] == [kept, 0]
    for one, other in zip(plain, with_logits, strict=True):
        assert one.info["marked_text"] == other.info["marked_text"] and "logits" not in one.info
        logits = other.info["logits"]
        assert logits.shape == (len(one.segments), *one.size) and logits.dtype == np.float32
        assert_alike(one, other)
        for segment, logit in zip(other.segments, logits, strict=True):
            np.testing.assert_array_equal(segment.mask, logit > 0)
    alone = engine.predict(image, TINY_QUESTION, keep_logits=True)
    assert alone.info["logits"].shape == (kept, *alone.size)
