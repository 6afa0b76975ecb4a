from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_answers import assert_same, build_talker, mixed_requests

from conftest import square_image
from pixellm.engine import AnswerOptions, Engine
from pixellm.types import Prediction, Segment


@pytest.fixture(scope="module")
def talker() -> Any:
    return build_talker()


def texts(items: list[Any]) -> list[str]:
    return [item for item in items if isinstance(item, str)]


@pytest.mark.parametrize("limit", [14, 40])
def test_a_stream_ends_with_what_predict_returns(talker: Any, limit: int) -> None:
    engine = Engine(*talker, limit)
    found = 0
    for request in mixed_requests():
        *pieces, last = engine.stream(request.image, request.question)
        whole = engine.predict(request.image, request.question)
        assert isinstance(last, Prediction)
        assert_same(last, whole)
        assert "".join(texts(pieces)) == whole.text and "" not in pieces
        segments = [piece for piece in pieces if isinstance(piece, Segment)]
        found += len(segments)
        for streamed, wanted in zip(segments, whole.segments, strict=True):
            assert (streamed.label, streamed.span) == (wanted.label, wanted.span)
            assert np.array_equal(streamed.mask, wanted.mask)
    assert found > 3


def test_a_segment_comes_before_the_text_behind_it(talker: Any) -> None:
    engine = Engine(*talker, 40)
    checked = 0
    for request in mixed_requests():
        so_far = ""
        for item in engine.stream(request.image, request.question):
            if isinstance(item, str):
                so_far += item
            elif isinstance(item, Segment):
                assert so_far[slice(*item.span)] == item.label
                assert not so_far[item.span[1] :].strip(" .,;:!?'\"()[]-") or not item.label
                checked += 1
    assert checked > 3


def test_a_stream_may_be_drawn_and_be_left_before_its_end(talker: Any) -> None:
    engine = Engine(*talker, 14)
    request = mixed_requests(1)[0]
    options = AnswerOptions(temperature=1.5, seed=3)
    stream = engine.stream(request.image, request.question, temperature=1.5, seed=3)
    next(stream)
    (whole,) = engine.predict_batch([request], options)
    *_, last = stream
    assert isinstance(last, Prediction)
    assert_same(last, whole)
    left = engine.stream(request.image, request.question)
    next(left)
    left.close()
    assert_same(engine.predict(request.image, request.question, temperature=1.5, seed=3), whole)


def test_a_turn_of_a_session_may_be_streamed(talker: Any) -> None:
    image = square_image((2, 3))
    streamed, asked = (Engine(*talker, 8).chat(image) for _ in range(2))
    for question in ("What?", "Is it red?", "Which one?"):
        *_, last = streamed.stream(question)
        assert isinstance(last, Prediction)
        assert_same(last, asked.ask(question))
    assert streamed.history == asked.history and len(streamed.history) == 3


def test_a_stream_refuses_what_predict_refuses(talker: Any, tmp_path: Path) -> None:
    engine = Engine(*talker, 8)
    with pytest.raises(ValueError, match="question"):
        list(engine.stream(square_image((2, 3)), "  "))
    with pytest.raises(FileNotFoundError):
        list(engine.stream(tmp_path / "none.png", "What?"))
    with pytest.raises(ValueError, match="top_p"):
        list(engine.stream(square_image((2, 3)), "What?", top_p=0))
