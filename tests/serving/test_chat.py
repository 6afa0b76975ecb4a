"""OpenAI's own client against the server, unchanged."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import APIError, BadRequestError, InternalServerError, NotFoundError, OpenAI
from scripted_engine import ScriptedEngine

from conftest import square_image
from pixellm.masks import decode_mask

from .conftest import asked, data_url, png, wait_until


def client(url: str, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30)


def ask(url: str, question: str, **options: Any) -> Any:
    return client(url).chat.completions.create(
        model="scripted", messages=asked(question), **options
    )


def test_an_answer_carries_its_masks(serve: Callable[..., Any]) -> None:
    url = serve(ScriptedEngine()).url
    assert [model.id for model in client(url).models.list()] == ["scripted"]
    answer = ask(url, "the cup")
    (choice,) = answer.choices
    assert choice.message.content == "the cup" and choice.finish_reason == "stop"
    (segment,) = choice.message.segments
    assert segment["label"] == "the" and segment["span"] == [0, 3]
    mask = decode_mask(segment["segmentation"])
    assert mask.shape == (6, 8) and mask[:, :4].all() and not mask[:, 4:].any()
    assert segment["bbox"] == [0, 0, 4, 6] and segment["area"] == 24
    assert choice.message.image_size == [6, 8]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 2


def test_a_stream_tells_text_and_masks_as_they_come(serve: Callable[..., Any]) -> None:
    url = serve(ScriptedEngine(0.01)).url
    stream = ask(url, "the red cup", stream=True, stream_options={"include_usage": True})
    text, segments, order, reasons, usage = "", [], [], [], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            new = (choice.delta.model_extra or {}).get("segments", [])
            segments += new
            order += ["text"] * bool(choice.delta.content) + ["mask"] * len(new)
            reasons += [choice.finish_reason]
    assert text == "the red cup" and order == ["text", "mask", "text", "text"]
    assert segments == ask(url, "the red cup").choices[0].message.segments
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}
    assert usage is not None and usage.completion_tokens == 3


def test_turns_go_back_with_their_marks(serve: Callable[..., Any]) -> None:
    engine = ScriptedEngine()
    url = serve(engine).url
    messages = asked("the cup")
    first = client(url).chat.completions.create(model="scripted", messages=messages)
    messages += [first.choices[0].message, {"role": "user", "content": "and the {seg} spoon"}]
    client(url).chat.completions.create(model="scripted", messages=messages)
    request, _ = engine.seen[-1]
    assert request.history == (("the cup", "the {seg} cup"),)
    assert request.question == "and the {seg} spoon"


def test_marks_in_plain_content_are_none(serve: Callable[..., Any]) -> None:
    engine = ScriptedEngine()
    messages = asked("one")
    messages += [{"role": "assistant", "content": "a {seg} b"}, {"role": "user", "content": "two"}]
    client(serve(engine).url).chat.completions.create(model="scripted", messages=messages)
    assert engine.seen[-1][0].history == (("one", "a  b"),)


def test_options_reach_the_engine(serve: Callable[..., Any]) -> None:
    engine = ScriptedEngine()
    url = serve(engine, max_answer=3).url
    cut = ask(url, "a b c d", temperature=0.5, top_p=0.9, seed=7, max_tokens=99)
    options = engine.seen[-1][1]
    assert (options.temperature, options.top_p, options.seed) == (0.5, 0.9, 7)
    assert options.max_new_tokens == 3 and cut.choices[0].finish_reason == "length"
    ask(url, "a", max_completion_tokens=2)
    assert engine.seen[-1][1].max_new_tokens == 2 and engine.seen[-1][1].temperature == 0


BAD: list[tuple[str, dict[str, Any]]] = [
    ("none", {"messages": [{"role": "user", "content": "hello"}]}),
    ("several", {"messages": [*asked("a", data_url(png((2, 2)))), *asked("b")]}),
    ("by the user", {"messages": [*asked("a"), {"role": "assistant", "content": "b"}]}),
    ("follows", {"messages": [{"role": "assistant", "content": "b"}, *asked("a")]}),
    ("empty", {"messages": asked("   ")}),
    ("role", {"messages": [{"role": "system", "content": "x"}, *asked("a")]}),
    ("characters", {"messages": asked("x" * 9000)}),
    ("half a character", {"messages": asked("a \ud83d b")}),
    ("base64", {"messages": asked("a", "data:image/png;base64,????")}),
    ("data:image", {"messages": asked("a", "data:text/html;base64,aaaa")}),
    ("damaged", {"messages": asked("a", data_url(png((60, 60))[:60]))}),
    ("not an image", {"messages": asked("a", data_url(b"GIF but not"))}),
    ("is empty", {"messages": asked("a", "data:image/png;base64,")}),
    ("fetches no", {"messages": asked("a", "https://example.org/a.png")}),
    ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("n is", {"n": 2}),
    ("stop is", {"stop": "x"}),
    ("temperature", {"temperature": -1}),
    ("max_tokens", {"max_tokens": 0}),
    ("too many tokens", {"messages": asked("unanswerable")}),
]


def test_what_cannot_be_answered_is_said_in_a_sentence(serve: Callable[..., Any]) -> None:
    import requests

    url = serve(ScriptedEngine()).url
    for words, changes in BAD:
        for stream in (False, True):
            body = {"model": "scripted", "messages": asked("a"), "stream": stream, **changes}
            answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=30)
            error = answer.json()["error"]
            assert answer.status_code == 400, (words, error)
            assert words in error["message"], (words, error["message"])
            assert error["type"] == "invalid_request_error"
    with pytest.raises(BadRequestError, match="empty"):
        ask(url, " ")
    with pytest.raises(NotFoundError, match="no model 'other'"):
        client(url).chat.completions.create(model="other", messages=asked("a"))


def test_images_beyond_the_limit_are_not_decoded(serve: Callable[..., Any]) -> None:
    url = serve(ScriptedEngine(), max_pixels=100).url
    with pytest.raises(BadRequestError, match=r"more than the 100"):
        client(url).chat.completions.create(
            model="scripted", messages=asked("a", data_url(png((11, 10))))
        )


def test_many_clients_get_their_own_answers(serve: Callable[..., Any]) -> None:
    engine = ScriptedEngine(0.002)
    running = serve(engine, queue=64)
    questions = [f"question {n} about {n * 7} things" for n in range(40)]

    def one(question: str) -> str:
        return ask(running.url, question).choices[0].message.content

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, questions)) == questions
    assert engine.most_at_once > 1
    assert running.service.worker.num_taken == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(serve: Callable[..., Any], stream: bool) -> None:
    engine = ScriptedEngine(0.01, max_batch=1)
    running = serve(engine, queue=2)
    if stream:
        chunks = client(running.url).chat.completions.create(
            model="scripted", messages=asked("long"), stream=True
        )
        next(iter(chunks))
        chunks.close()
    else:
        left = client(running.url).with_options(timeout=0.4)
        with pytest.raises(APIError):
            left.chat.completions.create(model="scripted", messages=asked("long"))
    wait_until(lambda: engine.cancelled == 1)
    assert ask(running.url, "still here").choices[0].message.content == "still here"
    wait_until(lambda: running.service.worker.num_taken == 0)
    assert running.service.metrics.left._value.get() == 1


def test_who_waits_and_leaves_is_never_begun(serve: Callable[..., Any]) -> None:
    engine = ScriptedEngine(0.01, max_batch=1)
    running = serve(engine, queue=2, timeout=3)

    def ask_until_timeout() -> None:
        with pytest.raises(APIError):
            ask(running.url, "long")

    first = threading.Thread(target=ask_until_timeout)
    first.start()
    wait_until(lambda: running.service.worker.num_running == 1)
    with pytest.raises(APIError):
        client(running.url).with_options(timeout=0.3).chat.completions.create(
            model="scripted", messages=asked("gone before its turn")
        )
    first.join()
    assert ask(running.url, "next").choices[0].message.content == "next"
    assert [request.question for request, _ in engine.seen] == ["long", "next"]


def test_a_broken_batch_is_told_and_begun_anew(serve: Callable[..., Any]) -> None:
    url = serve(ScriptedEngine(0.01, fail_on="poison")).url
    with pytest.raises(InternalServerError) as told:
        ask(url, "a poison")
    assert "secret" not in str(told.value) and "logged" in str(told.value)
    assert ask(url, "well again").choices[0].message.content == "well again"
    with pytest.raises(InternalServerError, match="not enough memory"):
        ask(url, "memory")
    assert ask(url, "well again").choices[0].message.content == "well again"


def test_a_stream_that_breaks_ends_with_an_error(serve: Callable[..., Any]) -> None:
    url = serve(ScriptedEngine(0.01, fail_on="poison")).url
    pieces = []
    with pytest.raises(APIError, match="logged"):
        for chunk in ask(url, "a b poison", stream=True):
            pieces += [choice.delta.content for choice in chunk.choices]
    assert "".join(filter(None, pieces)) == "a b"


def test_the_engine_answers_as_it_does_without_a_server(
    serve: Callable[..., Any], tiny_engine: Any
) -> None:
    import io

    from PIL import Image

    from conftest import TINY_QUESTION, TINY_QUESTION_WITHOUT_MASKS

    pixels = square_image((2, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    url = serve(tiny_engine).url
    messages = asked(TINY_QUESTION, data_url(buffer.getvalue()))
    wanted = tiny_engine.predict(pixels, TINY_QUESTION)
    first = client(url).chat.completions.create(model="scripted", messages=messages)
    message = first.choices[0].message
    assert message.content == wanted.text and len(message.segments) == len(wanted.segments) == 2
    for found, segment in zip(message.segments, wanted.segments, strict=True):
        assert (decode_mask(found["segmentation"]) == segment.mask).all()
        assert found["label"] == segment.label
    messages += [message, {"role": "user", "content": TINY_QUESTION_WITHOUT_MASKS}]
    second = client(url).chat.completions.create(model="scripted", messages=messages)
    history = [(TINY_QUESTION, wanted.info["marked_text"])]
    later = tiny_engine.predict(pixels, TINY_QUESTION_WITHOUT_MASKS, history)
    assert second.choices[0].message.content == later.text
