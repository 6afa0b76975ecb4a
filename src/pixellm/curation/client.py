"""Who writes the questions: a protocol, and its form for OpenAI-compatible servers.

A client turns one :class:`Request` into one :class:`Reply` or raises. It makes one attempt only:
when to wait, try again or stop is the pipeline's business. API keys come from the environment,
stay inside the client, and are struck out of every text that leaves it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from pixellm.curation.photos import Photo, jpeg_data_url

if TYPE_CHECKING:
    from openai import OpenAI

OPENAI_URL = "https://api.openai.com/v1"

MAX_TOKENS = 4000
"""Longest reply asked for, the thinking of models that think included."""

IMAGE_SIDE = 1024
"""Long side in pixels of the photo as it is sent; boxes in the prompt are in its frame."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model.

    Attributes:
        task: number of the task, and with ``kind`` the name of the request.
        kind: ``propose``, ``repair`` or ``fit``.
        system: the rules.
        turns: (role, text) in order, beginning and ending with the user.
        crops: parts of the photo to send as boxes (x, y, width, height); None is the whole photo.
        schema: JSON schema of the reply.
        photo: for writers that don't read prompts.
        style: the kind of question, likewise.
    """

    task: int
    kind: str
    system: str
    turns: tuple[tuple[str, str], ...]
    crops: tuple[tuple[float, float, float, float] | None, ...]
    schema: Mapping[str, Any]
    photo: Photo
    style: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        text: the model's words.
        finish: ``stop``, ``length`` (cut off) or ``refusal``.
        input_tokens: tokens of the request; estimated where the server doesn't say.
        output_tokens: tokens of the reply, likewise.
    """

    text: str
    finish: str = "stop"
    input_tokens: int = 0
    output_tokens: int = 0


class NoReplyError(Exception):
    """No reply this time, another attempt may bring one.

    Attributes:
        retry_after: seconds that the server asked to wait, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnanswerableError(Exception):
    """This request can't be served, others may: a damaged photo, a request that is too large."""


class ClientError(OSError):
    """No request can be served: a wrong key, model or address."""


class Client(Protocol):
    """Anything that answers requests."""

    name: str

    def complete(self, request: Request) -> Reply:
        """Answer one request.

        Raises:
            NoReplyError: try again later.
            UnanswerableError: this request can't be answered.
            ClientError: no request can be.
        """
        ...


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens."""

    input: float
    output: float

    def of(self, reply: Reply, factor: float = 1.0) -> float:
        """What a reply cost in USD; ``factor`` 0.5 for the Batch API."""
        tokens = self.input * reply.input_tokens + self.output * reply.output_tokens
        return factor * tokens / 1e6


def price_of(model: str, base_url: str | None) -> Price:
    """The price of a model from the table ``prices.json``; servers on a local network are free.

    Raises:
        ValueError: the model is not in the table.
    """
    if base_url and _is_local(base_url):
        return Price(0.0, 0.0)
    table = json.loads(resources.files(__package__).joinpath("prices.json").read_text("utf-8"))
    if model not in table["models"]:
        raise ValueError(
            f"The price of {model!r} is not known, so its cost can't be capped; give it as "
            "--price INPUT,OUTPUT in USD per million tokens (0,0 if it is free)."
        )
    return Price(*table["models"][model])


class OpenAIClient:
    """Any server that speaks the OpenAI chat-completions protocol.

    Structured output by JSON schema is asked for first. A server that refuses a parameter is asked
    without it from then on, so hosted models, vLLM, Ollama and llama.cpp all work.

    Args:
        model: the model's name at the server.
        images: the folder of photos.
        base_url: address of the server, None for OpenAI's.
        text_only: send no images.
        timeout: seconds for one attempt.
        key_variable: environment variable with the API key; a local server needs none.

    Raises:
        ValueError: the server isn't local and the environment has no key.
        ModuleNotFoundError: the ``openai`` package is missing.
    """

    def __init__(
        self,
        model: str,
        images: Path,
        base_url: str | None = None,
        text_only: bool = False,
        timeout: float = 120.0,
        key_variable: str = "OPENAI_API_KEY",
    ) -> None:
        from openai import OpenAI

        key = os.environ.get(key_variable, "").strip()
        if not key and not (base_url and _is_local(base_url)):
            raise ValueError(
                f"No API key: set the environment variable {key_variable}, or point --base-url "
                "at a local server."
            )
        self.name = model
        self._key = key
        self._images = images
        self._text_only = text_only
        # Attempts are counted and kept by the pipeline, so the package makes only one.
        self.api: OpenAI = OpenAI(
            api_key=key or "none", base_url=base_url or OPENAI_URL, timeout=timeout, max_retries=0
        )
        self._schema = True
        self._limit = "max_completion_tokens"

    def complete(self, request: Request) -> Reply:
        """One attempt; see :meth:`Client.complete`."""
        import openai

        try:
            while True:
                body = self.body(request)
                try:
                    completion = self.api.chat.completions.create(**body)
                    return self.read(completion.model_dump(), request)
                except openai.BadRequestError as error:
                    if not self._adapt(str(error), body):
                        raise
        except (openai.APIError, ValueError) as error:  # ValueError: the answer is not JSON
            raise self.translate(error) from None

    def body(self, request: Request) -> dict[str, Any]:
        """The request as the protocol's JSON object, images included.

        Raises:
            UnanswerableError: the photo is missing or damaged.
        """
        (_, first), *rest = request.turns
        content: Any = first
        if not self._text_only or request.kind == "fit":
            side = 256 if request.kind == "fit" else IMAGE_SIDE
            path = self._images / request.photo.file_name
            try:
                urls = [jpeg_data_url(path, side, crop) for crop in request.crops]
            except OSError as error:
                raise UnanswerableError(f"The photo can't be read: {error}") from None
            images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            content = [*images, {"type": "text", "text": first}]
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [
                *([{"role": "system", "content": request.system}] if request.system else []),
                {"role": "user", "content": content},
                *({"role": role, "content": text} for role, text in rest),
            ],
            self._limit: MAX_TOKENS,
        }
        if self._schema:
            schema = {"name": request.kind, "strict": True, "schema": dict(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def read(self, completion: Mapping[str, Any], request: Request) -> Reply:
        """The reply in a chat-completion object.

        Raises:
            NoReplyError: it holds no message.
        """
        try:
            choice = completion["choices"][0]
            message = choice["message"]
        except (KeyError, IndexError, TypeError):
            raise NoReplyError("The server's answer holds no message.") from None
        refused = message.get("refusal") or choice.get("finish_reason") == "content_filter"
        text = self.redact(str(message.get("refusal") or message.get("content") or ""))
        usage = completion.get("usage") or {}
        return Reply(
            text=text,
            finish="refusal" if refused else str(choice.get("finish_reason") or "stop"),
            input_tokens=int(usage.get("prompt_tokens") or estimate_tokens(request)),
            output_tokens=int(usage.get("completion_tokens") or len(text) // 3),
        )

    def redact(self, text: str) -> str:
        """The text with the API key struck out."""
        return text.replace(self._key, "[key]") if self._key else text

    def _adapt(self, complaint: str, body: Mapping[str, Any]) -> bool:
        """Whether the server's complaint is about a parameter that can be left out, and is now."""
        if "max_completion_tokens" in complaint and "max_completion_tokens" in body:
            self._limit = "max_tokens"
            return True
        words = ("response_format", "json_schema", "schema", "grammar", "guided")
        if "response_format" in body and any(word in complaint.casefold() for word in words):
            self._schema = False
            return True
        return False

    def translate(self, error: Exception) -> NoReplyError | UnanswerableError | ClientError:
        """What an error of the ``openai`` package means here, with the key struck out."""
        from openai import APIStatusError

        message = self.redact(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
        if not isinstance(error, APIStatusError):
            return NoReplyError(message)
        if error.status_code in (401, 403, 404) or error.code == "insufficient_quota":
            return ClientError(
                f"The server refuses every request ({message}); check the key, --model and "
                "--base-url."
            )
        if error.status_code in (408, 409, 425, 429) or error.status_code >= 500:
            return NoReplyError(message, _retry_after(error.response.headers))
        return UnanswerableError(message)


def estimate_tokens(request: Request) -> int:
    """A guess at the tokens of a request, on the high side."""
    text = len(request.system) + sum(len(turn) for _, turn in request.turns)
    return text // 3 + 1100 * len(request.crops)


def public_url(base_url: str | None) -> str:
    """An address fit for reports: without user, password and query."""
    parts = urlsplit(base_url or OPENAI_URL)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return min(max(float(headers.get("retry-after", "")), 0.0), 300.0)
    except ValueError:
        return None


def _is_local(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith(".local")


def schema_of(properties: Mapping[str, Any]) -> dict[str, Any]:
    """A strict JSON schema of an object in which every property is required."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
