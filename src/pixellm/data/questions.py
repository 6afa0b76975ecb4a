"""Questions for annotated classes, parts and expressions, and answers that carry their masks.

Names with masks become turns, worded by the banks in ``phrases``: several names at once, answered
together or one by one, with and without names; expressions that none, one or many objects fit;
and the fixed questions of the benchmarks. Which classes an image is asked for, data sets decide.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pixellm.scenes.phrasing import join_phrases, mark_phrases, type_carelessly
from pixellm.types import SEG_MARK, Target, Turn

UNNAMED_SHARE = 0.2
"""Share of the answers that give masks without naming them again."""

LOWER_CASE_SHARE = 0.2
"""Share of the questions that start in lower case, as people type them."""

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_ENDINGS = {1: "st", 2: "nd", 3: "rd"}
REFERRING_KIND = "referring"
"""Label of the turns."""

MANNERS = {"together": 0.5, "in turn": 0.25, "apart": 0.25}
"""Shares of three ways to ask for several expressions: in one question, in the turns of one
dialogue, or in dialogues of their own."""

_PLACES = ("in", "on", "at", "near", "behind", "under", "by", "with", "next", "above", "below")

_ARTICLE = re.compile(r"^(?:the|an|a)\s+", re.IGNORECASE)
_DETERMINED = re.compile(
    r"(?:this|that|these|those|my|your|his|her|its|our|their|all|both|each|every)\b", re.IGNORECASE
)


Dialogues = tuple[tuple[Turn, ...], ...]


@dataclass(frozen=True, slots=True)
class NamedMasks:
    """A name that a question asks for, with its masks.

    Attributes:
        name: a class or an expression, with or without its article: "dog", "the man on the left".
        targets: its masks, in the order in which the answer gives them.
    """

    name: str
    targets: tuple[Target, ...]


@cache
def load_phrases(bank: str) -> Mapping[str, Mapping[str, Any]]:
    """The sections of ``phrases/BANK.toml``, each from a list's name to its templates."""
    path = Path(__file__).parent / "phrases" / f"{bank}.toml"
    sections = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: {key: tuple(one) if isinstance(one, list) else one for key, one in section.items()}
        for name, section in sections.items()
    }


def ask_for_regions(rng: random.Random, asked: Sequence[NamedMasks], kind: str = "class") -> Turn:
    """A question for one or more names with one mask each."""
    if not asked or any(len(one.targets) != 1 for one in asked):
        raise ValueError("Each name of a question for regions needs exactly one mask.")
    section = "one" if len(asked) == 1 else "several"
    phrases = [definite(one.name) for one in asked]
    question = _ask(rng, section, [one.name for one in asked])
    return Turn(question, _answer(rng, section, phrases), _targets(asked), kind)


def ask_for_instances(rng: random.Random, asked: Sequence[NamedMasks]) -> Turn:
    """A question for every instance of one or more classes, each with its own mask, in order."""
    if not asked or any(not one.targets for one in asked):
        raise ValueError("Each class of a question for instances needs at least one mask.")
    form = rng.choice(load_phrases("classes")["instance_names"]["forms"])
    phrases = [phrase for one in asked for phrase in _instance_phrases(one, form)]
    question = _ask(rng, "instances", [one.name for one in asked])
    section = "instances" if len(phrases) > 1 else "one"
    # Without names nobody could tell which masks are of which class.
    answer = _answer(rng, section, phrases, always_named=len(asked) > 1)
    return Turn(question, answer, _targets(asked), "instances")


def plain_question(name: str) -> str:
    """The plainest question for one name, without chance: the first of its section."""
    return load_phrases("classes")["one"]["questions"][0].format(it=definite(name))


def plain_instances_question(name: str) -> str:
    """The plainest question for all instances of a class, without chance."""
    return f"Segment every {_bare(name)}."


def ask_for_absent(rng: random.Random, name: str, kind: str = "absent") -> Turn:
    """A question for a class that the image does not show; the answer has no masks."""
    question = _ask(rng, "absent", [name])
    answer = rng.choice(load_phrases("classes")["absent"]["answers"])
    return Turn(question, answer.format(name=_bare(name)), (), kind)


def compose_dialogues(
    rng: random.Random, asked: Sequence[NamedMasks], manner: str | None = None
) -> Dialogues:
    """Ask for every expression, at least one, once: dialogues of one or more turns.

    ``manner`` is a key of :data:`MANNERS`, drawn by their shares where None.
    """
    named = [NamedMasks(to_noun(one.name), one.targets) for one in asked]
    single = [one for one in named if len(one.targets) == 1]
    manner = manner or rng.choices(list(MANNERS), list(MANNERS.values()))[0]
    groups = [single] if manner == "together" and single else [[one] for one in single]
    groups += [[one] for one in named if len(one.targets) != 1]
    rng.shuffle(groups)
    turns = [_ask_for_one(rng, group) for group in groups]
    return tuple((turn,) for turn in turns) if manner == "apart" else (tuple(turns),)


def benchmark_turn(asked: Sequence[NamedMasks]) -> Turn:
    """The fixed question of the published evaluations; its answer is masks alone."""
    phrases = load_phrases("referring")["benchmark"]
    targets = _targets(asked)
    expressions = join_phrases([one.name for one in asked])
    answer = f"{_marks(targets)}." if targets else phrases["nothing"]
    return Turn(
        phrases["question"].format(expressions=expressions), answer, targets, REFERRING_KIND
    )


def as_benchmark_asks(one: NamedMasks) -> NamedMasks:
    """An expression of the refCOCO family stripped and in lower case.

    Source: the code that the authors of PixelLM (Ren et al., CVPR 2024) released.
    """
    return NamedMasks(one.name.strip().lower(), one.targets)


def to_noun(expression: str) -> str:
    """An expression as a noun phrase: "on the left" is "one on the left".

    Stripped, in lower case and without a full stop, as annotators typed them in every way.
    """
    words = " ".join(expression.lower().split()).rstrip(". ")
    return f"one {words}" if words.partition(" ")[0] in _PLACES else words


def definite(name: str) -> str:
    """A name as a sentence calls it: "dog" and "a dog" are "the dog"; "his left hand" stays.

    Its last full stop and its first capital go, unless the first word is in capitals throughout.
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


def _targets(asked: Sequence[NamedMasks]) -> tuple[Target, ...]:
    return tuple(target for one in asked for target in one.targets)


def _ask(rng: random.Random, section: str, names: Sequence[str]) -> str:
    """A question of a section, filled in, sometimes typed carelessly."""
    several = len(names) > 1
    bare = [_bare(name) for name in names]
    question = rng.choice(load_phrases("classes")[section]["questions"]).format(
        it=join_phrases([definite(name) for name in names]),
        name=join_phrases(bare),
        words=join_phrases([name.strip().lower() for name in names]),
        each=join_phrases([f"every {name}" for name in bare]),
        **{"is": "are" if several else "is", "them": "them" if several else "it"},
    )
    return type_carelessly(rng, question, LOWER_CASE_SHARE)


def _answer(
    rng: random.Random, section: str, phrases: Sequence[str], *, always_named: bool = False
) -> str:
    """An answer of a section with one mark behind every phrase."""
    bank = load_phrases("classes")
    key = "unnamed" if rng.random() < UNNAMED_SHARE and not always_named else "named"
    form = rng.choice(bank["sentence"]["forms"])
    marked = mark_phrases(phrases)
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


def _instance_phrases(one: NamedMasks, form: str) -> list[str]:
    """How an answer calls each instance of a class, in order."""
    name = _bare(one.name)
    if len(one.targets) == 1:
        return [definite(name)]
    return [
        form.format(
            name=name,
            number=number,
            ordinal=_ordinal(number),
            one="one" if number == 1 else "another",
        )
        for number in range(1, len(one.targets) + 1)
    ]


def _ordinal(number: int) -> str:
    if number <= len(_ORDINALS):
        return _ORDINALS[number - 1]
    ending = "th" if number % 100 in (11, 12, 13) else _ENDINGS.get(number % 10, "th")
    return f"{number}{ending}"


def _ask_for_one(rng: random.Random, group: Sequence[NamedMasks]) -> Turn:
    if all(len(one.targets) == 1 for one in group):
        return ask_for_regions(rng, group, REFERRING_KIND)
    (one,) = group
    it = definite(one.name)
    bank = load_phrases("referring")["many" if one.targets else "none"]
    question = rng.choice(bank["questions"]).format(it=it)
    if not one.targets:
        return Turn(question, rng.choice(bank["answers"]).format(it=it), (), "no_target")
    key = "unnamed" if rng.random() < UNNAMED_SHARE else "named"
    words = {"it": it, "It": it[0].upper() + it[1:], "marks": _marks(one.targets)}
    return Turn(question, rng.choice(bank[key]).format(**words), one.targets, REFERRING_KIND)


def _marks(targets: Sequence[Target]) -> str:
    return join_phrases([SEG_MARK] * len(targets))
