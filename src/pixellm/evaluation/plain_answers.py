"""Whether an answer in words alone says what was expected: chat ability, by exact match.

Counting questions want the number, plain ones the words. English number words are known; whether
another wording means the same is not. It knows nothing of masks.
"""

from __future__ import annotations

import re

from pixellm.scenes.phrasing import NUMBERS

COUNTING_KIND = "counting"
TEXT_KINDS = frozenset({COUNTING_KIND, "plain"})
"""Kinds of question that are answered in words alone."""


def is_text_right(kind: str, expected: str, answer: str) -> bool:
    """Whether an answer holds the expected number, or is the expected text.

    Args:
        kind: of the question, one of :data:`TEXT_KINDS`.
        expected: the true answer, without marks.
        answer: the predicted one; case and punctuation don't matter.
    """
    read = _numbers_in if kind == COUNTING_KIND else _words_of
    return read(expected) == read(answer)


def _words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _numbers_in(text: str) -> list[str]:
    """Number words, digits among them; "There are 3." and "I count three." say the same."""
    spelled = {str(value): word for value, word in enumerate(NUMBERS)}
    words = (spelled.get(word, word) for word in _words_of(text))
    return [word for word in words if word in NUMBERS]
