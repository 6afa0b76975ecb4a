"""Questions about what objects are: names, kinds, categories, uses, activities, absence.

Every function looks for one true question of its kind in a scene and returns None where the scene
allows none this time. Positions and sizes are in ``questions_positions``, the choice
of kinds in ``questions``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pixellm.scenes.knowledge import Concept
from pixellm.scenes.phrasing import (
    NUMBERS,
    ask,
    grammar_words,
    join_phrases,
    mark_phrases,
    purpose_words,
    say,
)
from pixellm.scenes.scene_view import MAX_TARGETS, Objects, SceneView, ViewedObject
from pixellm.types import Turn

WITH_SHARE = 0.3
"""Share of the questions for an instrument that are asked as "What could I ... with?"."""

SYNONYM_SHARE = 0.25
"""Share of the questions by name that use a synonym, where the concept has one."""

OTHER_WORDS = {
    "left": ("on the left", "leftmost"),
    "right": ("on the right", "rightmost"),
    "middle": ("in the middle", "middle"),
    "top": ("at the top", "upper"),
    "bottom": ("at the bottom", "lower"),
}
"""Position word to a wording behind the name and one before it."""


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A question with its answer before it becomes a turn.

    Attributes:
        kind: one of the kinds of questions.
        question: as a person types it.
        answer: the text with its marks.
        objects: what the marks stand for, in order.
    """

    kind: str
    question: str
    answer: str
    objects: tuple[ViewedObject, ...] = ()

    def to_turn(self) -> Turn:
        """The question with its answer and targets."""
        targets = tuple(item.target for item in self.objects)
        return Turn(self.question, self.answer, targets, self.kind)


def ask_by_name(view: SceneView, rng: random.Random) -> Draft | None:
    """One object by its name or a synonym."""
    if not view.unambiguous:
        return None
    item = rng.choice(view.unambiguous)
    words = grammar_words(item.concept, definite_name(item.concept, rng))
    question = ask(rng, "naming", **words)
    return Draft("naming", question, answer_with(rng, "naming", [item], **words), (item,))


def ask_several(
    view: SceneView, rng: random.Random, numbers: Sequence[int] = (2, 2, 3, 4)
) -> Draft | None:
    """Two to four objects at once, answered in the order of the question."""
    objects = view.unambiguous
    possible = [number for number in numbers if number <= len(objects)]
    if not possible:
        return None
    objects = rng.sample(objects, rng.choice(possible))
    question = ask(
        rng, "several", list=join_phrases([definite_name(one.concept, rng) for one in objects])
    )
    return Draft("several", question, answer_with(rng, "several", objects), tuple(objects))


def ask_many(view: SceneView, rng: random.Random) -> Draft | None:
    """Three objects at least, as many as are ever asked for at most: their order is to be kept."""
    return ask_several(view, rng, range(3, MAX_TARGETS + 1))


def ask_choice(view: SceneView, rng: random.Random) -> Draft | None:
    """Two to five objects by their names, of which the scene shows some; those are answered."""
    most = min(len(view.unambiguous), MAX_TARGETS - 1)
    if not most:
        return None
    shown = rng.sample(view.unambiguous, rng.randint(1, most))
    absent: dict[str, Concept] = {}
    for _ in range(rng.randint(1, MAX_TARGETS - len(shown))):
        concept = absent_concept(view, rng)
        if concept is not None:
            absent[concept.key] = concept
    if not absent:
        return None
    named = [*(one.concept for one in shown), *absent.values()]
    rng.shuffle(named)
    shown.sort(key=lambda one: named.index(one.concept))
    names = join_phrases([definite_name(one, rng) for one in named], "or")
    question = ask(rng, "choice", list=names)
    return Draft("choice", question, answer_with(rng, "choice", shown), tuple(shown))


def ask_instances(view: SceneView, rng: random.Random) -> Draft | None:
    """All objects of a kind that the scene shows twice or more, or one of them by its position."""
    keys = view.present_kinds(2, min(view.max_targets, len(NUMBERS) - 1))
    if not keys:
        return None
    group = view.group(rng.choice(keys))
    concept = group[0].concept
    if rng.random() < 0.5:
        number = NUMBERS[len(group)]
        question = ask(rng, "instances_all", plural=concept.plural, number=number)
        answer = answer_with(rng, "instances_all", group)
        return Draft("instances", question, answer, tuple(group))
    item = rng.choice(group)
    if item.position not in OTHER_WORDS:
        return None
    behind, before = OTHER_WORDS[item.position]
    forms = [item.phrase, f"the {before} {concept.name}", f"{item.plain_phrase} {behind}"]
    words = grammar_words(concept, rng.choice(forms))
    question = ask(rng, "instances_one", **words)
    return Draft("instances", question, answer_with(rng, "instances_one", [item], **words), (item,))


def ask_by_category(view: SceneView, rng: random.Random) -> Draft | None:
    """Everything that belongs to a category."""
    keys = view.present_categories()
    if not keys:
        return None
    key = rng.choice(keys)
    objects = view.in_category(key)
    if len(objects) > view.max_targets:
        return None
    question = ask(rng, "category", **category_words(view, key))
    told = view.told(objects)
    return Draft("category", question, answer_with(rng, "category", told), tuple(told))


def ask_by_use(view: SceneView, rng: random.Random) -> Draft | None:
    """Everything that serves a purpose."""
    keys = view.present_uses()
    if not keys:
        return None
    key = rng.choice(keys)
    objects = view.serving(key)
    if len(objects) > view.max_targets:
        return None
    question = _ask_use(view, rng, key, _purpose(view, rng, key))
    told = view.told(objects)
    answer = answer_with(rng, "use", told, conjunction="or")
    return Draft("use", question, answer, tuple(told))


def ask_activity(view: SceneView, rng: random.Random) -> Draft | None:
    """Two purposes one after the other; the answer follows their order."""
    keys = view.present_uses()
    if len(keys) < 2:
        return None
    first, second = rng.sample(keys, 2)
    parts = [view.serving(first), view.serving(second)]
    objects = [*parts[0], *parts[1]]
    if len(set(objects)) < len(objects) or len(objects) > view.max_targets:
        return None
    parts = [view.told(part) for part in parts]
    objects = [*parts[0], *parts[1]]
    words = _purpose(view, rng, first, "first") | _purpose(view, rng, second, "second")
    question = ask(rng, "activity", **words)
    answer = say(
        rng,
        "activity",
        **words,
        objects_first=mark_phrases([one.phrase for one in parts[0]], "or"),
        objects_second=mark_phrases([one.phrase for one in parts[1]], "or"),
    )
    return Draft("activity", question, answer, tuple(objects))


def ask_for_absent(
    view: SceneView, rng: random.Random, ways: Sequence[str] = ("name", "name", "category", "use")
) -> Draft | None:
    """Something that the scene lacks, by name, category or use; answered without masks."""
    way = rng.choice(ways)
    if way == "name":
        concept = absent_concept(view, rng)
        if concept is None:
            return None
        words = grammar_words(concept, definite_name(concept, rng))
        answer = say(rng, "negative_name", name=concept.name, **words)
        return Draft("negative", ask(rng, "naming", **words), answer)
    table = view.knowledge.categories if way == "category" else view.knowledge.uses
    if not table:
        return None
    key = rng.choice(list(table))
    if not view.surely_lacks(way, key):
        return None
    if way == "category":
        words = category_words(view, key)
        answer = say(rng, "negative_category", **words)
        return Draft("negative", ask(rng, "category", **words), answer)
    words = _purpose(view, rng, key)
    return Draft("negative", _ask_use(view, rng, key, words), say(rng, "negative_use", **words))


def definite_name(concept: Concept, rng: random.Random) -> str:
    """The name with its definite article, now and then a synonym."""
    if concept.synonyms and rng.random() < SYNONYM_SHARE:
        return f"the {rng.choice(concept.synonyms)}"
    return f"the {concept.name}"


def absent_concept(view: SceneView, rng: random.Random) -> Concept | None:
    """A concept that the scene surely lacks, in half of the cases akin to something in it."""
    keys = list(view.knowledge.concepts)
    near = [key for item in view.objects for key in item.concept.categories[:1]]
    if near and rng.random() < 0.5:
        keys = list(view.knowledge.concepts_by_category[rng.choice(near)])
    if not keys:  # no name of a file can be asked for
        return None
    concept = view.knowledge.concepts[rng.choice(keys)]
    if view.counts[concept.key] or f"name:{concept.key}" in view.ambiguous:
        return None
    if any(f"name:{item.concept.key}" in concept.ambiguous for item in view.objects):
        return None
    return concept


def category_words(view: SceneView, key: str) -> dict[str, str]:
    """The words of a category for templates."""
    category = view.knowledge.categories[key]
    return {
        "one": category.one,
        "many": category.many,
        "counted": category.counted,
        "are": "is" if category.is_mass else "are",
    }


def answer_with(
    rng: random.Random,
    section: str,
    objects: Objects,
    conjunction: str = "and",
    key: str = "answers",
    **words: str,
) -> str:
    """An answer of a section that lists objects with their marks."""
    marked = mark_phrases([one.phrase for one in objects], conjunction)
    return say(rng, section, key, **words, objects=marked)


def _purpose(view: SceneView, rng: random.Random, use: str, slot: str = "use") -> dict[str, str]:
    return purpose_words(rng.choice(view.knowledge.uses[use].wordings), slot)


def _ask_use(view: SceneView, rng: random.Random, use: str, words: dict[str, str]) -> str:
    with_it = view.knowledge.uses[use].is_instrument and rng.random() < WITH_SHARE
    return ask(rng, "use_with" if with_it else "use", **words)
