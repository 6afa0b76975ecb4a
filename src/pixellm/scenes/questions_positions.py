"""Questions about where objects are and how large, and second turns that refer to the first.

Every function looks for one true question in a scene and returns None where the scene is not clear
enough: the margins of :mod:`pixellm.scenes.scene_view` keep close calls out.
"""

from __future__ import annotations

import random

from pixellm.scenes.phrasing import ask, grammar_words, join_phrases, pick_words, say
from pixellm.scenes.questions_objects import Draft, answer_with, category_words, definite_name
from pixellm.scenes.scene_view import MAX_TARGETS, SIDES, Objects, SceneView, ViewedObject

EMPTY_SHARE = 0.2
"""Share of the empty halves and sides that are asked about, answered that nothing is there."""


def ask_half(view: SceneView, rng: random.Random) -> Draft | None:
    """Everything in the left, right, top or bottom half."""
    side = rng.choice(SIDES)
    objects = view.in_half(side)
    return _list_or_nothing(view, rng, "half", objects, side=side)


def ask_relative(view: SceneView, rng: random.Random) -> Draft | None:
    """Everything left of, right of, above or below an object."""
    if not view.unambiguous:
        return None
    anchor, side = rng.choice(view.unambiguous), rng.choice(SIDES)
    place = pick_words(rng, "relative_places", side)
    objects = view.beside(anchor, side)
    it = definite_name(anchor.concept, rng)
    return _list_or_nothing(view, rng, "relative", objects, place=place, it=it)


def ask_nearest(view: SceneView, rng: random.Random) -> Draft | None:
    """The object nearest an edge of the image or nearest another object."""
    if rng.random() < 0.5:
        side = rng.choice(SIDES)
        item = view.nearest_edge(side, view.objects)
        edge = pick_words(rng, "nearest_edges", side)
        return _single(rng, "nearest", "nearest_edge", item, edge=edge)
    if not view.unambiguous:
        return None
    anchor = rng.choice(view.unambiguous)
    it = definite_name(anchor.concept, rng)
    return _single(rng, "nearest", "nearest_thing", view.nearest_object(anchor), it=it)


def ask_size(view: SceneView, rng: random.Random) -> Draft | None:
    """The largest or smallest object of all, of a category, or of two."""
    largest = rng.random() < 0.6
    most = pick_words(rng, "size_words", "large" if largest else "small")
    way = rng.random()
    if way < 0.45:
        item = view.extreme_size(view.objects, largest=largest)
        return _single(rng, "size", "size_all", item, most=most)
    if way < 0.7:
        keys = [key for key in view.present_categories() if len(view.in_category(key)) > 1]
        if not keys:
            return None
        key = rng.choice(keys)
        item = view.extreme_size(view.in_category(key), largest=largest)
        return _single(rng, "size", "size_category", item, most=most, **category_words(view, key))
    if len(view.unambiguous) < 2:
        return None
    pair = rng.sample(view.unambiguous, 2)
    it, other = (definite_name(one.concept, rng) for one in pair)
    more = pick_words(rng, "size_words", "larger" if largest else "smaller")
    item = view.extreme_size(pair, largest=largest)
    return _single(rng, "size", "size_pair", item, more=more, it=it, other=other)


def ask_order(view: SceneView, rng: random.Random) -> Draft | None:
    """Everything, or two to five objects by their names, put in order by position or by size."""
    objects: Objects = view.objects
    if rng.random() < 0.5:
        most = min(len(view.unambiguous), MAX_TARGETS)
        if most < 2:
            return None
        objects = rng.sample(view.unambiguous, rng.randint(2, most))
    order = rng.choice((*SIDES, "large", "small"))
    ranked = view.ranked(objects, order)
    if ranked is None or not 2 <= len(ranked) <= MAX_TARGETS:
        return None
    words = {"order": pick_words(rng, "orders", order)}
    if objects is view.objects:
        question = ask(rng, "order_all", **words)
    else:
        names = join_phrases([definite_name(one.concept, rng) for one in objects])
        question = ask(rng, "order_named", list=names, **words)
    return Draft("order", question, answer_with(rng, "order_all", ranked), tuple(ranked))


def ask_largest_in_words(view: SceneView, rng: random.Random) -> Draft | None:
    """The largest or smallest object, named without a mask because the question wants words."""
    largest = rng.random() < 0.6
    item = view.extreme_size(view.objects, largest=largest)
    if item is None:
        return None
    words = {"most": pick_words(rng, "size_words", "large" if largest else "small")}
    question = ask(rng, "plain_largest", **words)
    return Draft("plain", question, say(rng, "plain_largest", it=item.phrase, **words))


def ask_if_beside(view: SceneView, rng: random.Random) -> Draft | None:
    """Whether one object is on a side of another: yes or no."""
    if len(view.unambiguous) < 2:
        return None
    item, anchor = rng.sample(view.unambiguous, 2)
    side = rng.choice(SIDES)
    beside = view.is_beside(item, anchor, side)
    if beside is None:
        return None
    words = grammar_words(item.concept, item.phrase)
    words |= {"other": anchor.phrase, "place": pick_words(rng, "relative_places", side)}
    answer = say(rng, "plain_place", "yes" if beside else "no", **words)
    return Draft("plain", ask(rng, "plain_place", **words), answer)


def follow_up(view: SceneView, rng: random.Random, first: Draft) -> Draft | None:
    """A second question whose "it" or "them" are the objects of the first answer."""
    if len(first.objects) > 1:
        way = rng.choice((_follow_size, _follow_edge, _follow_others))
        return way(view, rng, first.objects)
    ways = (_follow_next, _follow_next, _follow_side, _follow_side, _follow_color, _follow_others)
    return rng.choice(ways)(view, rng, first.objects)


def _follow_next(view: SceneView, rng: random.Random, objects: Objects) -> Draft | None:
    words = _pronouns(objects[0])
    return _single(rng, "follow_up", "follow_next", view.nearest_object(objects[0]), **words)


def _follow_side(view: SceneView, rng: random.Random, objects: Objects) -> Draft | None:
    side = rng.choice(SIDES)
    beside = view.beside(objects[0], side)
    if not beside or len(beside) > view.max_targets:
        return None
    words = _pronouns(objects[0]) | {"place": pick_words(rng, "relative_places", side)}
    answer = answer_with(rng, "follow_side", beside)
    return Draft("follow_up", ask(rng, "follow_side", **words), answer, tuple(beside))


def _follow_color(view: SceneView, rng: random.Random, objects: Objects) -> Draft | None:
    concept = objects[0].concept
    if not concept.color:
        return None
    words = grammar_words(concept, objects[0].phrase)
    answer = say(rng, "follow_color", color=concept.color, **words)
    return Draft("follow_up", ask(rng, "follow_color", **words), answer)


def _follow_others(view: SceneView, rng: random.Random, objects: Objects) -> Draft | None:
    others = [item for item in view.objects if item not in objects]
    if not view.is_complete or not 1 <= len(others) <= view.max_targets - 1:
        return None
    verb = "are" if others[0].concept.is_plural else "is"
    answer = answer_with(rng, "follow_others", others, **{"is": verb})
    return Draft("follow_up", ask(rng, "follow_others"), answer, tuple(others))


def _follow_size(view: SceneView, rng: random.Random, objects: Objects) -> Draft | None:
    largest = rng.random() < 0.6
    item = view.extreme_size(objects, largest=largest)
    if len(objects) == 2:
        more = pick_words(rng, "size_words", "larger" if largest else "smaller")
        return _single(rng, "follow_up", "follow_size_two", item, more=more)
    most = pick_words(rng, "size_words", "large" if largest else "small")
    return _single(rng, "follow_up", "follow_size", item, most=most)


def _follow_edge(view: SceneView, rng: random.Random, objects: Objects) -> Draft | None:
    side = rng.choice(SIDES)
    item = view.nearest_edge(side, objects)
    edge = pick_words(rng, "nearest_edges", side)
    return _single(rng, "follow_up", "follow_edge", item, edge=edge)


def _pronouns(item: ViewedObject) -> dict[str, str]:
    return {"them": grammar_words(item.concept, item.phrase)["them"]}


def _single(
    rng: random.Random, kind: str, section: str, item: ViewedObject | None, **words: str
) -> Draft | None:
    """A question whose answer is one object; None where there is none."""
    if item is None:
        return None
    answer_words = {**words, "is": "are" if item.concept.is_plural else "is"}
    answer = answer_with(rng, section, [item], **answer_words)
    return Draft(kind, ask(rng, section, **words), answer, (item,))


def _list_or_nothing(
    view: SceneView, rng: random.Random, kind: str, objects: list[ViewedObject] | None, **words: str
) -> Draft | None:
    """A question for all objects at a position, sometimes at one where nothing is."""
    if objects is None or len(objects) > view.max_targets:
        return None
    if objects:
        return Draft(kind, ask(rng, kind, **words), answer_with(rng, kind, objects), tuple(objects))
    if rng.random() > EMPTY_SHARE:
        return None
    return Draft(kind, ask(rng, kind, **words), say(rng, kind, "nothing", **words))
