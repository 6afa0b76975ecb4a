"""What goes over the wire: OpenAI's chat format, and our extension of it.

Unknown fields are passed over, as OpenAI's own server does with older ones; those that would ask
for something that is not done here are refused, see :data:`UNSUPPORTED`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pixellm.types import SEG_MARK

MAX_MESSAGES = 101
MAX_PARTS = 32
_SEED = 1 << 63

UNSUPPORTED = {
    "n": (None, 1),
    "tools": (None, []),
    "functions": (None, []),
    "logprobs": (None, False),
    "stop": (None, []),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "response_format": (None, {"type": "text"}),
}
"""Fields of OpenAI's that change an answer -> values with which they change nothing here."""


class TextPart(BaseModel):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """Where an image is."""

    url: str = Field(description="data:image/...;base64,..., or https where the server allows it")


class ImagePart(BaseModel):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """One message of a dialogue."""

    role: Literal["user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=MAX_PARTS)] | None = None
    marked_content: str | None = Field(
        None,
        description=f"Of an assistant's message, as it was answered: the text with {SEG_MARK} "
        "behind each phrase that carries a mask. Used instead of content.",
    )


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: bool | None = False


class ChatRequest(BaseModel):
    """A question about one image, with the turns before it."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(max_length=300)
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, description="More than the server's limit means it")
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="0, the usual, is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-_SEED, lt=_SEED)


class Rle(BaseModel):
    """A mask as COCO compressed run lengths."""

    size: list[int] = Field(description="[height, width] of the image")
    counts: str


class SegmentOut(BaseModel):
    """A mask of an answer. Boxes, areas and masks are in pixels of the image, upright."""

    index: int = Field(description="from 0, in order of mention; the colour follows from it")
    label: str = Field(description="the phrase that the mask grounds")
    span: list[int] = Field(description="[start, end) of the phrase in the answer, in characters")
    score: float = Field(description="how good the mask should be, 0 to 1; see Segment")
    bbox: list[int] = Field(description="[x, y, width, height]")
    area: int
    segmentation: Rle
    color: str = Field(description="#rrggbb, as in overlays")


class AnswerMessage(BaseModel):
    """The answer; all below content is pixellm's own extension."""

    role: Literal["assistant"] = "assistant"
    content: str
    segments: list[SegmentOut]
    marked_content: str = Field(description="send it back with the message in a later turn")
    image_size: list[int] = Field(description="[height, width], upright")
    withheld: int = Field(description="masks that were too unsure to be shown")
    familiarity: float | None = Field(
        None, description="how likely the model knows anything in the image, where it can tell"
    )


class Choice(BaseModel):
    """The one answer."""

    index: int = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    """Tokens read and written; an image counts as the tokens that it becomes."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatAnswer(BaseModel):
    """An answer, as OpenAI's clients read it."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class SegmentAnswer(BaseModel):
    """What ``POST /v1/segment`` answers as JSON; as ``pixellm segment --json`` writes it."""

    image: str
    width: int
    height: int
    question: str
    answer: str
    model: str
    segments: list[SegmentOut]
    withheld: int
    familiarity: float | None = None


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pixellm"


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """Why a request gets no answer."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorAnswer(BaseModel):
    """A refusal."""

    error: ErrorDetail


def unsupported(request: ChatRequest) -> str:
    """The name of a field that asks for something that is not done here; "" where none does."""
    extra: dict[str, Any] = request.model_extra or {}
    for name, harmless in UNSUPPORTED.items():
        if name in extra and not any(extra[name] == value for value in harmless):
            return name
    return ""
