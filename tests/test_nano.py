"""The embedded model: present, small, and useful on photos that anybody may share."""

from pathlib import Path

import pytest

import pixellm
from pixellm.checkpoint.sources import EMBEDDED_DIR

EXAMPLES = Path(__file__).parents[1] / "src/pixellm/examples"


@pytest.fixture(scope="module")
def nano() -> "pixellm.Engine":
    return pixellm.load("nano", device="cpu")


def test_the_embedded_models_take_at_most_30_megabytes() -> None:
    sizes = [file.stat().st_size for file in EMBEDDED_DIR.glob("*/*")]
    assert 5e6 < sum(sizes) < 30e6


def test_it_answers_the_demo_question_with_a_mask_for_each_thing(nano: "pixellm.Engine") -> None:
    question = (EXAMPLES / "question.txt").read_text(encoding="utf-8").strip()
    answer = nano.predict(EXAMPLES / "coffee.jpg", question)
    table, cup = (segment.mask for segment in answer.segments)
    assert cup[150, 250]  # in the cup's middle
    assert table[350, 200]  # on the saucer's side of the table
    assert not cup[380, 580]
    assert cup.sum() < table.sum()
    assert all(0.5 < segment.score < 1 for segment in answer.segments)


@pytest.mark.parametrize(
    ("name", "question", "inside", "outside"),
    [
        ("chelsea", "Where is the cat?", (150, 230), (60, 430)),
        ("astronaut", "Show me the person.", (350, 200), (20, 420)),
    ],
)
def test_it_finds_what_a_photo_shows(
    nano: "pixellm.Engine",
    name: str,
    question: str,
    inside: tuple[int, int],
    outside: tuple[int, int],
) -> None:
    answer = nano.predict(EXAMPLES / f"{name}.jpg", question)
    (segment,) = answer.segments
    assert segment.mask[inside] and not segment.mask[outside]
    assert 0.2 < segment.mask.mean() < 0.9
    assert answer.info["familiarity"] > 0.5


def test_what_a_photo_does_not_show_gets_no_mask(nano: "pixellm.Engine") -> None:
    for question in ("Show me the bus.", "Segment the pizza.", "Where is the chair?"):
        assert not nano.predict(EXAMPLES / "chelsea.jpg", question).segments


def test_other_scripts_are_told_that_it_speaks_english(nano: "pixellm.Engine") -> None:
    answer = nano.predict(EXAMPLES / "astronaut.jpg", "Покажи человека")
    assert "English" in answer.text
