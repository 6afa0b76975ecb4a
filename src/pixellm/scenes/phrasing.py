"""Words for questions and answers: templates, articles, lists, and reading a phrase back.

It turns ready facts into sentences with the templates of ``templates.toml``, and tells which
concept a phrase of an answer names.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from pixellm.scenes.knowledge import Concept, Knowledge
from pixellm.types import SEG_MARK

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
"""Number words; larger counts are not asked for."""

LOWER_CASE_SHARE = 0.25
"""Share of the questions that start in lower case, as people type them."""

BARE_END_SHARE = 0.15
"""Share of the questions that lose their last full stop or question mark."""

_WORD = re.compile(r"[a-z0-9]+(?:[-'][a-z0-9]+)*")
_MY = re.compile(r"\bmy(?=self\b|\b)")
_MAX_NAME_WORDS = 6
_IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "knife": "knives",
    "bus": "buses",
    "sheep": "sheep",
}


@cache
def load_templates() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """The sections of both files of templates, each from a list's name to its templates."""
    folder = Path(__file__).parent
    return {
        name: {key: tuple(values) for key, values in section.items()}
        for file in ("templates.toml", "photo_tables/templates.toml")
        for name, section in tomllib.loads((folder / file).read_text(encoding="utf-8")).items()
    }


def pick_words(rng: random.Random, section: str, key: str) -> str:
    """One template or wording of a section, at random."""
    return rng.choice(load_templates()[section][key])


def ask(rng: random.Random, section: str, key: str = "questions", **words: str) -> str:
    """A question of a section, filled in, sometimes typed carelessly."""
    question = pick_words(rng, section, key).format(**words)
    return type_carelessly(rng, question[0].upper() + question[1:], LOWER_CASE_SHARE)


def type_carelessly(rng: random.Random, question: str, lower_case_share: float) -> str:
    """A question as people type it: now and then in lower case, or without its end."""
    keeps_case = question.startswith("I ") or question[1:2].isupper()  # "I need", "TVs"
    if rng.random() < lower_case_share and not keeps_case:
        question = question[0].lower() + question[1:]
    return question.rstrip(".?") if rng.random() < BARE_END_SHARE else question


def say(rng: random.Random, section: str, key: str = "answers", **words: str) -> str:
    """An answer of a section, filled in; it starts with a capital letter."""
    words = {**words, "Objects": words.get("objects", "")}
    answer = pick_words(rng, section, key).format(**words)
    return answer[0].upper() + answer[1:]


def join_phrases(phrases: Sequence[str], conjunction: str = "and") -> str:
    """Phrases as an English list: "a", "a and b", "a, b and c"."""
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} {conjunction} {phrases[-1]}"


def mark_phrases(phrases: Sequence[str], conjunction: str = "and") -> str:
    """The same list with a segmentation mark behind every phrase."""
    return join_phrases([f"{phrase} {SEG_MARK}" for phrase in phrases], conjunction)


def grammar_words(concept: Concept, it: str) -> dict[str, str]:
    """The words that agree with a concept in number; ``it`` is how the sentence calls it."""
    return agreeing_words(it, is_plural=concept.is_plural)


def agreeing_words(it: str, *, is_plural: bool) -> dict[str, str]:
    """What a sentence calls an object, ``it``, and the words that agree with it in number."""
    return {
        "it": it,
        "It": it[0].upper() + it[1:],
        "is": "are" if is_plural else "is",
        "Is": "Are" if is_plural else "Is",
        "does": "do" if is_plural else "does",
        "them": "them" if is_plural else "it",
        "they": "they" if is_plural else "it",
    }


def purpose_words(wording: str, slot: str = "use") -> dict[str, str]:
    """A purpose as the asker says it, in ``slot``, and as it is said to them, in ``your_slot``."""
    return {slot: wording, f"your_{slot}": _MY.sub("your", wording)}


def with_article(words: str) -> str:
    """The indefinite article before words whose first letter tells which."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural_of(name: str) -> str:
    """The plural of a noun, or of the last word of several."""
    head, _, last = name.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "sh", "ch", "x")):
        last = last if last.endswith("s") and not last.endswith("ss") else last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}".strip()


def concept_of_phrase(label: str, knowledge: Knowledge) -> str | None:
    """The key of the concept that a phrase such as "the left banana" names; None for nothing.

    Names, synonyms and plurals are compared word by word and without case. Where a phrase holds
    several, the last one counts, and of those that end there the longest: "the hot dog" is no dog.
    """
    words = _WORD.findall(label.lower())
    for end in range(len(words), 0, -1):
        for start in range(max(0, end - _MAX_NAME_WORDS), end):
            key = knowledge.concept_by_phrase.get(" ".join(words[start:end]))
            if key is not None:
                return key
    return None
