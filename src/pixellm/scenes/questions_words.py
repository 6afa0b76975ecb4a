"""Questions answered in words alone: numbers, yes or no, colours, positions, names to be repeated.

Every function looks for one true question in a scene and returns None where the scene allows none
this time. Those about sizes and sides are in :mod:`pixellm.scenes.questions_positions`.
"""

from __future__ import annotations

import random

from pixellm.scenes.knowledge import Concept
from pixellm.scenes.phrasing import NUMBERS, ask, grammar_words, join_phrases, say, with_article
from pixellm.scenes.questions_objects import Draft, absent_concept, definite_name
from pixellm.scenes.scene_view import SceneView

MAX_REPEATED = 12
"""More names than this are never asked to be repeated."""

MAX_LOCATED = 5
"""More objects than this are never asked for at once by their whereabouts."""


def ask_number(view: SceneView, rng: random.Random) -> Draft | None:
    """How many objects, of a kind, of a category or in all; answered by a number word."""
    way = rng.random()
    if way < 0.45:
        key = rng.choice(list(view.counts))
        repeated = [one for one, count in view.counts.items() if count > 1]
        if repeated and rng.random() < 0.6:
            key = rng.choice(repeated)
        if f"name:{key}" in view.ambiguous or key in view.uncountable:
            return None
        counted, count = view.knowledge.concepts[key].plural, view.counts[key]
    elif way < 0.8:
        keys = view.present_categories()
        if not keys:
            return None
        key = rng.choice(keys)
        members = view.in_category(key)
        if not view.uncountable.isdisjoint(one.concept.key for one in members):
            return None
        counted, count = view.knowledge.categories[key].counted, len(members)
    elif way < 0.9:
        concept = absent_concept(view, rng)
        if concept is None:
            return None
        counted, count = concept.plural, 0
    elif view.is_all_there_is:
        counted, count = "things", len(view.objects)
    else:
        return None
    if count >= len(NUMBERS):
        return None
    are = "is" if count == 1 else "are"
    answer = say(rng, "counting", number=NUMBERS[count], are=are)
    return Draft("counting", ask(rng, "counting", counted=counted), answer)


def ask_if_there(view: SceneView, rng: random.Random) -> Draft | None:
    """Whether the scene shows an object: yes or no."""
    present = rng.random() < 0.5
    if present:
        concept: Concept | None = rng.choice(view.objects).concept
    else:
        concept = absent_concept(view, rng)
    if concept is None or f"name:{concept.key}" in view.ambiguous:
        return None
    return tell_if_there(concept, rng, "yes" if present else "no")


def tell_if_there(concept: Concept, rng: random.Random, said: str) -> Draft:
    """Whether there is an object of a concept, answered with "yes" or "no"."""
    words = grammar_words(concept, concept.name)
    indefinite = concept.indefinite
    any_one = f"any {concept.name}" if indefinite.startswith("some ") else indefinite
    words |= {"name": concept.name, "indefinite": indefinite, "any_one": any_one}
    answer = say(rng, "plain_exists", said, **words)
    return Draft("plain", ask(rng, "plain_exists", **words), answer)


def ask_color(view: SceneView, rng: random.Random) -> Draft | None:
    """What colour an object has in the drawing."""
    objects = [item for item in view.unambiguous if item.concept.color]
    if not objects:
        return None
    concept = rng.choice(objects).concept
    question = ask(rng, "plain_color", **grammar_words(concept, definite_name(concept, rng)))
    words = grammar_words(concept, f"the {concept.name}")
    return Draft("plain", question, say(rng, "plain_color", color=concept.color, **words))


def ask_membership(view: SceneView, rng: random.Random) -> Draft | None:
    """Whether an object belongs to a category: yes or no."""
    objects = [item for item in view.unambiguous if not item.concept.is_plural]
    if not objects:
        return None
    concept = rng.choice(objects).concept
    keys = concept.categories if rng.random() < 0.5 else tuple(view.knowledge.categories)
    if not keys:
        return None
    key = rng.choice(keys)
    if f"category:{key}" in concept.ambiguous:
        return None
    words = grammar_words(concept, f"the {concept.name}")
    words["a_one"] = with_article(view.knowledge.categories[key].one)
    answer = say(rng, "plain_category", "yes" if key in concept.categories else "no", **words)
    return Draft("plain", ask(rng, "plain_category", **words), answer)


def ask_to_repeat(view: SceneView, rng: random.Random) -> Draft:
    """Names of up to a dozen objects, in the scene or not, to be said again in their order.

    Every word of the answer follows from the question's order, none from the image: a language
    model that starts from nothing learns from it to read its question.
    """
    concepts = rng.sample(list(view.knowledge.concepts.values()), rng.randint(2, MAX_REPEATED))
    names = join_phrases([f"the {one.name}" for one in concepts])
    return Draft("plain", ask(rng, "repeat", list=names), say(rng, "repeat", list=names))


def ask_where(view: SceneView, rng: random.Random) -> Draft | None:
    """Where up to five objects are, by ninths of the image; some may be nowhere.

    The name stands in the question, its position only in the image: nothing but finding the
    object tells it, and nothing but finding nothing tells what is not there.
    """
    located = [
        (item.phrase, item.concept.is_plural, place)
        for item in view.objects
        if f"name:{item.concept.key}" not in view.ambiguous and (place := view.ninth(item))
    ]
    if not located:
        return None
    said = rng.sample(located, rng.randint(1, min(len(located), MAX_LOCATED)))
    for _ in range(rng.randint(0, min(2, MAX_LOCATED - len(said)))):
        concept = absent_concept(view, rng)
        if concept is not None and f"the {concept.name}" not in [phrase for phrase, _, _ in said]:
            said.append((f"the {concept.name}", concept.is_plural, "nowhere"))
    rng.shuffle(said)
    be = "is" if len(said) == 1 and not said[0][1] else "are"
    question = ask(rng, "where", be=be, list=join_phrases([phrase for phrase, _, _ in said]))
    parts = [f"{phrase} {'are' if plural else 'is'} {place}" for phrase, plural, place in said]
    return Draft("plain", question, say(rng, "where", list=join_phrases(parts)))
