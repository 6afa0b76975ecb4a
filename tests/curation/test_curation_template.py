"""The writer without a model: how it tells objects apart, and that it asks where it can."""

import json
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation_runs import make_photos, run_all, source_of

from pixellm.curation.photos import Instance, Photo
from pixellm.curation.proposal import Writing
from pixellm.curation.rules import Draft, Scene, Vocabulary, verify
from pixellm.curation.template import TemplateWriter, describe, styles_for
from pixellm.masks import encode_mask

TOPICS = json.loads(resources.files("pixellm.curation").joinpath("topics.json").read_text("utf-8"))[
    "topics"
]
CATEGORIES = sorted({name for topic in TOPICS for name in topic["of"] + topic.get("also", [])})
SIZE = (100, 200)
EMPTY = encode_mask(np.zeros(SIZE, dtype=bool))


def instance(number: int, category: str, box: tuple[float, float, float, float]) -> Instance:
    """An object whose mask is empty; descriptions look at boxes alone."""
    return Instance(number, 1, category, box, EMPTY)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(90, 40, 20, 20)], ["the cup in the middle"]),
        ([(0, 70, 190, 30)], ["the cup along the bottom"]),
        ([(0, 10, 190, 85)], ["the cup that fills most of the photo"]),
        ([(150, 5, 20, 20), (10, 5, 20, 20)], ["the cup on the right", "the cup on the left"]),
        ([(90, 5, 20, 20), (92, 70, 20, 20)], ["the cup at the top", "the cup at the bottom"]),
        (
            [(10, 5, 20, 20), (90, 5, 20, 20), (170, 5, 20, 20)],
            ["the cup on the left", "the cup in the middle", "the cup on the right"],
        ),
        (
            [(10, 5, 20, 20), (50, 5, 20, 20), (90, 5, 20, 20), (150, 5, 20, 20)],
            [
                "the leftmost cup",
                "the second cup from the left",
                "the third cup from the left",
                "the rightmost cup",
            ],
        ),
        ([(80, 30, 40, 40), (90, 40, 20, 20)], ["the larger cup", "the smaller cup"]),
        ([(80, 30, 40, 40), (81, 31, 40, 40)], None),
    ],
)
def test_objects_of_one_class_are_told_apart(
    boxes: list[tuple[float, float, float, float]], expected: list[str] | None
) -> None:
    cups = [instance(number, "cup", box) for number, box in enumerate(boxes)]
    found = describe(cups, SIZE)
    assert ([found[cup.id] for cup in cups] if found else None) == expected


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: f"{topic['style']}-{topic['of'][0]}")
def test_every_wording_of_a_topic_keeps_the_rules(topic: dict[str, Any]) -> None:
    names = (topic["of"] * 2)[:2] if not topic.get("also") else [topic["of"][0], "person"]
    objects = [instance(n, name, (100.0 * n - 95, 40, 20, 20)) for n, name in enumerate(names, 1)]
    scene = Scene(Photo("1", "1.jpg", SIZE, tuple(objects)), Vocabulary(CATEGORIES))
    texts = [
        f"the {name} on the {side}" for name, side in zip(names, ("left", "right"), strict=False)
    ]
    listed = " and ".join(f"{text} {{seg:{n}}}" for n, text in enumerate(texts, 1))
    for question, answer in product(topic["ask"], topic["answer"]):
        assert "{objects}" in answer
        answer = answer.replace("{objects}", listed)
        assert verify(Draft(question, answer, tuple(enumerate(texts, 1))), scene) == [], question


def test_a_photo_is_asked_in_the_styles_that_fit_it_alone() -> None:
    animals = Photo(
        "1",
        "1.jpg",
        SIZE,
        (instance(1, "cow", (10, 40, 20, 20)), instance(2, "cow", (150, 40, 20, 20))),
    )
    styles = tuple(Writing(Vocabulary(CATEGORIES)).styles)
    fitting = styles_for(animals, styles)
    assert "cause" in fitting and "comparison" not in fitting  # no masks to compare
    assert set(fitting) < set(styles)
    nothing = Photo("2", "2.jpg", SIZE, (instance(1, "spaceship", (10, 40, 20, 20)),))
    assert styles_for(nothing, styles) == ()


def test_a_run_tries_no_style_in_which_there_is_nothing_to_ask(tmp_path: Path) -> None:
    make_photos(tmp_path, 12)
    source = source_of(tmp_path, model="template", questions=6)
    summary, _ = run_all(source, tmp_path / "out", {"": TemplateWriter()}, styles_for=styles_for)
    assert summary["final"].get("nothing_to_ask", 0) == 0
    assert sum(counts["questions"] for counts in summary["splits"].values()) > 0
