"""The phrase that a mask grounds: a table of answers, and what holds for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixellm.processing.phrases import phrase_before

# "|" stands where a codebook group stands, brackets around the phrase of the last group.
SENTENCES = [
    "[the left banana]|",
    "It is [the left banana]|",
    "You could use [the pair of scissors]|",
    "two bananas: [one]|",
    "two bananas: one| and [another]|",
    "[a man in a red shirt]|",
    "I see [a man in a red shirt]|",
    "That would be [the cup on the left]|",
    "There is [the dog next to the chair]|",
    "Sure, [the red apple] is|",
    "Sure, the red apple is|, [the white box] is|",
    "Sure, the red apple is|, the white box is| and [the yellow kite] is|",
    "The apple| and [the kite]|",
    "The apple|, the pear| or [the two kites]|",
    "Here are [two bananas]|",
    "It's [the brush]|",
    "It’s [the brush]|",
    "You'll need [your umbrella]|",
    "You can cut the rope with [the knife]|",
    "Cut the rope with [a knife]|",
    "Put the apple in [the basket on the left]|",
    "The apple| goes into [the basket]|",
    "On the left is [the cat]|",
    "In the picture, [the largest animal] is|",
    "Take the ladder to reach [the kite]|",
    "[the one to the left of the guitar]|",
    "You could drink from [the mug]|",
    "I'd pick [bananas]|",
    "You need scissors| and then [glue]|",
    "[the man who is wearing a hat]|",
    "I think that [the dog]|",
    "[a woman holding a cup]|",
    "We have [a vase filled with flowers]|",
    "[the watering can on the table]|",
    "[a can of beans]|",
    "The scissors can cut [the rope]|",
    "[the left one]|",
    "[all the fruit]|",
    "[the first two bananas]|",
    "[3 apples]|",
    "[the cat] is here|",
    "The cats| are [the two animals nearest to the bottom]|",
    "Yes, [the T-shirt]|",
    "use the spoon| with [the bowl]|",
    '"[a blue cup]"|',
    "[the green pear]. |",
    "No. [Its tail]|",
    "[Bananas]|",
    "bananas, [apples]|",
    "[slices of the cake]|",
    "I was thinking of [the cake]|",
    "The knife on the table cuts| [the rope]|",
    "[the dog that chases the ball]|",
    "Put the cup next to [the plate]|",
    "Give the bone to [the dog]|",
    "I would choose [this]|",
    "[die rote Tasse]|",
]


def split_marks(marked):
    """The bare text, the places of its groups, and the bracketed span."""
    text, groups, span = "", [], []
    for character in marked:
        if character == "|":
            groups.append(len(text))
        elif character in "[]":
            span.append(len(text))
        else:
            text += character
    return text, groups, tuple(span)


@pytest.mark.parametrize("marked", SENTENCES)
def test_phrase_of_the_last_group(marked):
    text, groups, expected = split_marks(marked)
    start = groups[-2] if len(groups) > 1 else 0
    first, last = phrase_before(text, groups[-1], start)
    assert text[first:last] == text[slice(*expected)]
    assert (first, last) == expected


@pytest.mark.parametrize("text", ["", "   ", ", .", "..."])
def test_without_a_word_the_span_is_empty_and_at_the_group(text):
    assert phrase_before(text, len(text)) == (len(text), len(text))


def test_text_behind_the_group_and_before_the_start_is_not_read():
    text = "the cup and the plate on the table"
    assert phrase_before(text, 7) == (0, 7)
    assert phrase_before(text, 21, 7) == (12, 21)


WORDS = ["the", "a", "two", "red", "cup", "and", "or", "with", "in", "to", "is", "can", "put"]
WORDS += ["that", "who", "of", "left", "you", "é", "'", ",", "."]


@given(
    words=st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=12),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_the_span_lies_inside_and_is_never_empty_where_there_is_a_word(words, cut):
    text = " ".join(words)
    start, end = sorted(int(part * len(text)) for part in cut)
    first, last = phrase_before(text, end, start)
    assert start <= first <= last <= end
    phrase = text[first:last]
    assert phrase == phrase.strip(" ,.;:!?")
    assert bool(phrase) == any(c.isalnum() for c in text[start:end])
    assert ", " not in phrase and " and " not in phrase.lower()
