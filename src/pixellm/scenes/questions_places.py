"""Questions about where things are and how large, and second turns that refer to the first.

Every function looks for one true question in a scene and returns None where the scene is not clear
enough: the margins of :mod:`pixellm.scenes.scene_view` keep close calls out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pixellm.scenes.phrasing import ask, grammar_words, join_phrases, pick_words, say
from pixellm.scenes.questions_things import (
    Draft,
    answer_with,
    called,
    category_words,
)
from pixellm.scenes.scene_view import MAX_TARGETS, SIDES, SceneView, Thing

EMPTY_SHARE = 0.2
"""Share of the empty halves and sides that are asked about, answered that nothing is there."""


def ask_half(view: SceneView, rng: random.Random) -> Draft | None:
    """Everything in the left, right, top or bottom half."""
    side = rng.choice(SIDES)
    things = view.in_half(side)
    return _list_or_nothing(view, rng, "half", things, side=side)


def ask_relative(view: SceneView, rng: random.Random) -> Draft | None:
    """Everything left of, right of, above or below a thing."""
    if not view.unmistakable:
        return None
    anchor, side = rng.choice(view.unmistakable), rng.choice(SIDES)
    place = pick_words(rng, "relative_places", side)
    things = view.beside(anchor, side)
    it = called(anchor.concept, rng)
    return _list_or_nothing(view, rng, "relative", things, place=place, it=it)


def ask_nearest(view: SceneView, rng: random.Random) -> Draft | None:
    """The thing nearest an edge of the picture or nearest another thing."""
    if rng.random() < 0.5:
        side = rng.choice(SIDES)
        thing = view.nearest_edge(side, view.things)
        edge = pick_words(rng, "nearest_edges", side)
        return _single(rng, "nearest", "nearest_edge", thing, edge=edge)
    if not view.unmistakable:
        return None
    anchor = rng.choice(view.unmistakable)
    it = called(anchor.concept, rng)
    return _single(rng, "nearest", "nearest_thing", view.nearest_thing(anchor), it=it)


def ask_size(view: SceneView, rng: random.Random) -> Draft | None:
    """The largest or smallest thing of all, of a category, or of two."""
    largest = rng.random() < 0.6
    most = pick_words(rng, "size_words", "large" if largest else "small")
    way = rng.random()
    if way < 0.45:
        thing = view.extreme_size(view.things, largest=largest)
        return _single(rng, "size", "size_all", thing, most=most)
    if way < 0.7:
        keys = [key for key in view.present_categories() if len(view.in_category(key)) > 1]
        if not keys:
            return None
        key = rng.choice(keys)
        thing = view.extreme_size(view.in_category(key), largest=largest)
        return _single(rng, "size", "size_category", thing, most=most, **category_words(view, key))
    if len(view.unmistakable) < 2:
        return None
    pair = rng.sample(view.unmistakable, 2)
    it, other = (called(one.concept, rng) for one in pair)
    more = pick_words(rng, "size_words", "larger" if largest else "smaller")
    thing = view.extreme_size(pair, largest=largest)
    return _single(rng, "size", "size_pair", thing, more=more, it=it, other=other)


def ask_order(view: SceneView, rng: random.Random) -> Draft | None:
    """Everything, or two to five things by their names, put in order by place or by size."""
    things: Sequence[Thing] = view.things
    if rng.random() < 0.5:
        most = min(len(view.unmistakable), MAX_TARGETS)
        if most < 2:
            return None
        things = rng.sample(view.unmistakable, rng.randint(2, most))
    order = rng.choice((*SIDES, "large", "small"))
    ranked = view.ranked(things, order)
    if ranked is None or not 2 <= len(ranked) <= MAX_TARGETS:
        return None
    words = {"order": pick_words(rng, "orders", order)}
    if things is view.things:
        question = ask(rng, "order_all", **words)
    else:
        names = join_phrases([called(one.concept, rng) for one in things])
        question = ask(rng, "order_named", list=names, **words)
    return Draft("order", question, answer_with(rng, "order_all", ranked), tuple(ranked))


def ask_largest_in_words(view: SceneView, rng: random.Random) -> Draft | None:
    """The largest or smallest thing, named without a mask because the question wants words."""
    largest = rng.random() < 0.6
    thing = view.extreme_size(view.things, largest=largest)
    if thing is None:
        return None
    words = {"most": pick_words(rng, "size_words", "large" if largest else "small")}
    question = ask(rng, "plain_largest", **words)
    return Draft("plain", question, say(rng, "plain_largest", it=thing.phrase, **words))


def ask_if_beside(view: SceneView, rng: random.Random) -> Draft | None:
    """Whether one thing is on a side of another: yes or no."""
    if len(view.unmistakable) < 2:
        return None
    thing, anchor = rng.sample(view.unmistakable, 2)
    side = rng.choice(SIDES)
    beside = view.is_beside(thing, anchor, side)
    if beside is None:
        return None
    words = grammar_words(thing.concept, thing.phrase)
    words |= {"other": anchor.phrase, "place": pick_words(rng, "relative_places", side)}
    answer = say(rng, "plain_place", "yes" if beside else "no", **words)
    return Draft("plain", ask(rng, "plain_place", **words), answer)


def follow_up(view: SceneView, rng: random.Random, first: Draft) -> Draft | None:
    """A second question whose "it" or "them" are the things of the first answer."""
    if len(first.things) > 1:
        way = rng.choice((_follow_size, _follow_edge, _follow_others))
        return way(view, rng, first.things)
    ways = (_follow_next, _follow_next, _follow_side, _follow_side, _follow_color, _follow_others)
    return rng.choice(ways)(view, rng, first.things)


def _follow_next(view: SceneView, rng: random.Random, things: Sequence[Thing]) -> Draft | None:
    words = _pronouns(things[0])
    return _single(rng, "follow_up", "follow_next", view.nearest_thing(things[0]), **words)


def _follow_side(view: SceneView, rng: random.Random, things: Sequence[Thing]) -> Draft | None:
    side = rng.choice(SIDES)
    beside = view.beside(things[0], side)
    if not beside or len(beside) > view.max_targets:
        return None
    words = _pronouns(things[0]) | {"place": pick_words(rng, "relative_places", side)}
    answer = answer_with(rng, "follow_side", beside)
    return Draft("follow_up", ask(rng, "follow_side", **words), answer, tuple(beside))


def _follow_color(view: SceneView, rng: random.Random, things: Sequence[Thing]) -> Draft | None:
    concept = things[0].concept
    if not concept.color:
        return None
    words = grammar_words(concept, things[0].phrase)
    answer = say(rng, "follow_color", color=concept.color, **words)
    return Draft("follow_up", ask(rng, "follow_color", **words), answer)


def _follow_others(view: SceneView, rng: random.Random, things: Sequence[Thing]) -> Draft | None:
    others = [thing for thing in view.things if thing not in things]
    if not view.is_complete or not 1 <= len(others) <= view.max_targets - 1:
        return None
    verb = "are" if others[0].concept.is_plural else "is"
    answer = answer_with(rng, "follow_others", others, **{"is": verb})
    return Draft("follow_up", ask(rng, "follow_others"), answer, tuple(others))


def _follow_size(view: SceneView, rng: random.Random, things: Sequence[Thing]) -> Draft | None:
    largest = rng.random() < 0.6
    thing = view.extreme_size(things, largest=largest)
    if len(things) == 2:
        more = pick_words(rng, "size_words", "larger" if largest else "smaller")
        return _single(rng, "follow_up", "follow_size_two", thing, more=more)
    most = pick_words(rng, "size_words", "large" if largest else "small")
    return _single(rng, "follow_up", "follow_size", thing, most=most)


def _follow_edge(view: SceneView, rng: random.Random, things: Sequence[Thing]) -> Draft | None:
    side = rng.choice(SIDES)
    thing = view.nearest_edge(side, things)
    edge = pick_words(rng, "nearest_edges", side)
    return _single(rng, "follow_up", "follow_edge", thing, edge=edge)


def _pronouns(thing: Thing) -> dict[str, str]:
    return {"them": grammar_words(thing.concept, thing.phrase)["them"]}


def _single(
    rng: random.Random, kind: str, section: str, thing: Thing | None, **words: str
) -> Draft | None:
    """A question whose answer is one thing; None where there is none."""
    if thing is None:
        return None
    answer_words = {**words, "is": "are" if thing.concept.is_plural else "is"}
    answer = answer_with(rng, section, [thing], **answer_words)
    return Draft(kind, ask(rng, section, **words), answer, (thing,))


def _list_or_nothing(
    view: SceneView, rng: random.Random, kind: str, things: list[Thing] | None, **words: str
) -> Draft | None:
    """A question for all things at a place, sometimes for a place where nothing is."""
    if things is None or len(things) > view.max_targets:
        return None
    if things:
        return Draft(kind, ask(rng, kind, **words), answer_with(rng, kind, things), tuple(things))
    if rng.random() > EMPTY_SHARE:
        return None
    return Draft(kind, ask(rng, kind, **words), say(rng, kind, "nothing", **words))
