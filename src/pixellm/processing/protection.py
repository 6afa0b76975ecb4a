"""Control words that people typed, marked in a rendered prompt so that they stay plain text.

``<image>`` in a question looks like the placeholder that a template writes. Once rendered, only a
mark tells them apart: an invisible character behind the first one of every control word that was
typed. It breaks the word for any tokenizer, and :func:`restore` takes it out again, whatever else
was typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pixellm.types import split_marks

MARK = "\u2064"
"""INVISIBLE PLUS; typed ones are doubled, so that an odd number of them is a mark."""

_MARKS = re.compile(f"{MARK}({MARK}?)")
_NOT_MARKED = f"(?!{MARK}(?:{MARK}{MARK})*(?!{MARK}))"


def control_words(words: Iterable[str]) -> str:
    """A regular expression for any of the words, longer ones first."""
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


def unmarked(words: Iterable[str]) -> re.Pattern[str]:
    """Find the words, in one group, that a template wrote: those without a mark."""
    return re.compile(f"({control_words(words)}){_NOT_MARKED}")


def protect(text: str, words: re.Pattern[str]) -> str:
    """Mark every control word, as ``words`` finds them, in a text that somebody typed."""
    pieces, begun, position = list[str](), 0, 0
    while found := words.search(text, position):
        position = found.start() + 1  # words may overlap
        pieces.append(text[begun:position].replace(MARK, 2 * MARK))
        begun = position
    return MARK.join([*pieces, text[begun:].replace(MARK, 2 * MARK)])


def restore(text: str) -> str:
    """What was typed: the inverse of :func:`protect`."""
    return _MARKS.sub(r"\1", text)


def answer_pieces(answer: str) -> list[str]:
    """The texts before, between and behind an answer's ``{seg}`` marks, trimmed at the marks."""
    text, spans = split_marks(answer)
    starts = [start for start, _ in spans] + [spans[-1][1] if spans else 0]
    ends = [end for _, end in spans] + [len(text)]
    first, *rest = (text[start:end] for start, end in zip(starts, ends, strict=True))
    return [first, *(piece.strip() for piece in rest)]


def protect_message(
    message: Mapping[str, Any], words: re.Pattern[str], group: str
) -> dict[str, Any]:
    """A message of a text, or of a list of parts, in the usual form, its texts protected.

    ``group`` is what each ``{seg}`` mark of an answer becomes; whitespace around it goes.
    """
    is_answer = message["role"] == "assistant"

    def protected(text: str) -> str:
        pieces = answer_pieces(text) if is_answer else [text]
        return group.join(protect(piece, words) for piece in pieces)

    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": protected(content)}
    parts = [
        {**part, "text": protected(part["text"])} if part.get("type") == "text" else part
        for part in content
    ]
    return {**message, "content": parts}
