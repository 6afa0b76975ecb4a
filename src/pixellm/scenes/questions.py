"""Dialogues about a scene: chooses kinds of questions by weight and checks what may be asked.

The kinds themselves live in ``questions_objects``, ``_positions`` and ``_words``, their wording in
``templates.toml``. This module knows neither images nor models.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from pixellm.scenes import questions_objects as objects
from pixellm.scenes import questions_positions as positions
from pixellm.scenes import questions_words as words
from pixellm.scenes.knowledge import Knowledge
from pixellm.scenes.questions_objects import Draft
from pixellm.scenes.scene import Scene
from pixellm.scenes.scene_view import SceneView, members_of
from pixellm.types import Turn

View = TypeVar("View", bound=SceneView)
Ask = Callable[[View, random.Random], Draft | tuple[Draft, ...] | None]
Allowed = Callable[[str, str], bool]
Dialogues = list[tuple[Turn, ...]]

_PLAIN: tuple[Ask[SceneView], ...] = (
    words.ask_if_there,
    words.ask_color,
    words.ask_membership,
    positions.ask_largest_in_words,
    positions.ask_if_beside,
)


def one_of(asks: Sequence[Ask[View]]) -> Ask[View]:
    """What asks in one of several ways, at random."""
    return lambda view, rng: rng.choice(asks)(view, rng)


_TABLE: Mapping[str, tuple[Ask[SceneView], float]] = {
    "naming": (objects.ask_by_name, 1.0),
    "several": (objects.ask_several, 1.0),
    "choice": (objects.ask_choice, 0.0),
    "instances": (objects.ask_instances, 1.0),
    "category": (objects.ask_by_category, 1.0),
    "use": (objects.ask_by_use, 1.2),
    "half": (positions.ask_half, 1.0),
    "relative": (positions.ask_relative, 1.4),
    "nearest": (positions.ask_nearest, 1.0),
    "size": (positions.ask_size, 1.0),
    "order": (positions.ask_order, 0.0),
    "activity": (objects.ask_activity, 0.9),
    "negative": (objects.ask_for_absent, 0.9),
    "counting": (words.ask_number, 0.6),
    "plain": (one_of(_PLAIN), 0.8),
}
"""What drafts a question of each kind, and how often it is tried when the caller gives no weights;
0 is asked only where it is weighed, as are parts of kinds."""

KINDS: tuple[str, ...] = (*_TABLE, "follow_up")
"""Every value of ``Turn.kind``. A "follow_up" is the second turn of a dialogue."""

DEFAULT_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {kind: weight for kind, (_, weight) in _TABLE.items() if weight} | {"follow_up": 0.8}
)

_ASKS: Mapping[str, Ask[SceneView]] = {
    **{kind: ask for kind, (ask, _) in _TABLE.items()},
    "negative_group": partial(objects.ask_for_absent, ways=("category", "use")),
    "many": objects.ask_many,
    "repeat": words.ask_to_repeat,
    "where": words.ask_where,
}
"""What can be weighed: the kinds, and parts of kinds whose turns are of the whole kind."""

_FOLLOWED = ("naming", "several", "instances", "category", "use", "half", "nearest", "size")
"""Kinds that a second turn can refer to."""

_TRIES_PER_KIND = 6
"""A kind that fails this often in a row is not tried again in the scene."""


def compose_dialogues(
    scene: Scene,
    knowledge: Knowledge,
    rng: random.Random,
    num_dialogues: int,
    *,
    kinds: Mapping[str, float] | None = None,
    allowed: Allowed | None = None,
) -> Dialogues:
    """Different true dialogues about a scene, of one turn or two; fewer where it allows no more.

    Answers name objects left to right by their centres, except that "several" and "activity" follow
    the order of the question. The same arguments give the same dialogues. The scene's concepts are
    in ``knowledge``.

    By weight of each kind, :data:`DEFAULT_WEIGHTS` if None; a kind left out is not asked.
    "negative_group" asks for absent categories and uses alone, beside "negative"; "many" asks for
    three objects and more, a "several" question; "repeat" has words said again and "where" has
    positions told in words, "plain" ones. ``allowed`` tells whether a kind of question may have a
    concept among its targets.
    """
    weights = dict(DEFAULT_WEIGHTS if kinds is None else kinds)
    check_weights(weights)
    view = SceneView(scene, knowledge)
    if not view.objects:
        return []
    return ask_about(view, rng, num_dialogues, _ASKS, weights, allowed)


def ask_about(
    view: View,
    rng: random.Random,
    num_dialogues: int,
    asks: Mapping[str, Ask[View]],
    weights: Mapping[str, float],
    allowed: Allowed | None = None,
) -> Dialogues:
    """Different dialogues about a view, by kinds of questions of the caller's.

    ``asks`` drafts a question of each kind, or returns None; ``weights`` says how often each kind
    of them, or "follow_up", is tried; ``allowed`` tells whether a kind of question may have a
    concept among its targets.
    """
    left = {kind: _TRIES_PER_KIND for kind, weight in weights.items() if weight > 0}
    dialogues: Dialogues = []
    asked: set[object] = set()
    while left and len(dialogues) < num_dialogues:
        kind = rng.choices(list(left), [weights[one] for one in left])[0]
        drafts = _draft_dialogue(view, rng, kind, asks)
        identities = _identities(drafts) if drafts else []
        if drafts and asked.isdisjoint(identities) and _are_allowed(drafts, allowed):
            asked.update(identities)
            dialogues.append(tuple(draft.to_turn() for draft in drafts))
            left[kind] = _TRIES_PER_KIND
            continue
        left[kind] -= 1
        if not left[kind]:
            del left[kind]
    return dialogues


def _draft_dialogue(
    view: View, rng: random.Random, kind: str, asks: Mapping[str, Ask[View]]
) -> tuple[Draft, ...]:
    """One dialogue of a kind; () where it did not work out this time."""
    if kind != "follow_up":
        drafts = asks[kind](view, rng)
        return drafts if isinstance(drafts, tuple) else (drafts,) if drafts else ()
    first = asks[rng.choice(_FOLLOWED)](view, rng)
    if not isinstance(first, Draft) or not first.objects:
        return ()
    second = positions.follow_up(view, rng, replace(first, objects=members_of(first.objects)))
    return (first, second) if second else ()


def _identities(drafts: Sequence[Draft]) -> list[object]:
    """What makes a dialogue a repetition: its words, or what it answers to which kind."""
    marks: list[object] = [" | ".join(draft.question.lower() for draft in drafts)]
    last = drafts[-1]
    if last.objects and len(drafts) == 1:
        answered = last.objects if last.kind == "order" else frozenset(last.objects)
        marks.append((last.kind, answered))
    return marks


def _are_allowed(drafts: Sequence[Draft], allowed: Allowed | None) -> bool:
    return allowed is None or all(
        allowed(item.concept.key, draft.kind) for draft in drafts for item in draft.objects
    )


def check_weights(
    weights: Mapping[str, float], known: Iterable[str] = (*_ASKS, "follow_up")
) -> None:
    """ValueError for no table of weights, an unknown kind, a negative weight, or nothing to ask."""
    if not isinstance(weights, Mapping):
        raise ValueError(f"Weights of kinds of questions are a table of numbers, not {weights!r}.")
    for kind, weight in weights.items():
        if kind not in known:
            raise ValueError(f"Unknown kind of question {kind!r}; choose from {', '.join(known)}.")
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"The weight of {kind!r} is {weight!r}; give a number from 0 on.")
    if not any(weights.values()):
        raise ValueError("No kind of question has a weight above 0; give one to at least one.")
