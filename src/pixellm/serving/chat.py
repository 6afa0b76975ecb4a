"""``POST /v1/chat/completions`` and ``GET /v1/models``: OpenAI's chat format."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from pixellm.serving.dialogue import read_dialogue
from pixellm.serving.errors import RefusedError, invalid
from pixellm.serving.presence import EventStream, while_present
from pixellm.serving.schemas import (
    AnswerMessage,
    ChatAnswer,
    ChatRequest,
    Choice,
    ErrorAnswer,
    ModelCard,
    ModelList,
    SegmentOut,
    Usage,
    unsupported,
)
from pixellm.serving.service import Question, Service, extension, segment_values
from pixellm.serving.worker import Piece
from pixellm.types import Prediction, Segment

REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request can't be answered."},
    "5XX": {"model": ErrorAnswer, "description": "The server can't answer."},
}
DONE = "data: [DONE]\n\n"


def chat_routes(service: Service) -> APIRouter:
    """The routes of one service."""
    router = APIRouter(prefix="/v1", responses=REFUSALS)

    @router.get("/models")
    async def list_models() -> ModelList:
        """The models that are served: one."""
        return ModelList(data=[ModelCard(id=service.name, created=service.started)])

    @router.post(
        "/chat/completions",
        response_model=ChatAnswer,
        responses={
            200: {
                "description": "The answer; with stream, events of OpenAI's chunks, whose delta "
                "carries segments as their masks are complete.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            }
        },
    )
    async def complete(body: ChatRequest, http: HttpRequest) -> Response:
        """Answer the last message about the dialogue's image."""
        question = _question(service, body)
        if not body.stream:
            prediction = await while_present(http.receive, service.predict(question))
            answer = await service.in_thread(_answer, service.name, prediction)
            return JSONResponse(answer.model_dump(mode="json"))
        pieces = service.ask(question)
        # What is wrong with the request shows before the first piece, and gets its own status.
        first = await while_present(http.receive, anext(pieces))
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(_events(service, first, pieces, usage), service.settings.timeout)

    return router


def _question(service: Service, body: ChatRequest) -> Question:
    if body.model != service.name:
        sentence = f"There is no model {body.model[:80]!r} here; this server has {service.name!r}."
        raise RefusedError(404, sentence, "model_not_found")
    field = unsupported(body)
    if field:
        raise invalid(f"{field} is not supported here; leave it out.", "unsupported")
    asked = read_dialogue(body, service.settings)
    options = service.options(
        body.max_completion_tokens or body.max_tokens, body.temperature, body.top_p, body.seed
    )
    return Question(*asked, options)


def _answer(model: str, prediction: Prediction) -> ChatAnswer:
    found = [
        SegmentOut(**segment_values(one, index)) for index, one in enumerate(prediction.segments)
    ]
    message = AnswerMessage(content=prediction.text, segments=found, **extension(prediction))
    return ChatAnswer(
        id=_new_id(),
        created=int(time.time()),
        model=model,
        choices=[Choice(message=message, finish_reason=_reason(prediction))],
        usage=_usage(prediction),
    )


async def _events(
    service: Service, first: Piece, pieces: AsyncGenerator[Piece], with_usage: bool
) -> AsyncGenerator[str]:
    """An answer as OpenAI's chunks; where it fails half-way, an error and the end."""
    head = {
        "id": _new_id(),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": service.name,
    }

    def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _event({**head, "choices": [choice]})

    count = 0
    try:
        async with aclosing(_chain(first, pieces)) as all_pieces:
            yield chunk({"role": "assistant", "content": ""})
            async for piece in all_pieces:
                if isinstance(piece, str):
                    yield chunk({"content": piece})
                elif isinstance(piece, Segment):
                    values = await service.in_thread(segment_values, piece, count)
                    count += 1
                    yield chunk({"segments": [values]})
                elif isinstance(piece, Prediction):
                    yield chunk(extension(piece), _reason(piece))
                    if with_usage:
                        usage = _usage(piece).model_dump()
                        yield _event({**head, "choices": [], "usage": usage})
    except RefusedError as error:
        yield _event(error.body())
    yield DONE


async def _chain(first: Piece, rest: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def _reason(prediction: Prediction) -> Any:
    return "length" if prediction.info["is_cut"] else "stop"


def _usage(prediction: Prediction) -> Usage:
    read, written = prediction.info["num_prompt_tokens"], prediction.info["num_tokens"]
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
