"""One attempt at one request: a protocol, and its form for OpenAI-compatible servers.

A client turns one :class:`Request` into one :class:`Reply` or raises. When to wait, try again or
stop is decided in :mod:`pixellm.llm.run`. API keys come from the environment, stay inside the
client, and are struck out of every text that leaves it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

OPENAI_URL = "https://api.openai.com/v1"

MAX_TOKENS = 4000
"""Longest reply asked for, the thinking of models that think included."""

_LIMITS = ("max_completion_tokens", "max_tokens")
"""Names of the longest reply, in the order in which servers are asked with them."""

_COMPLAINTS = {
    **{name: re.compile(rf"\b{name}\b") for name in _LIMITS},
    "response_format": re.compile(r"response.?format|schema|grammar|guided|structured", re.I),
    "system": re.compile(
        r"system.{0,40}(role|messages?|prompt|instruction)|role.{0,60}system|"
        r"developer instruction|roles must alternate",
        re.I | re.S,
    ),
}
"""By the part of a request that can be left out or put in another way, what servers that refuse
it say."""

_ADAPTABLE = (400, 415, 422, 500, 501)
"""Status codes by which servers refuse a parameter; llama.cpp takes 500 for its templates."""


class ReplySchema(BaseModel):
    """The form of a reply; its fields are all asked for, and no others."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image to send, or a part of one.

    Attributes:
        path: below the folder of images, with forward slashes.
        side: longer sides are scaled down to this many pixels.
        box: (x, y, width, height) of the part in pixels; None for the whole image.
    """

    path: str
    side: int
    box: tuple[float, float, float, float] | None = None


ImageEncoder = Callable[[ImagePart], str]
"""Gives an image as a ``data:`` URL; raises OSError where it is missing or damaged."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model.

    Attributes:
        key: what its replies are found by in the store.
        kind: what is asked for, such as ``propose`` or ``judge``; chooses the client.
        system: the rules, or "".
        turns: (role, text) in order, beginning and ending with the user.
        schema: the form of the reply.
        images: sent with the first turn.
    """

    key: str
    kind: str
    system: str
    turns: tuple[tuple[str, str], ...]
    schema: type[ReplySchema]
    images: tuple[ImagePart, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        text: the model's words, without its thinking.
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
    """This request can't be sent, today or later: its image is missing or damaged."""


class RefusedError(Exception):
    """The server refuses this request as it stands; it may take others, or this one later."""


class ClientError(OSError):
    """No request can be served: a wrong key, model or address."""


class Client(Protocol):
    """Anything that answers requests."""

    name: str

    def complete(self, request: Request) -> Reply:
        """Answer one request.

        Raises:
            NoReplyError: try again later.
            UnanswerableError: this request can't be sent.
            RefusedError: the server does not take this request.
            ClientError: no request can be answered.
        """
        ...


class OpenAIClient:
    """Any server that speaks the OpenAI chat-completions protocol.

    Structured output by JSON schema is asked for first. A server that refuses a parameter or the
    system's role is asked without it from then on, so hosted models, vLLM, Ollama and llama.cpp
    all work.

    Args:
        model: the model's name at the server.
        base_url: address of the server, None for OpenAI's.
        timeout: seconds for one attempt.
        key_variable: environment variable with the API key; a local server needs none.
        encode: reads the images of requests; None where no request has any.

    Raises:
        ValueError: the server isn't local and the environment has no key.
        ModuleNotFoundError: the ``openai`` package is missing.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        timeout: float = 120.0,
        key_variable: str = "OPENAI_API_KEY",
        encode: ImageEncoder | None = None,
    ) -> None:
        from openai import OpenAI

        key = os.environ.get(key_variable, "").strip()
        if not key and not (base_url and is_local(base_url)):
            raise ValueError(
                f"No API key: set the environment variable {key_variable}, or point --base-url "
                "at a local server."
            )
        self.name = model
        self._key = key
        self._encode = encode
        # Attempts are counted and stored by the runner, so the package makes only one.
        self.api: OpenAI = OpenAI(
            api_key=key or "none", base_url=base_url or OPENAI_URL, timeout=timeout, max_retries=0
        )
        self._refused: frozenset[str] = frozenset()

    def complete(self, request: Request) -> Reply:
        """One attempt; see :meth:`Client.complete`."""
        import openai

        try:
            while True:
                body = self.body(request)
                try:
                    completion = self.api.chat.completions.create(**body)
                    if isinstance(completion, str):  # a page, as of a login
                        raise NoReplyError(self._shorten(f"The server answers {completion!r}."))
                    return self.read(completion.model_dump(warnings=False), request)
                except openai.APIStatusError as error:
                    complaint = f"{error} {error.response.text}"
                    if not self.adapt(error.status_code, complaint, body):
                        raise
        except (openai.APIError, ValueError) as error:  # ValueError: the answer is not JSON
            raise self.translate(error) from None

    def body(self, request: Request) -> dict[str, Any]:
        """The request as the protocol's JSON object.

        UnanswerableError where an image is missing or damaged.
        """
        (_, first), *rest = request.turns
        messages = []
        if request.system and "system" in self._refused:
            first = f"{request.system}\n\n{first}"
        elif request.system:
            messages.append({"role": "system", "content": request.system})
        messages.append({"role": "user", "content": self._with_images(first, request)})
        messages += ({"role": role, "content": text} for role, text in rest)
        body: dict[str, Any] = {"model": self.name, "messages": messages}
        limit = next((name for name in _LIMITS if name not in self._refused), None)
        if limit is not None:
            body[limit] = MAX_TOKENS
        if "response_format" not in self._refused:
            form = request.schema.model_json_schema()
            schema = {"name": request.kind, "strict": True, "schema": form}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def read(self, completion: Mapping[str, Any], request: Request) -> Reply:
        """The reply in a chat-completion object; NoReplyError where it holds no message."""
        try:
            choice = completion["choices"][0]
            message = dict(choice["message"])
        except (KeyError, IndexError, TypeError, ValueError):
            says = completion.get("error") if isinstance(completion, Mapping) else None
            raise NoReplyError(
                self._shorten(f"The server's answer holds no message{f': {says}' if says else ''}.")
            ) from None
        refused = message.get("refusal") or choice.get("finish_reason") == "content_filter"
        text = self.redact(str(message.get("refusal") or "") or _text_of(message))
        usage = completion.get("usage") or {}
        return Reply(
            text=text,
            finish="refusal" if refused else str(choice.get("finish_reason") or "stop"),
            input_tokens=int(usage.get("prompt_tokens") or estimate_tokens(request)),
            output_tokens=int(usage.get("completion_tokens") or len(text) // 3),
        )

    def adapt(self, status: int, complaint: str, body: Mapping[str, Any]) -> bool:
        """Whether a refusal of a body is about a part that can be left out, and is from now on."""
        if status not in _ADAPTABLE:
            return False
        sent = set(body)
        if body["messages"][0]["role"] == "system":
            sent.add("system")
        named = {
            part for part, says in _COMPLAINTS.items() if part in sent and says.search(complaint)
        }
        # Other workers may have learned more meanwhile, so parts are only ever added.
        self._refused |= named
        return bool(named)

    def redact(self, text: str) -> str:
        """The text with the API key struck out."""
        return text.replace(self._key, "[key]") if self._key else text

    def translate(
        self, error: Exception
    ) -> NoReplyError | UnanswerableError | RefusedError | ClientError:
        """What an error of the ``openai`` package means here, in the server's own words."""
        from openai import APIStatusError

        if not isinstance(error, APIStatusError):
            return NoReplyError(self._shorten(f"{type(error).__name__}: {error}"))
        status = error.status_code
        message = self._shorten(f"HTTP {status}: {_words_of(error) or error}")
        if status in (401, 403, 404) or error.code == "insufficient_quota":
            return ClientError(
                f"The server refuses every request ({message}); check the key, --model and "
                "--base-url."
            )
        if status in (408, 409, 425, 429) or status >= 500:
            return NoReplyError(message, _retry_after(error.response.headers))
        return RefusedError(message)

    def _with_images(self, text: str, request: Request) -> Any:
        if not request.images:
            return text
        if self._encode is None:
            raise UnanswerableError("This client sends no images.")
        try:
            urls = [self._encode(part) for part in request.images]
        except (OSError, ValueError) as error:
            raise UnanswerableError(f"The image can't be read: {error}") from None
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return [*images, {"type": "text", "text": text}]

    def _shorten(self, text: str) -> str:
        return self.redact(" ".join(text.split()))[:500]


def estimate_tokens(request: Request) -> int:
    """A guess at the tokens of a request, on the high side."""
    text = len(request.system) + sum(len(turn) for _, turn in request.turns)
    return text // 3 + 1100 * len(request.images)


def public_url(base_url: str | None) -> str:
    """An address fit for reports: without user, password and query."""
    parts = urlsplit(base_url or OPENAI_URL)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _text_of(message: Mapping[str, Any]) -> str:
    """The words of a message without the thinking before them.

    Servers without a parser for the model's thinking leave it in the content, at times without
    the opening tag; others put the whole reply where the thinking belongs.
    """
    for field in ("content", "reasoning_content", "reasoning"):
        value = message.get(field)
        if isinstance(value, list):  # parts, as of a request
            value = "".join(str(part.get("text") or "") for part in value if type(part) is dict)
        text = str(value or "").rpartition("</think>")[2]
        text = re.sub(r"<think>.*", "", text, flags=re.S).strip()  # cut off while thinking
        if text:
            return text
    return ""


def _words_of(error: APIStatusError) -> str:
    """What the server says, wherever in its answer it stands."""
    value: Any = error.body
    while isinstance(value, Mapping):
        value = next((value[key] for key in ("error", "message", "detail") if value.get(key)), None)
    if isinstance(value, str):
        return value
    return error.response.text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return min(max(float(headers.get("retry-after", "")), 0.0), 300.0)
    except ValueError:
        return None


def is_local(base_url: str) -> bool:
    """Whether a server is on this machine or the local network, by its address."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith(".local")
