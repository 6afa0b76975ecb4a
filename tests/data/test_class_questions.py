"""Questions and answers for classes: as many marks as masks, varied, and in whole sentences."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixellm.data.questions import (
    NamedMasks,
    as_benchmark_asks,
    ask_for_absent,
    ask_for_instances,
    ask_for_regions,
    benchmark_turn,
    definite,
    load_phrases,
    plain_question,
)
from pixellm.masks import encode_mask
from pixellm.types import SEG_MARK, Target

MASK = encode_mask(np.ones((2, 2), dtype=bool))


def thing(name, count=1):
    return NamedMasks(name, (Target(name, MASK),) * count)


def turns(ask, things, number=300):
    return [ask(random.Random(seed), things) for seed in range(number)]


names = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=12)


@given(st.lists(names, min_size=1, max_size=4), st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_any_name_makes_whole_sentences_with_one_mark_a_mask(words, seed):
    things = [thing(name, 1 + seed % 3) for name in words]
    turn = ask_for_instances(random.Random(seed), things)
    assert turn.answer.count(SEG_MARK) == len(turn.targets) == sum(len(t.targets) for t in things)
    assert turn.answer.endswith(".")
    assert all("{" not in text.replace(SEG_MARK, "") for text in (turn.question, turn.answer))
    assert SEG_MARK not in turn.question


def test_several_names_are_all_asked_for_and_answered_in_order():
    for turn in turns(ask_for_regions, [thing("sky"), thing("road"), thing("a red car")]):
        for name in ("sky", "road", "red car"):
            assert name in turn.question
        places = [turn.answer.find(name) for name in ("sky", "road", "red car")]
        assert places == [-1] * 3 or places == sorted(places)
        assert "a red car" not in turn.question or "in this image? Please" in turn.question


@pytest.mark.parametrize("words", [["The man on left"], ["sky", "a red car", "road"]])
def test_the_questions_of_the_published_evaluations_are_among_those_of_training(words):
    """Word for word as the benchmarks ask, and answered by masks alone as they are there."""
    asked = benchmark_turn([as_benchmark_asks(thing(name)) for name in words])
    found = turns(ask_for_regions, [thing(name) for name in words], 2000)
    assert asked.question in {turn.question for turn in found}
    assert asked.answer in {turn.answer for turn in found}


def test_answers_come_together_one_by_one_and_without_names():
    answers = [turn.answer for turn in turns(ask_for_regions, [thing("sky"), thing("road")])]
    bare = [answer for answer in answers if "sky" not in answer]
    one_by_one = [answer for answer in answers if re.search(r"\{seg\}\. .*road", answer)]
    together = [
        answer for answer in answers if "the sky {seg} and the road {seg}" in answer.lower()
    ]
    assert 0.1 < len(bare) / len(answers) < 0.3
    assert 0.1 < len(one_by_one) / len(answers) < 0.5
    assert 0.2 < len(together) / len(answers) < 0.8
    questions = {turn.question for turn in turns(ask_for_regions, [thing("sky"), thing("road")])}
    assert len(questions) > 2 * len(load_phrases("classes")["several"]["questions"])


def test_instances_are_told_apart_and_a_lone_one_is_not_numbered():
    told_apart = r"first dog|second dog|third dog|dog [123]|one dog|another dog"
    for turn in turns(ask_for_instances, [thing("dog", 3), thing("cat")]):
        phrases = re.findall(told_apart, turn.answer.lower())
        assert len(phrases) == 3
        assert len(set(phrases)) >= 2
        assert "the cat" in turn.answer.lower()


def test_masks_without_names_are_of_one_class_and_ordinals_go_on():
    answers = [turn.answer for turn in turns(ask_for_instances, [thing("pea", 34)])]
    assert any("pea" not in answer for answer in answers)
    for words in ("first pea", "ninth pea", "11th pea", "21st pea", "22nd pea", "33rd pea"):
        assert words in " ".join(answers)
    assert not any("left to right" in t.answer for t in turns(ask_for_instances, [thing("dog")]))


def test_absent_classes_are_denied_by_name():
    found = {ask_for_absent(random.Random(seed), "unicorn") for seed in range(100)}
    assert all("unicorn" in turn.question and "unicorn" in turn.answer for turn in found)
    assert all(turn.targets == () and turn.kind == "absent" for turn in found)
    assert len({turn.answer for turn in found}) == len(load_phrases("classes")["absent"]["answers"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dog", "the dog"),
        ("A dog.", "the dog"),
        ("The man in a red shirt", "the man in a red shirt"),
        ("Two cups", "the two cups"),
        ("TV", "the TV"),
        ("his left hand", "his left hand"),
        ("  old   an chor ", "the old an chor"),
        ("anchor", "the anchor"),
    ],
)
def test_names_stand_in_a_sentence(name, words):
    assert definite(name) == words
    assert plain_question(name) == f"Segment {words}."


def test_impossible_questions_are_refused():
    for name in ("", " ", "."):
        with pytest.raises(ValueError, match="needs words"):
            definite(name)
    with pytest.raises(ValueError, match="exactly one mask"):
        ask_for_regions(random.Random(0), [thing("dog", 2)])
    with pytest.raises(ValueError, match="at least one mask"):
        ask_for_instances(random.Random(0), [thing("dog", 0)])
