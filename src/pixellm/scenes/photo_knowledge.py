"""What is known of the objects that photos are annotated with: COCO's 80 categories, and others.

The tables in ``photo_tables`` are of the same form as the scenes' own, without drawings. A file's
categories are looked up in them by any of their names; a category that they lack is an object of
which nothing but its name is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from pixellm.scenes.knowledge import TABLE_DIR, Concept, Knowledge, read_knowledge
from pixellm.scenes.phrasing import plural_of, with_article


@cache
def load_photo_knowledge() -> Knowledge:
    """The tables for photos that the package ships, read once per process."""
    return read_knowledge(TABLE_DIR / "photo_tables")


def coco_categories() -> tuple[str, ...]:
    """The names of COCO's 80 categories, in the order of their ids."""
    return tuple(key.replace("_", " ") for key in load_photo_knowledge().concepts)


@cache
def knowledge_of_categories(names: tuple[str, ...]) -> tuple[Knowledge, Mapping[str, str]]:
    """The tables cut down to the categories of a file, and the concept's key of each name.

    Whatever is true of an unknown object beside its name is open: it never stands in the way of the
    truth of a question about a category or a use, since none is asked beside it.
    """
    known = load_photo_knowledge()
    keys = {name: known.concept_by_phrase.get(name.lower(), name) for name in names}
    listed = {key: concept for key, concept in known.concepts.items() if key in keys.values()}
    everything = frozenset(
        [*(f"category:{key}" for key in known.categories), *(f"use:{key}" for key in known.uses)]
    )
    for name, key in keys.items():
        if key not in known.concepts:
            grammar = with_article(name.lower()).partition(" ")[0]
            names = (name, name, grammar, plural_of(name))
            listed[key] = Concept(*names, (), (), "", (), everything, "")
    return _restricted(known, listed), keys


def _restricted(known: Knowledge, listed: Mapping[str, Concept]) -> Knowledge:
    """The tables without concepts that are not listed, nor what then has no members."""
    members = [key for one in listed.values() for key in one.categories]
    categories = {key: one for key, one in known.categories.items() if members.count(key) > 1}
    served = {key for one in listed.values() for key in one.uses}
    uses = {key: use for key, use in known.uses.items() if key in served}
    kept = {f"name:{key}" for key in listed}
    kept |= {f"category:{key}" for key in categories} | {f"use:{key}" for key in uses}
    concepts = {
        key: replace(
            one,
            categories=tuple(filter(categories.__contains__, one.categories)),
            uses=tuple(filter(uses.__contains__, one.uses)),
            ambiguous=one.ambiguous & kept,
        )
        for key, one in listed.items()
    }
    return Knowledge(concepts, categories, uses)
