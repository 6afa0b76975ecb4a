"""From OpenAI's messages to one image, one question and the turns before it.

Text is passed on as text: nothing that a client writes becomes a control token, and a ``{seg}``
mark counts in ``marked_content`` alone, which is an answer of ours sent back.
"""

from __future__ import annotations

import base64
import binascii
import re

from pixellm.serving.errors import RefusedError, invalid
from pixellm.serving.schemas import ChatRequest, ImagePart, Message
from pixellm.serving.settings import Settings
from pixellm.types import join_marks, text_damage

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)


def read_dialogue(
    request: ChatRequest, settings: Settings
) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """The URL of a dialogue's one image, its last question, and the turns before that.

    Turns are (question, answer) pairs, answers with ``{seg}`` marks.
    """
    urls = {url for message in request.messages for url in _image_urls(message)}
    if len(urls) != 1:
        found = "none" if not urls else "several"
        raise invalid(f"A dialogue is about one image; this one has {found}.", "image_count")
    turns: list[tuple[str, str]] = []
    asked: list[str] = []
    for message in request.messages:
        if message.role == "user":
            asked += [_text(message)]
        elif not asked:
            raise invalid("A message of the assistant follows one of the user.", "turn_order")
        else:
            turns.append((_question(asked), _answered(message)))
            asked = []
    if not asked:
        raise invalid("The last message is by the user.", "turn_order")
    question = _question(asked)
    check_texts([question, *(text for turn in turns for text in turn)], settings)
    return urls.pop(), question, tuple(turns)


def check_texts(texts: list[str], settings: Settings) -> None:
    """Refuse texts that are too long together, or damaged."""
    length = sum(map(len, texts))
    if length > settings.max_question:
        raise invalid(
            f"The texts have {length:,} characters; this server reads {settings.max_question:,}.",
            "too_long",
        )
    for text in texts:
        damage = text_damage(text)
        if damage:
            raise invalid(f"A text {damage}.", "damaged_text")


def decode_data_url(url: str) -> bytes | None:
    """The bytes of an image in a data URL; None for a URL that leads elsewhere."""
    if url[:5].lower() != "data:":
        return None
    head = _DATA_URL.match(url)
    if head is None:
        raise invalid("A data URL of an image begins with data:image/png;base64, or so.", "image")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(400, "The image's data URL is no valid base64.", "image") from None


def _image_urls(message: Message) -> list[str]:
    parts = message.content if isinstance(message.content, list) else []
    urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    if urls and message.role != "user":
        raise invalid("Images come with the user's messages.", "image_count")
    return urls


def _text(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "\n".join(part.text for part in message.content if not isinstance(part, ImagePart))


def _question(asked: list[str]) -> str:
    question = "\n".join(filter(str.strip, asked))
    if not question:
        raise invalid("A question is empty; ask something about the image.", "empty_question")
    return question


def _answered(message: Message) -> str:
    if message.marked_content is not None:
        return message.marked_content
    return join_marks(_text(message), ())  # marks that somebody typed are none
