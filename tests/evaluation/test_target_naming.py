"""Whether phrases name targets."""

from __future__ import annotations

import pytest

from pixellm.evaluation.scores import count_named, is_named_by


@pytest.mark.parametrize(
    "name, phrase",
    [
        ("apple", "the red Apples"),
        ("traffic light", "two traffic lights on the left"),
        ("bat_(animal)", "the bat"),
        ("knife", "sharp knives"),
        ("person", "the people"),
        ("bus", "the buses"),
        ("glass", "wine glasses"),
        ("strawberry", "the strawberries"),
        ("scissors", "a pair of scissors"),
        ("hot_dog", "a hot dog"),
    ],
)
def test_a_phrase_names_an_object(name, phrase):
    assert is_named_by(name, phrase)


@pytest.mark.parametrize(
    "name, phrase",
    [("apple", "the pineapple"), ("traffic light", "light traffic"), ("", "cup"), ("cup", "")],
)
def test_a_phrase_does_not_name_an_object(name, phrase):
    assert not is_named_by(name, phrase)


def test_each_phrase_names_one_object_only():
    assert count_named(["cup", "cup", "dog"], ["the cup", "the dog", "a tree"]) == 2


def test_names_are_given_out_as_well_as_possible():
    # "the hot dog" fits both; taking it for "dog" first would leave "hot dog" without a phrase.
    assert count_named(["dog", "hot dog"], ["the hot dog", "the dog"]) == 2


def test_nothing_to_name():
    assert count_named([], ["cup"]) == count_named(["cup"], []) == 0
