"""Dialogues about expressions that single out none, one or many objects of an image.

One object each is worded by :mod:`pixellm.data.readers.class_questions`; what is left, and the
fixed questions of the benchmarks, by ``phrases/referring.toml``. Knows no files but that one.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pixellm.data.readers.class_questions import (
    UNNAMED_SHARE,
    NamedMasks,
    ask_for_regions,
    definite,
)
from pixellm.scenes.phrasing import join_phrases
from pixellm.types import SEG_MARK, Target, Turn

KIND = "referring"
"""Label of the turns."""

MANNERS = {"together": 0.5, "in turn": 0.25, "apart": 0.25}
"""Shares of three ways to ask for several things: in one question, in the turns of one dialogue,
or in dialogues of their own."""

_PLACES = ("in", "on", "at", "near", "behind", "under", "by", "with", "next", "above", "below")


@cache
def load_phrases(bank: str) -> Mapping[str, Mapping[str, Any]]:
    """The sections of ``phrases/BANK.toml``; nobody changes them."""
    path = Path(__file__).parents[1] / "phrases" / f"{bank}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def compose_dialogues(
    rng: random.Random, things: Sequence[NamedMasks], manner: str | None = None
) -> tuple[tuple[Turn, ...], ...]:
    """Ask for every thing once.

    Args:
        rng: decides manner and wording.
        things: expressions with the objects that fit; at least one expression.
        manner: a key of :data:`MANNERS`; drawn by their shares where None.

    Returns:
        Dialogues, each of one or more turns.
    """
    named = [NamedMasks(to_noun(thing.name), thing.targets) for thing in things]
    single = [thing for thing in named if len(thing.targets) == 1]
    manner = manner or rng.choices(list(MANNERS), list(MANNERS.values()))[0]
    groups = [single] if manner == "together" and single else [[thing] for thing in single]
    groups += [[thing] for thing in named if len(thing.targets) != 1]
    rng.shuffle(groups)
    turns = [_ask(rng, group) for group in groups]
    return tuple((turn,) for turn in turns) if manner == "apart" else (tuple(turns),)


def benchmark_turn(things: Sequence[NamedMasks]) -> Turn:
    """The fixed question of the published evaluations; its answer is masks alone.

    Args:
        things: expressions, asked together word for word.
    """
    phrases = load_phrases("referring")["benchmark"]
    targets = tuple(target for thing in things for target in thing.targets)
    expressions = join_phrases([thing.name for thing in things])
    answer = f"{_marks(targets)}." if targets else phrases["nothing"]
    return Turn(phrases["question"].format(expressions=expressions), answer, targets, KIND)


def as_benchmark_asks(thing: NamedMasks) -> NamedMasks:
    """An expression of the refCOCO family stripped and in lower case.

    Source: the code that the authors of PixelLM (Ren et al., CVPR 2024) released.
    """
    return NamedMasks(thing.name.strip().lower(), thing.targets)


def to_noun(expression: str) -> str:
    """An expression as a noun phrase: "on the left" is "one on the left".

    Stripped, in lower case and without a full stop, as annotators typed them in every way.
    """
    words = " ".join(expression.lower().split()).rstrip(". ")
    return f"one {words}" if words.partition(" ")[0] in _PLACES else words


def _ask(rng: random.Random, group: Sequence[NamedMasks]) -> Turn:
    if all(len(thing.targets) == 1 for thing in group):
        return ask_for_regions(rng, group, KIND)
    (thing,) = group
    it = definite(thing.name)
    bank = load_phrases("referring")["many" if thing.targets else "none"]
    question = rng.choice(bank["questions"]).format(it=it)
    if not thing.targets:
        return Turn(question, rng.choice(bank["answers"]).format(it=it), (), "no_target")
    key = "unnamed" if rng.random() < UNNAMED_SHARE else "named"
    words = {"it": it, "It": it[0].upper() + it[1:], "marks": _marks(thing.targets)}
    return Turn(question, rng.choice(bank[key]).format(**words), thing.targets, KIND)


def _marks(targets: Sequence[Target]) -> str:
    return join_phrases([SEG_MARK] * len(targets))
