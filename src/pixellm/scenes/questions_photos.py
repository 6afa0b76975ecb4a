"""Questions about photos: the scenes' kinds as far as photos allow, and what people ask of photos.

A person names a kind of object and wants all of it, picks one of several, or asks what no model of
this kind can know; that is answered honestly, with what is seen. Every function returns None where
the photo allows no true question of its kind this time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType

from pixellm.scenes import questions_objects as objects
from pixellm.scenes import questions_positions as positions
from pixellm.scenes import questions_talk as talk
from pixellm.scenes import questions_words as words
from pixellm.scenes.knowledge import Concept, load_knowledge
from pixellm.scenes.photo_view import PERSON, PhotoView
from pixellm.scenes.phrasing import (
    NUMBERS,
    agreeing_words,
    ask,
    load_templates,
    mark_phrases,
    plural_of,
    say,
    with_article,
)
from pixellm.scenes.questions import Ask, Dialogues, ask_about, one_of
from pixellm.scenes.questions_objects import SYNONYM_SHARE, Draft, answer_with
from pixellm.scenes.scene_view import ORDINALS, Objects, ViewedObject, is_plural

MAX_DESCRIBED = 5
"""More objects than this are not listed where nothing in particular was asked for."""

DIRECT_SHARE = 0.6
"""Share of the questions by use that ask as people do of a photo, where that is worded."""

MANY_SYNONYMS_SHARE = 0.4
"""Share of the questions that use a synonym, of a concept with three or more."""

MAX_ORDINAL = 5
"""Nobody asks for the sixth of a row."""

TINY_SHARE = 0.25
"""Share of the questions for kinds of which only tiny objects are seen that are kept."""

_PICKS = ("left", "left", "right", "right", "top", "bottom", "middle", "large", "small", "nth")
_KIND_OF_PICK = {"large": "largest", "small": "smallest"}


def name_kind(concept: Concept, rng: random.Random) -> dict[str, str]:
    """A concept by its name, now and then by a synonym, in the words of a template."""
    share = MANY_SYNONYMS_SHARE if len(concept.synonyms) > 2 else SYNONYM_SHARE
    if concept.synonyms and rng.random() < share:
        synonym = rng.choice(concept.synonyms)
        head, of, rest = synonym.partition(" of ")
        return _words_of(synonym, with_article(synonym), plural_of(head) + of + rest)
    names = concept.name, concept.indefinite, concept.plural
    return _words_of(*names, is_plural=concept.is_plural)


def _words_of(name: str, indefinite: str, plural: str, is_plural: bool = False) -> dict[str, str]:
    """The words of a template for "dog", "a dog" and "dogs"."""
    words = agreeing_words(f"the {name}", is_plural=is_plural)
    return {**words, "name": name, "a_name": indefinite, "plural": plural}


def ask_every(view: PhotoView, rng: random.Random) -> Draft | None:
    """A kind of object, answered with every one of it, whether one or many were expected."""
    keys = view.present_kinds(most=view.max_targets)
    if not keys:
        return None
    group = view.group(rng.choice(keys))
    if not any(map(view.is_clear, group)) and rng.random() > TINY_SHARE:
        return None
    concept = group[0].concept
    named = name_kind(concept, rng)
    section = "every_one" if rng.random() < (0.7 if len(group) == 1 else 0.3) else "every"
    if concept.key == PERSON and rng.random() < 0.2:
        question = ask(rng, "every_person")
    elif concept.grammar in ("mass", "plural"):
        question = ask(rng, "every_one", **named)
    else:
        question = ask(rng, section, **named)
    told = view.told(group)
    answer = answer_with(rng, "every", told, **_is_or_are(told))
    return Draft("every", question, answer, tuple(told))


def ask_pick(view: PhotoView, rng: random.Random) -> Draft | None:
    """One of two or more of a kind, by its position, its size or its number in the row."""
    keys = view.present_kinds(least=2)
    if not keys:
        return None
    group = view.group(rng.choice(keys))
    named, way = name_kind(group[0].concept, rng), rng.choice(_PICKS)
    found = _pick_by_number(view, rng, group) if way == "nth" else _pick(view, group, way)
    if found is None:
        return None
    item, key, number = found
    forms = load_templates()["picks"][key]
    if len(group) > 2 and way in ("large", "small"):
        forms = forms[:-1]  # "the big dog" is one of two
    which = rng.choice(forms).format(
        name=named["name"], nth=ORDINALS[number], number=NUMBERS[number + 1]
    )
    question = ask(rng, "pick", which=which)
    answer = say(rng, "pick", objects=mark_phrases([which]))
    return Draft(_KIND_OF_PICK.get(way, way), question, answer, (item,))


def ask_use(view: PhotoView, rng: random.Random) -> Draft | None:
    """Everything that serves a purpose, asked as people do: "What can I sit on?"."""
    keys = [key for key in view.present_uses() if f"use_{key}" in load_templates()]
    if not keys or rng.random() > DIRECT_SHARE:
        return objects.ask_by_use(view, rng)
    key = rng.choice(keys)
    found = view.serving(key)
    if len(found) > view.max_targets:
        return None
    told = view.told(found)
    answer = answer_with(rng, f"use_{key}", told)
    return Draft("use", ask(rng, f"use_{key}"), answer, tuple(told))


def ask_for_absent(view: PhotoView, rng: random.Random) -> Draft | None:
    """What the photo surely lacks: by name ("absent"), or by category or use ("negative")."""
    way = rng.random()
    if way < 0.55:
        concept = objects.absent_concept(view, rng)
        if concept is None:
            return None
        is_counted = concept.grammar in ("a", "an")
        section = "every" if is_counted and rng.random() < 0.4 else "every_one"
        question = ask(rng, section, **name_kind(concept, rng))
        denied = {"name": concept.name, **_is_or_are([], plural=concept.is_plural)}
        return Draft("absent", question, say(rng, "negative_name", **denied))
    if way < 0.8:
        return objects.ask_for_absent(view, rng, ("category", "use"))
    keys = [
        key
        for key in view.knowledge.uses
        if f"use_{key}" in load_templates() and view.surely_lacks("use", key)
    ]
    if not keys:
        return None
    key = rng.choice(keys)
    return Draft("negative", ask(rng, f"use_{key}"), say(rng, "negative_direct"))


def ask_unknown(view: PhotoView, rng: random.Random, nouns: Sequence[str]) -> Draft | None:
    """An object that no table knows; the answer says so."""
    noun = rng.choice(nouns)
    filled = {"name": noun, "a_name": with_article(noun)}
    return Draft("unknown", ask(rng, "unknown", **filled), say(rng, "unknown", **filled))


def ask_open(view: PhotoView, rng: random.Random) -> Draft | None:
    """What can't be told from objects alone: a color, a reason, a place, a feeling."""
    named = [one for one in view.objects if view.is_clear(one) and _has_plain_name(view, one)]
    if named and rng.random() < 0.6:
        item = rng.choice(named)
        words = _words_of(item.phrase[4:], "", "", is_plural=item.concept.is_plural)
        section = rng.choice(("open_color", "open_reason"))
        question = ask(rng, section, **words)
        return Draft("open", question, answer_with(rng, section, [item]), (item,))
    return _say_what_is_seen(view, rng, "open_scene", "open")


def _introduced(found: Objects) -> list[str]:
    """Objects that nobody named before: "a dog", "another dog", "some skis"."""
    seen: set[str] = set()
    phrases = []
    for item in found:
        concept = item.concept
        again = concept.key in seen and concept.grammar in ("a", "an")
        phrases.append(f"another {concept.name}" if again else concept.indefinite)
        seen.add(concept.key)
    return phrases


def _say_what_is_seen(
    view: PhotoView, rng: random.Random, section: str, kind: str, least: int = 2
) -> Draft | None:
    found = view.salient(rng.randint(least, MAX_DESCRIBED))
    question = ask(rng, section)
    if not found:
        return None if view.objects else Draft(kind, question, say(rng, section, "nothing"))
    is_all = view.is_complete and len(found) == len(view.objects)
    key = "more" if section == "describe" and not is_all else "answers"
    answer = say(rng, section, key, objects=mark_phrases(_introduced(found)))
    return Draft(kind, question, answer, tuple(found))


def _has_plain_name(view: PhotoView, item: ViewedObject) -> bool:
    """Whether a question may call an object by the phrase that answers use."""
    if f"name:{item.concept.key}" in view.ambiguous:
        return False
    return not item.position or item.position in objects.OTHER_WORDS


_Picked = tuple[ViewedObject, str, int]
"""An object, the section of its wordings, and its index in the row."""


def _pick(view: PhotoView, group: Objects, way: str) -> _Picked | None:
    """The one of a group that its position or size tells apart."""
    if way == "middle":
        middle = [one for one in group if one.position == "middle" and view.is_clear(one)]
        row = [view.index_in_row(one, group) for one in middle]
        return (middle[0], way, 0) if row == [1] else None
    if way in ("large", "small"):
        item = view.extreme_size(group, largest=way == "large")
    else:
        item = view.nearest_edge(way, group)
    return None if item is None else (item, way, 0)


def _pick_by_number(view: PhotoView, rng: random.Random, group: Objects) -> _Picked | None:
    """One that is neither the first nor the last of a row of three or more."""
    if len(group) < 3:
        return None
    item, side = rng.choice(group), rng.choice(("nth_left", "nth_left", "nth_right"))
    index = view.index_in_row(item, group)
    if index is None or not 0 < index < len(group) - 1:
        return None
    number = index if side == "nth_left" else len(group) - 1 - index
    return (item, side, number) if number < MAX_ORDINAL else None


def _is_or_are(found: Objects, *, plural: bool = False) -> dict[str, str]:
    return {"is": "are" if plural or is_plural(found) else "is"}


_PLAIN: tuple[Ask[PhotoView], ...] = (
    words.ask_if_there,
    words.ask_if_there,
    words.ask_membership,
    positions.ask_largest_in_words,
    positions.ask_if_beside,
)


_TABLE: Mapping[str, tuple[Ask[PhotoView] | None, float]] = {
    "every": (ask_every, 3.0),
    "pick": (ask_pick, 2.4),
    "naming": (objects.ask_by_name, 0.7),
    "several": (objects.ask_several, 0.9),
    "choice": (objects.ask_choice, 0.4),
    "instances": (objects.ask_instances, 0.6),
    "category": (objects.ask_by_category, 0.9),
    "use": (ask_use, 1.2),
    "activity": (objects.ask_activity, 0.4),
    "half": (positions.ask_half, 0.4),
    "relative": (positions.ask_relative, 0.5),
    "nearest": (positions.ask_nearest, 0.4),
    "size": (positions.ask_size, 0.5),
    "order": (positions.ask_order, 0.3),
    "negative": (ask_for_absent, 1.3),
    "unknown": (None, 0.4),
    "counting": (words.ask_number, 0.5),
    "plain": (one_of(_PLAIN), 0.6),
    "describe": (partial(_say_what_is_seen, section="describe", kind="describe", least=3), 0.6),
    "open": (ask_open, 0.6),
    "foreign": (partial(_say_what_is_seen, section="foreign", kind="foreign"), 0.05),
    "follow_up": (None, 0.9),
    "another": (talk.ask_another, 0.6),
    "either": (talk.ask_either, 0.3),
    "pair": (talk.ask_pair, 0.4),
    "part": (talk.ask_part, 0.2),
    "checklist": (talk.ask_checklist, 0.4),
}
"""What drafts a question of each kind, and how often it is tried when the caller gives no weights;
"unknown" needs nouns, and what a "follow_up" is about the first turn says."""

PHOTO_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {kind: weight for kind, (_, weight) in _TABLE.items()}
)
_WITHOUT_OBJECTS = ("negative", "unknown", "describe", "open", "foreign")


def compose_photo_dialogues(
    view: PhotoView,
    rng: random.Random,
    num_dialogues: int,
    *,
    kinds: Mapping[str, float] | None = None,
    nouns: Sequence[str] | None = None,
) -> Dialogues:
    """Different true dialogues about a photo, of one turn or two; fewer where it shows little.

    By the weights of :data:`PHOTO_WEIGHTS`, and with nouns for training, where none are given;
    ``nouns`` are objects that no table knows.
    """
    weights = dict(PHOTO_WEIGHTS if kinds is None else kinds)
    if not view.objects:
        weights = {kind: weights[kind] for kind in _WITHOUT_OBJECTS if kind in weights}
    known = unknown_nouns(held_out=False) if nouns is None else nouns
    asks = {kind: ask for kind, (ask, _) in _TABLE.items() if ask}
    asks["unknown"] = partial(ask_unknown, nouns=known)
    return ask_about(view, rng, num_dialogues, asks, weights)


@cache
def unknown_nouns(*, held_out: bool) -> tuple[str, ...]:
    """Nouns that no table knows: those for training, or every fifth, which it never sees."""
    path = Path(__file__).parent / "photo_tables" / "unknown.txt"
    drawn = load_knowledge().concept_by_phrase  # a model may know these from stickers
    nouns = [one for one in path.read_text(encoding="utf-8").splitlines() if one not in drawn]
    return tuple(noun for i, noun in enumerate(nouns) if (i % 5 == 0) is held_out)
