"""What the scenes know: objects, what they are called, what kind they are, what they are for.

Four readable tables lie beside this module: ``concepts.csv``, ``categories.csv``, ``uses.csv`` and
``templates.toml`` (the last belongs to :mod:`pixellm.scenes.phrasing`). This module reads the
first three, checks them strictly and hands out frozen records.

Truth is exact by construction: a concept lists everything it surely is and is good for, and in
``ambiguous`` everything that a person might argue about. A question about a name, category or use
is asked only of scenes in which nothing is ambiguous for it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType

TABLE_DIR = Path(__file__).parent
GRAMMARS = ("a", "an", "mass", "plural")
MAX_CONCEPTS_PER_USE = 10
_HEX = re.compile(r"[0-9A-F]{4,5}(-[0-9A-F]{4,5})*")


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
    """The three tables, checked against each other. Iteration order is the tables' order.

    Raises:
        ValueError: a name with two readings, a reference to an unknown key, a use or category
            that nothing fits, or a use that fits more than ten concepts.
    """

    concepts: Mapping[str, Concept]
    categories: Mapping[str, Category]
    uses: Mapping[str, Use]
    _source: str = field(default="the tables", repr=False)

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ValueError(f"In {self._source}, {problem}")

    @cached_property
    def concepts_by_category(self) -> Mapping[str, tuple[str, ...]]:
        """Category key to the keys of all concepts in it."""
        return {
            key: tuple(c.key for c in self.concepts.values() if key in c.categories)
            for key in self.categories
        }

    @cached_property
    def concepts_by_use(self) -> Mapping[str, tuple[str, ...]]:
        """Use key to the keys of all concepts that serve it."""
        return {
            key: tuple(c.key for c in self.concepts.values() if key in c.uses) for key in self.uses
        }

    @cached_property
    def concept_by_phrase(self) -> Mapping[str, str]:
        """Every lower-case name, synonym and plural to the key of its concept."""
        phrases: dict[str, str] = {}
        for concept in self.concepts.values():
            for phrase in (concept.name, *concept.synonyms, concept.plural):
                phrases[phrase.lower()] = concept.key
        return phrases

    def _problems(self) -> Iterator[str]:
        owners: dict[str, str] = {}
        for concept in self.concepts.values():
            yield from self._problems_of(concept)
            for phrase in {concept.name, concept.plural, *concept.synonyms}:
                other = owners.setdefault(phrase.lower(), concept.key)
                if other != concept.key:
                    yield f"{phrase!r} names both {other!r} and {concept.key!r}; keep one reading."
        for use in self.uses.values():
            if not use.wordings:
                yield f"use {use.key!r} has no wording; give it one."
        for key, members in self.concepts_by_use.items():
            if not 1 <= len(members) <= MAX_CONCEPTS_PER_USE:
                limits = f"1 to {MAX_CONCEPTS_PER_USE}"
                yield f"use {key!r} serves {len(members)} concepts; it must be {limits}."
        for key, members in self.concepts_by_category.items():
            if len(members) < 2:
                yield f"category {key!r} holds {len(members)} concepts; give it two or drop it."

    def _problems_of(self, concept: Concept) -> Iterator[str]:
        where = f"concept {concept.key!r}"
        if not concept.name or not concept.plural:
            yield f"{where} lacks a name or a plural."
        if concept.grammar not in GRAMMARS:
            yield f"{where} has grammar {concept.grammar!r}; use one of {', '.join(GRAMMARS)}."
        if concept.openmoji and not _HEX.fullmatch(concept.openmoji):
            yield f"{where} has drawing {concept.openmoji!r}; give its code, such as 1F34E."
        sure = {f"category:{key}" for key in concept.categories}
        sure |= {f"use:{key}" for key in concept.uses} | {f"name:{concept.key}"}
        tables: dict[str, Mapping[str, object]]
        tables = {"name": self.concepts, "category": self.categories, "use": self.uses}
        for reference in sorted(sure | concept.ambiguous):
            kind, _, key = reference.partition(":")
            if kind not in tables or key not in tables[kind]:
                yield f"{where} refers to {reference!r}, which no table holds."
        for reference in sorted(sure & concept.ambiguous):
            yield f"{where} lists {reference!r} as sure and as ambiguous; keep one."


@cache
def load_knowledge() -> Knowledge:
    """The tables that the package ships, read once per process.

    Raises:
        FileNotFoundError: a table is missing from the installation.
        ValueError: a table is malformed or contradicts another; the message names the row.
    """
    return read_knowledge(TABLE_DIR)


def read_knowledge(directory: Path) -> Knowledge:
    """Read ``concepts.csv``, ``categories.csv`` and ``uses.csv`` from a directory.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: one of them is malformed or contradicts another.
    """
    concepts = [_concept(row) for row in _read_rows(directory / "concepts.csv", _CONCEPT_COLUMNS)]
    categories = [
        Category(row["key"], row["one"], row["many"], row["counted"], _is(row, "number", _NUMBERS))
        for row in _read_rows(directory / "categories.csv", _CATEGORY_COLUMNS)
    ]
    uses = [
        Use(row["key"], _split(row["wordings"]), _is(row, "instrument", _ANSWERS))
        for row in _read_rows(directory / "uses.csv", _USE_COLUMNS)
    ]
    return Knowledge(
        MappingProxyType({concept.key: concept for concept in concepts}),
        MappingProxyType({category.key: category for category in categories}),
        MappingProxyType({use.key: use for use in uses}),
        str(directory),
    )


_CONCEPT_COLUMNS = (
    *("key", "name", "grammar", "plural", "synonyms"),
    *("categories", "color", "uses", "ambiguous", "openmoji"),
)
_CATEGORY_COLUMNS = ("key", "one", "many", "counted", "number")
_USE_COLUMNS = ("key", "wordings", "instrument")
_NUMBERS = ("mass", "count")
_ANSWERS = ("yes", "no")


def _concept(row: Mapping[str, str]) -> Concept:
    return Concept(
        key=row["key"],
        name=row["name"],
        grammar=row["grammar"],
        plural=row["plural"],
        synonyms=_split(row["synonyms"]),
        categories=_split(row["categories"]),
        color=row["color"],
        uses=_split(row["uses"]),
        ambiguous=frozenset(_split(row["ambiguous"])),
        openmoji=row["openmoji"],
    )


def _is(row: Mapping[str, str], column: str, words: tuple[str, str]) -> bool:
    """Whether a cell holds the first of two words; anything but the two is an error."""
    if row[column] not in words:
        raise ValueError(
            f"Row {row['key']!r} has {column} {row[column]!r}; use {words[0]} or {words[1]}."
        )
    return row[column] == words[0]


def _split(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(";") if part.strip())


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a table with exactly these columns and a unique, filled ``key``."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restkey="", strict=True)
        if tuple(reader.fieldnames or ()) != columns:
            raise ValueError(f"{path} must have the columns {', '.join(columns)}.")
        rows = list(reader)
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        if "" in row or None in row.values():
            raise ValueError(f"{path}, line {number}: expected {len(columns)} cells.")
        if not row["key"] or row["key"] in seen:
            raise ValueError(f"{path}, line {number}: the key {row['key']!r} is empty or repeated.")
        seen.add(row["key"])
    return rows
