"""Questions for annotated classes, parts and expressions, and answers that carry their masks.

Turns names with masks into one :class:`~pixellm.types.Turn`, worded by ``phrases/classes.toml``:
several names at once, answered together or one by one, with and without names. It knows no files
and no data set, and never decides which classes an image is asked for.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from pixellm.scenes.phrasing import join_phrases
from pixellm.types import SEG_MARK, Target, Turn

UNNAMED_SHARE = 0.2
"""Share of the answers that give masks without naming them again."""

LOWER_CASE_SHARE = 0.2
"""Share of the questions that start in lower case, as people type them."""

BARE_END_SHARE = 0.15
"""Share of the questions that lose their last full stop or question mark."""

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_ENDINGS = {1: "st", 2: "nd", 3: "rd"}
_ARTICLE = re.compile(r"^(?:the|an|a)\s+", re.IGNORECASE)
_DETERMINED = re.compile(
    r"(?:this|that|these|those|my|your|his|her|its|our|their|all|both|each|every)\b",
    re.IGNORECASE,
)

Bank = Mapping[str, Mapping[str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class NamedMasks:
    """One thing that a question asks for.

    Attributes:
        name: a class or an expression, with or without its article: "dog", "the man on the left".
        targets: its masks, in the order in which the answer gives them.
    """

    name: str
    targets: tuple[Target, ...]


@cache
def load_phrases() -> Bank:
    """The sections of ``phrases/classes.toml``: read only, from a list's name to its templates."""
    path = Path(__file__).parents[1] / "phrases" / "classes.toml"
    sections = tomllib.loads(path.read_text(encoding="utf-8"))
    return MappingProxyType(
        {
            name: MappingProxyType({key: tuple(values) for key, values in section.items()})
            for name, section in sections.items()
        }
    )


def ask_for_regions(rng: random.Random, things: Sequence[NamedMasks], kind: str = "class") -> Turn:
    """A question for one or more names with one mask each.

    Args:
        rng: decides the wording.
        things: what is asked for, in the order of the question; each has exactly one target.
        kind: label of the turn.

    Raises:
        ValueError: no thing, or one without exactly one target.
    """
    if not things or any(len(thing.targets) != 1 for thing in things):
        raise ValueError("Each name of a question for regions needs exactly one mask.")
    section = "one" if len(things) == 1 else "several"
    phrases = [definite(thing.name) for thing in things]
    question = _ask(rng, section, [thing.name for thing in things])
    return Turn(question, _answer(rng, section, phrases), _targets(things), kind)


def ask_for_instances(
    rng: random.Random, things: Sequence[NamedMasks], kind: str = "instances"
) -> Turn:
    """A question for every instance of one or more classes, each with its own mask.

    Args:
        rng: decides the wording.
        things: the classes; the targets of each lie in the order of the answer.
        kind: label of the turn.

    Raises:
        ValueError: no class, or one without a target.
    """
    if not things or any(not thing.targets for thing in things):
        raise ValueError("Each class of a question for instances needs at least one mask.")
    form = rng.choice(load_phrases()["instance_names"]["forms"])
    phrases = [phrase for thing in things for phrase in _instance_phrases(thing, form)]
    question = _ask(rng, "instances", [thing.name for thing in things])
    section = "instances" if len(phrases) > 1 else "one"
    # Without names nobody could tell which masks are of which class.
    answer = _answer(rng, section, phrases, always_named=len(things) > 1)
    return Turn(question, answer, _targets(things), kind)


def plain_question(name: str) -> str:
    """The plainest question for one name, without chance: the first of its section."""
    return load_phrases()["one"]["questions"][0].format(it=definite(name))


def ask_for_absent(rng: random.Random, name: str, kind: str = "absent") -> Turn:
    """A question for a class that the image does not show; the answer has no masks."""
    question = _ask(rng, "absent", [name])
    answer = rng.choice(load_phrases()["absent"]["answers"])
    return Turn(question, answer.format(name=_bare(name)), (), kind)


def definite(name: str) -> str:
    """A name as a sentence calls it: "dog" and "a dog" are "the dog"; "his left hand" stays.

    Args:
        name: a class or an expression; its last full stop and its first capital go, unless the
            first word is written in capitals throughout.
    """
    bare = _bare(name)
    return bare if _DETERMINED.match(bare) else f"the {bare}"


def _bare(name: str) -> str:
    """The name without article and full stop, in one line; capitals inside it stay."""
    words = _ARTICLE.sub("", " ".join(name.split()).rstrip("."), count=1)
    if not words:
        raise ValueError(f"A class or expression needs words, but this one is {name!r}; name it.")
    first = words.partition(" ")[0]
    capital = len(first) > 1 and first[0].isupper() and first[1:].islower()
    return words[0].lower() + words[1:] if capital else words


def _targets(things: Sequence[NamedMasks]) -> tuple[Target, ...]:
    return tuple(target for thing in things for target in thing.targets)


def _ask(rng: random.Random, section: str, names: Sequence[str]) -> str:
    """A question of a section, filled in, sometimes typed carelessly."""
    several = len(names) > 1
    bare = [_bare(name) for name in names]
    question = rng.choice(load_phrases()[section]["questions"]).format(
        it=join_phrases([definite(name) for name in names]),
        name=join_phrases(bare),
        words=join_phrases([name.strip().lower() for name in names]),
        each=join_phrases([f"every {name}" for name in bare]),
        **{"is": "are" if several else "is", "them": "them" if several else "it"},
    )
    if rng.random() < LOWER_CASE_SHARE and not question.startswith("I "):
        question = question[0].lower() + question[1:]
    if rng.random() < BARE_END_SHARE:
        question = question.rstrip(".?")
    return question


def _answer(
    rng: random.Random, section: str, phrases: Sequence[str], *, always_named: bool = False
) -> str:
    """An answer of a section with one mark behind every phrase."""
    bank = load_phrases()
    key = "unnamed" if rng.random() < UNNAMED_SHARE and not always_named else "named"
    form = rng.choice(bank["sentence"]["forms"])
    marked = join_phrases([f"{phrase} {SEG_MARK}" for phrase in phrases])
    words = {
        "marked": marked,
        "Marked": _capital(marked),
        "bare": join_phrases([SEG_MARK] * len(phrases)),
        "is": "are" if len(phrases) > 1 else "is",
        "sentences": " ".join(
            form.format(phrase=phrase, Phrase=_capital(phrase), seg=SEG_MARK) for phrase in phrases
        ),
    }
    return rng.choice(bank[section][key]).format(**words)


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _instance_phrases(thing: NamedMasks, form: str) -> list[str]:
    """How an answer calls each instance of a class, in order."""
    name = _bare(thing.name)
    if len(thing.targets) == 1:
        return [definite(name)]
    return [
        form.format(
            name=name,
            number=number,
            ordinal=_ordinal(number),
            one="one" if number == 1 else "another",
        )
        for number in range(1, len(thing.targets) + 1)
    ]


def _ordinal(number: int) -> str:
    if number <= len(_ORDINALS):
        return _ORDINALS[number - 1]
    ending = "th" if number % 100 in (11, 12, 13) else _ENDINGS.get(number % 10, "th")
    return f"{number}{ending}"
