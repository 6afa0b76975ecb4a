"""Answers with ``{seg}`` marks: taken apart and put together again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixellm.types import SEG_MARK, join_marks, split_marks

pieces = st.lists(st.sampled_from(["a cup", "The dog", ",", " and ", ".", "is", "é"]), max_size=4)


@pytest.mark.parametrize(
    ("answer", "text", "clauses"),
    [
        ("", "", []),
        ("No dog.", "No dog.", []),
        ("{seg}.", ".", [""]),
        ("A cup {seg} or a saw{seg}.", "A cup or a saw.", ["A cup", " or a saw"]),
        ("A cup  {seg} {seg}", "A cup", ["A cup", ""]),
        ("Both \n{seg}{seg} of them", "Both of them", ["Both", ""]),
    ],
)
def test_an_answer_is_split_at_its_marks(answer: str, text: str, clauses: list[str]) -> None:
    found, spans = split_marks(answer)
    assert found == text
    assert [found[start:end] for start, end in spans] == clauses


@given(st.text(max_size=30).filter(lambda text: SEG_MARK not in text))
@settings(max_examples=50, deadline=None)
def test_text_without_marks_stays_as_it_is(text: str) -> None:
    assert split_marks(text) == (text, ())
    assert join_marks(text, ()) == text


@given(st.lists(pieces, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_what_is_split_can_be_joined(parts: list[list[str]]) -> None:
    *clauses, rest = ("".join(words) for words in parts)
    answer = "".join(f"{clause.rstrip()} {SEG_MARK}" for clause in clauses) + rest
    text, spans = split_marks(answer)
    assert len(spans) == len(clauses)
    assert join_marks(text, spans) == answer


def test_a_mark_that_nobody_placed_is_dropped() -> None:
    assert join_marks("the {seg}cup and a saw", [(0, 12)]) == "the cup {seg} and a saw"
