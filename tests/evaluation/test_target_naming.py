"""Whether phrases name targets."""

from __future__ import annotations

import pytest

from pixellm.evaluation.scores import count_named, is_named_by


@pytest.mark.parametrize(
    "name, phrase, names",
    [
        ("apple", "the red Apples", True),
        ("traffic light", "two traffic lights on the left", True),
        ("bat_(animal)", "the bat", True),
        ("knife", "sharp knives", True),
        ("person", "the people", True),
        ("bus", "the buses", True),
        ("glass", "wine glasses", True),
        ("strawberry", "the strawberries", True),
        ("scissors", "a pair of scissors", True),
        ("hot_dog", "a hot dog", True),
        ("apple", "the pineapple", False),
        ("traffic light", "light traffic", False),
        ("", "cup", False),
        ("cup", "", False),
    ],
)
def test_a_phrase_names_an_object(name, phrase, names):
    assert is_named_by(name, phrase) == names


@pytest.mark.parametrize(
    "names, phrases, count",
    [
        (["cup", "cup", "dog"], ["the cup", "the dog", "a tree"], 2),
        # "the hot dog" fits both; taking it for "dog" first would leave "hot dog" without a phrase.
        (["dog", "hot dog"], ["the hot dog", "the dog"], 2),
        ([], ["cup"], 0),
        (["cup"], [], 0),
    ],
)
def test_each_phrase_names_one_object_only_as_well_as_possible(names, phrases, count):
    assert count_named(names, phrases) == count
