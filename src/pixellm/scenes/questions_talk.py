"""Questions as people go on talking about a photo, or type them in a hurry.

A second turn that only makes sense after the first ("And the spoon?", "Show me."), two kinds of
objects in one breath of which the photo may lack one, one of two, and parts of objects, which no
mask is known of. They are for training; no benchmark asks them.
"""

from __future__ import annotations

import random

from pixellm.scenes.knowledge import Concept
from pixellm.scenes.photo_view import PERSON, PhotoView
from pixellm.scenes.phrasing import agreeing_words, ask, grammar_words, load_templates, say
from pixellm.scenes.questions_objects import Draft, absent_concept, answer_with, definite_name
from pixellm.scenes.questions_words import tell_if_there
from pixellm.scenes.scene_view import Objects, is_plural, members_of

Talk = tuple[Draft, ...]
"""The drafts of one dialogue."""

SHOWN_SHARE = 0.3
"""Share of the second turns that ask to see what the first only told."""

MISSING_SHARE = 0.5
"""Share of the pairs of which the photo lacks one."""

MOST_LISTED = 5
"""A list has so many kinds that are there, and as many that are not, at most."""

_ANIMALS = frozenset({"animals", "pets", "farm_animals", "wild_animals"})


def ask_another(view: PhotoView, rng: random.Random) -> Talk | None:
    """A kind of object, there or not, and then another one, there or not."""
    if rng.random() < SHOWN_SHARE:
        return _ask_to_be_shown(view, rng)
    first, second = (
        (_some_present if rng.random() < 0.5 else absent_concept)(view, rng) for _ in range(2)
    )
    if first is None or second is None or first.key == second.key:
        return None
    asked = _by_name(view, rng, first, "every_one")
    other = _by_name(view, rng, second, "another")
    return (asked, other) if asked and other else None


def ask_either(view: PhotoView, rng: random.Random) -> Draft | None:
    """One of two kinds of which the photo shows one, or neither."""
    shown = _some_present(view, rng) if rng.random() < 0.8 else absent_concept(view, rng)
    missing = absent_concept(view, rng)
    if shown is None or missing is None or shown.key == missing.key:
        return None
    group = _told(view, shown)
    if group is None:
        return None
    a, b = rng.sample([shown.indefinite, missing.indefinite], 2)
    question = ask(rng, "either", a=a, b=b)
    if not group:
        return Draft("choice", question, say(rng, "either", "nothing"))
    return Draft("choice", question, answer_with(rng, "either", group), tuple(group))


def ask_pair(view: PhotoView, rng: random.Random) -> Draft | None:
    """Two kinds in one breath; of what the photo lacks the answer says so."""
    first = _some_present(view, rng)
    is_missing = rng.random() < MISSING_SHARE
    second = absent_concept(view, rng) if is_missing else _some_present(view, rng)
    if first is None or second is None or first.key == second.key:
        return None
    named = [first, second]
    rng.shuffle(named)
    found = _told(view, *named)
    if not found:
        return None
    words = {"name": named[0].name, "other": named[1].name}
    words |= {"a": named[0].indefinite, "b": named[1].indefinite}
    question = ask(rng, "pair", **words)
    if not is_missing:
        return Draft("several", question, answer_with(rng, "pair", found), tuple(found))
    words = {"is": "are" if is_plural(found) else "is", "missing": second.name}
    answer = answer_with(rng, "pair", found, key="one", **words)
    return Draft("several", question, answer, tuple(found))


def ask_checklist(view: PhotoView, rng: random.Random) -> Draft | None:
    """A list of kinds, each there or not; every word of the answer depends on the photo.

    Nothing teaches so much at once to compare a name with what is seen.
    """
    named = {
        concept.key: (concept, "yes" if is_shown else "no")
        for is_shown in (True, False) * rng.randint(1, MOST_LISTED)
        if (concept := (_some_present if is_shown else absent_concept)(view, rng)) is not None
    }
    listed = list(named.values())
    if len(listed) < 2:
        return None
    rng.shuffle(listed)
    question = ask(rng, "checklist", list=", ".join(concept.name for concept, _ in listed))
    answer = say(rng, "checklist", list=", ".join(f"{one.name} {said}" for one, said in listed))
    return Draft("plain", question, answer)


def ask_part(view: PhotoView, rng: random.Random) -> Draft | None:
    """A part of an object, which is no target; the object is shown in its place."""
    named = [one for one in view.unambiguous if not one.concept.is_plural]
    if not named:
        return None
    item = rng.choice(named)
    concept = item.concept
    kinds = set(concept.categories)
    kind = "others"
    if concept.key == PERSON:
        kind = "people"
    elif kinds & _ANIMALS:
        kind = "animals"
    elif "vehicles" in kinds:
        kind = "vehicles"
    part = rng.choice(load_templates()["parts"][kind])
    words = grammar_words(concept, definite_name(concept, rng))
    question = ask(rng, "part", **words, name=concept.name, part=part)
    answer = answer_with(rng, "part", [item], **words)
    return Draft("open", question, answer, (item,))


def _ask_to_be_shown(view: PhotoView, rng: random.Random) -> Talk | None:
    """Whether a kind is there, and if so, where."""
    concept = _some_present(view, rng)
    if concept is None:
        return None
    group = _told(view, concept)
    if not group or concept.key in view.uncountable:
        return None
    words = agreeing_words(f"the {concept.name}", is_plural=is_plural(group))
    told = tell_if_there(concept, rng, "yes")
    answer = answer_with(rng, "every", group, **words)
    return told, Draft("follow_up", ask(rng, "show_it", **words), answer, tuple(group))


def _by_name(view: PhotoView, rng: random.Random, concept: Concept, section: str) -> Draft | None:
    """A kind by its name, in a section of its own wording; shown or denied."""
    kind = "follow_up" if section == "another" else "every"
    words = grammar_words(concept, definite_name(concept, rng))
    words |= {"name": concept.name, "a_name": concept.indefinite, "plural": concept.plural}
    key = "every" if section == "another" and rng.random() < 0.3 else "questions"
    question = ask(rng, section, key, **words)
    group = _told(view, concept)
    if group is None:
        return None
    if not group:
        denied = {**words, "is": "are" if concept.is_plural else "is"}
        return Draft(kind, question, say(rng, "negative_name", **denied))
    words = agreeing_words(f"the {concept.name}", is_plural=is_plural(group))
    return Draft(kind, question, answer_with(rng, "every", group, **words), tuple(group))


def _told(view: PhotoView, *concepts: Concept) -> Objects | None:
    """What an answer names of some kinds; None where these are more targets than it may have."""
    found = [one for concept in concepts for one in view.told(view.group(concept.key))]
    return found if len(members_of(found)) <= view.max_targets else None


def _some_present(view: PhotoView, rng: random.Random) -> Concept | None:
    keys = view.present_kinds()
    return view.knowledge.concepts[rng.choice(keys)] if keys else None
