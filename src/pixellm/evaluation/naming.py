"""Whether the phrases of an answer name the objects asked for, by words alone.

English plurals and senses in parentheses are set aside; synonyms are not known: a "sofa" is no
"couch" here. It knows nothing of masks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_SENSE = re.compile(r"_?\([^)]*\)")
_WORD = re.compile(r"[^\W_]+")
_HISSING = ("sses", "shes", "ches", "xes", "zes")
_IRREGULAR = {
    "buses": "bus",
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "knives": "knife",
    "leaves": "leaf",
    "loaves": "loaf",
    "men": "man",
    "mice": "mouse",
    "people": "person",
    "potatoes": "potato",
    "shelves": "shelf",
    "teeth": "tooth",
    "tomatoes": "tomato",
    "wolves": "wolf",
    "women": "woman",
}


def is_named_by(name: str, phrase: str) -> bool:
    """Whether a phrase holds the words of a name, side by side and in order.

    Example:
        >>> is_named_by("traffic light", "the two Traffic Lights on the left")
        True
    """
    wanted, given = _words(_SENSE.sub("", name)), _words(phrase)
    if not wanted:
        return False
    starts = range(len(given) - len(wanted) + 1)
    return any(given[i : i + len(wanted)] == wanted for i in starts)


def count_named(names: Sequence[str], phrases: Sequence[str]) -> int:
    """How many names have a phrase of their own that names them, at best.

    Raises:
        ImportError: scipy is missing.
    """
    if not (names and phrases):
        return 0
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(
            "Counting names needs scipy; install it with `pip install 'pixellm[eval]'`."
        ) from error
    fits = np.array([[is_named_by(name, phrase) for phrase in phrases] for name in names])
    return int(fits[linear_sum_assignment(fits, maximize=True)].sum())


def _words(text: str) -> list[str]:
    return [_singular(word) for word in _WORD.findall(text.casefold())]


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or word.endswith(("ss", "us")) or not word.endswith("s"):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(_HISSING) else word[:-1]
