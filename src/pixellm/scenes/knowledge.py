"""What the scenes know: objects, what they are called, what kind they are, what they are for.

Four readable tables lie beside this module: ``concepts.csv``, ``categories.csv``, ``uses.csv`` and
``templates.toml`` (the last belongs to :mod:`pixellm.scenes.phrasing`). This module reads the
first three; a test holds them against each other.

Truth is exact by construction: a concept lists everything it surely is and is good for, and in
``ambiguous`` everything that a person might argue about. A question about a name, category or use
is asked only of scenes in which nothing is ambiguous for it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

TABLE_DIR = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Concept:
    """One kind of object that a scene can show.

    Attributes:
        key: names the row, such as ``soccer_ball``.
        name: canonical name, the only one that answers use.
        grammar: "a" or "an" for objects that are counted, "mass" for "some bread", "plural" for
            "some scissors".
        plural: what several are called after a number, such as "loaves of bread".
        synonyms: other names that people use, each with this one reading.
        categories: keys of all categories that it surely belongs to, narrow first.
        color: its colour in the drawing; "" where no single colour is plain.
        uses: keys of everything in the table of uses that it surely serves.
        ambiguous: "name:KEY", "category:KEY" and "use:KEY" that it arguably fits.
        openmoji: file stem of its OpenMoji drawing; "" where it is never drawn.
    """

    key: str
    name: str
    grammar: str
    plural: str
    synonyms: tuple[str, ...]
    categories: tuple[str, ...]
    color: str
    uses: tuple[str, ...]
    ambiguous: frozenset[str]
    openmoji: str

    @property
    def is_plural(self) -> bool:
        """Whether the name takes "are": scissors, grapes."""
        return self.grammar == "plural"

    @property
    def phrases(self) -> tuple[str, ...]:
        """Everything that it is called."""
        return self.name, *self.synonyms, self.plural

    @property
    def indefinite(self) -> str:
        """The name with its indefinite article: "an apple", "some bread", "some scissors"."""
        return f"{self.grammar if self.grammar in ('a', 'an') else 'some'} {self.name}"


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of objects.

    Attributes:
        key: names the row.
        one: a single member, such as "piece of fruit".
        many: all of them, as in "all the fruit".
        counted: several of them behind a number, "pieces of fruit".
        is_mass: whether ``many`` takes "is", as in "the furniture is".
    """

    key: str
    one: str
    many: str
    counted: str
    is_mass: bool


@dataclass(frozen=True, slots=True)
class Use:
    """A purpose.

    Attributes:
        key: names the row.
        wordings: what fits behind "something to", in the first person: "brush my teeth".
        is_instrument: whether "What could I ... with?" is natural too.
    """

    key: str
    wordings: tuple[str, ...]
    is_instrument: bool


@dataclass(frozen=True)
class Knowledge:
    """The three tables. Iteration order is the tables' order.

    Raises:
        ValueError: a name with two readings.
    """

    concepts: Mapping[str, Concept]
    categories: Mapping[str, Category]
    uses: Mapping[str, Use]

    def __post_init__(self) -> None:
        for concept in self.concepts.values():
            for phrase in concept.phrases:
                other = self.concept_by_phrase[phrase.lower()]
                if other != concept.key:
                    raise ValueError(
                        f"{phrase!r} names both {concept.key!r} and {other!r}; keep one reading."
                    )

    @cached_property
    def concepts_by_category(self) -> Mapping[str, tuple[str, ...]]:
        """Category key to the keys of all concepts in it."""
        return {
            key: tuple(c.key for c in self.concepts.values() if key in c.categories)
            for key in self.categories
        }

    @cached_property
    def concept_by_phrase(self) -> Mapping[str, str]:
        """Every lower-case name, synonym and plural to the key of its concept."""
        concepts = self.concepts.values()
        return {phrase.lower(): one.key for one in concepts for phrase in one.phrases}


@cache
def load_knowledge() -> Knowledge:
    """The tables that the package ships, read once per process."""
    return read_knowledge(TABLE_DIR)


def read_knowledge(directory: Path) -> Knowledge:
    """Read ``concepts.csv``, ``categories.csv`` and ``uses.csv`` from a directory."""
    concepts = []
    for row in _read_rows(directory / "concepts.csv"):
        lists: Any = {name: _split(row[name]) for name in ("synonyms", "categories", "uses")}
        ambiguous = frozenset(_split(row["ambiguous"]))
        concepts.append(Concept(**{**row, **lists, "ambiguous": ambiguous}))
    categories = [
        Category(row["key"], row["one"], row["many"], row["counted"], row["number"] == "mass")
        for row in _read_rows(directory / "categories.csv")
    ]
    uses = [
        Use(row["key"], _split(row["wordings"]), row["instrument"] == "yes")
        for row in _read_rows(directory / "uses.csv")
    ]
    return Knowledge(
        {concept.key: concept for concept in concepts},
        {category.key: category for category in categories},
        {use.key: use for use in uses},
    )


def _split(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(";") if part.strip())


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
