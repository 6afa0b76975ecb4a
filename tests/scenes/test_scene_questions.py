"""Questions about scenes are true, complete, readable and reproducible.

Scenes are made by hand here, without images: what matters is where objects lie. A mask's counts
hold the number of its object, so that a target tells which object it is.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from pixellm.scenes.knowledge import load_knowledge
from pixellm.scenes.phrasing import concept_of_phrase, load_templates
from pixellm.scenes.questions import DEFAULT_WEIGHTS, KINDS, compose_dialogues
from pixellm.scenes.scene import Scene, SceneObject
from pixellm.scenes.scene_view import SceneView
from pixellm.types import RLE, SEG_MARK, Turn

SIDE = 200
KNOWLEDGE = load_knowledge()


def scene_of(*placed: tuple[str, float, float, int]) -> Scene:
    """A scene of (concept, x, y, width) with square objects centred at x, y."""
    objects = []
    for number, (concept, x, y, width) in enumerate(placed):
        box = (round(x - width / 2), round(y - width / 2), width, width)
        mask = RLE(size=[SIDE, SIDE], counts=str(number))
        objects.append(SceneObject(concept, mask, box, width * width, (x, y)))
    return Scene(np.zeros((SIDE, SIDE, 3), np.uint8), tuple(objects))


def random_scene(rng: random.Random) -> Scene:
    concepts = rng.sample(list(KNOWLEDGE.concepts), rng.randint(2, 6))
    if len(concepts) > 2 and rng.random() < 0.4:
        concepts[-1] = concepts[0]
    places = [
        (one, rng.uniform(30, 170), rng.uniform(30, 170), rng.randint(20, 60)) for one in concepts
    ]
    return scene_of(*places)


def turns_of(
    scene: Scene, kind: str, num_dialogues: int = 60, seed: int = 0
) -> list[tuple[Turn, ...]]:
    return compose_dialogues(
        scene, KNOWLEDGE, random.Random(seed), num_dialogues, kinds={kind: 1.0}
    )


def targets_by_question(scene: Scene, kind: str, seeds: int = 150) -> dict[str, list[int]]:
    """Every single-turn question that comes up, in lower case and bare, to its objects."""
    found = {}
    for seed in range(seeds):
        for (turn,) in turns_of(scene, kind, seed=seed):
            found[turn.question.lower().rstrip(".?")] = numbers_of(turn)
    return found


def numbers_of(turn: Turn) -> list[int]:
    return [int(target.mask["counts"]) for target in turn.targets]


@pytest.fixture(scope="module")
def corpus() -> list[tuple[Scene, tuple[Turn, ...]]]:
    rng = random.Random(11)
    pairs = []
    for _ in range(400):
        scene = random_scene(rng)
        pairs += [(scene, one) for one in compose_dialogues(scene, KNOWLEDGE, rng, 6)]
    return pairs


KITCHEN_TABLE = scene_of(
    ("scissors", 30, 40, 40),
    ("banana", 60, 150, 30),
    ("guitar", 110, 80, 70),
    ("banana", 150, 170, 20),
    ("apple", 170, 30, 26),
)
SCISSORS, BANANA_LEFT, GUITAR, BANANA_RIGHT, APPLE = range(5)


@cache
def kitchen_questions(kind: str) -> dict[str, list[int]]:
    return targets_by_question(KITCHEN_TABLE, kind)


@pytest.mark.parametrize(
    ("kind", "question", "objects"),
    [
        ("naming", "show me the guitar", [GUITAR]),
        ("naming", "show me the electric guitar", [GUITAR]),
        ("naming", "where are the scissors", [SCISSORS]),
        ("several", "where are the apple and the scissors", [APPLE, SCISSORS]),
        ("several", "where are the scissors and the apple", [SCISSORS, APPLE]),
        ("instances", "where are the bananas", [BANANA_LEFT, BANANA_RIGHT]),
        ("instances", "show me the left banana", [BANANA_LEFT]),
        ("instances", "show me the banana on the right", [BANANA_RIGHT]),
        ("category", "show me all the fruit", [BANANA_LEFT, BANANA_RIGHT, APPLE]),
        ("category", "where are the musical instruments", [GUITAR]),
        ("use", "what could i cut a thin rope with", [SCISSORS]),
        ("use", "what could i use to play a stringed instrument", [GUITAR]),
        ("half", "what is in the bottom half", [BANANA_LEFT, BANANA_RIGHT]),
        ("half", "what is in the top half", [SCISSORS, GUITAR, APPLE]),
        ("relative", "what is to the left of the guitar", [SCISSORS, BANANA_LEFT]),
        ("relative", "what is below the guitar", [BANANA_LEFT, BANANA_RIGHT]),
        ("relative", "what is left of the scissors", []),
        ("nearest", "what is closest to the bottom edge", [BANANA_RIGHT]),
        ("nearest", "what is furthest to the left", [SCISSORS]),
        ("size", "which thing is the largest", [GUITAR]),
        ("size", "which thing is the smallest", [BANANA_RIGHT]),
        ("size", "which is the largest piece of fruit", [BANANA_LEFT]),
        ("size", "which is larger, the apple or the scissors", [SCISSORS]),
    ],
)
def test_a_question_gets_exactly_the_right_objects(
    kind: str, question: str, objects: list[int]
) -> None:
    assert kitchen_questions(kind)[question] == objects


def test_things_are_named_in_the_order_asked_for() -> None:
    keys = {
        "left": lambda one: one.center[0],
        "right": lambda one: -one.center[0],
        "top": lambda one: one.center[1],
        "bottom": lambda one: -one.center[1],
        "large": lambda one: -one.area,
        "small": lambda one: one.area,
    }
    seen = Counter[tuple[str, bool]]()
    for seed in range(60):
        for (turn,) in turns_of(KITCHEN_TABLE, "order", seed=seed):
            question = turn.question.rstrip(".?")
            wordings = load_templates()["orders"]
            (order,) = [key for key in keys if question.endswith(wordings[key])]
            objects = [KITCHEN_TABLE.objects[number] for number in numbers_of(turn)]
            assert objects == sorted(objects, key=keys[order]), turn
            seen[order, len(objects) == len(KITCHEN_TABLE.objects)] += 1
    assert min(seen[order, False] for order in keys) > 20
    assert seen["left", True] > 5


@pytest.mark.parametrize(("small", "asked"), [(40, True), (48, False)])
def test_things_are_put_in_order_only_where_it_is_clear(small: int, asked: bool) -> None:
    scene = scene_of(("apple", 40, 100, 53), ("guitar", 160, 105, small), ("dog", 100, 104, 20))
    questions = " ".join(targets_by_question(scene, "order"))
    assert ("name all things from the largest to the smallest" in questions) is asked
    assert "name all things from left to right" in questions
    assert "top to bottom" not in questions and "bottom up" not in questions


def test_a_choice_names_absent_things_too_and_answers_those_that_are_there() -> None:
    checked = 0
    crowd = ("boot", "dog", "kite", "sailboat", "saxophone", "volcano")
    crowded = scene_of(*((one, 20 + 30 * i, 99, 9) for i, one in enumerate(crowd)))
    for seed in range(60):
        for (turn,) in turns_of(crowded, "choice", seed=seed):
            assert 2 <= len(re.findall(r"\bthe (?!picture)", turn.question)) <= 5, turn
        for (turn,) in turns_of(KITCHEN_TABLE, "choice", seed=seed):
            found = [
                key
                for phrase in re.findall(r"the ([a-z' -]+?)(?=, | or the |[:?.]|$)", turn.question)
                if (key := concept_of_phrase(phrase, KNOWLEDGE))
            ]
            present = {KITCHEN_TABLE.objects[number].concept for number in numbers_of(turn)}
            assert present and present < set(found), turn
            assert not (set(found) - present) & {"scissors", "guitar", "apple", "banana"}
            order = [KITCHEN_TABLE.objects[number].concept for number in numbers_of(turn)]
            assert order == [key for key in found if key in present]
            checked += 1
    assert checked > 300


def test_many_asks_for_three_things_or_more_in_the_order_of_the_question() -> None:
    scene = scene_of(
        *((one, 30 + 28 * i, 100, 20) for i, one in enumerate(("guitar", "kite", "dog", "boot")))
    )
    sizes = Counter[int]()
    for seed in range(40):
        for (turn,) in turns_of(scene, "many", seed=seed):
            assert turn.kind == "several"
            sizes[len(turn.targets)] += 1
    assert set(sizes) == {3, 4}
    assert turns_of(KITCHEN_TABLE, "many") and not turns_of(scene_of(*[("dog", 9, 9, 9)]), "many")


def test_names_are_repeated_in_their_order_without_masks() -> None:
    for seed in range(20):
        for (turn,) in turns_of(KITCHEN_TABLE, "repeat", num_dialogues=8, seed=seed):
            assert (turn.kind, turn.targets) == ("plain", ())
            names = turn.answer[0].lower() + turn.answer[1:].rstrip(".")
            assert names in turn.question
            assert 2 <= len(re.findall(r"\bthe ", names)) <= 12


def test_places_are_told_in_words_and_what_is_absent_is_nowhere() -> None:
    scene = scene_of(("apple", 20, 30, 30), ("guitar", 100, 100, 30), ("dog", 66, 180, 30))
    told = dict[str, set[str]]()
    for seed in range(60):
        for (turn,) in turns_of(scene, "where", seed=seed):
            assert (turn.kind, turn.targets) == ("plain", ())
            parts = re.split(r"(?:,| and) (?=the )", turn.answer.lower().rstrip("."))
            for name, place in (re.split(r" (?:is|are) ", part) for part in parts):
                assert name in turn.question.lower()
                told.setdefault(place, set()).add(name)
    assert told["at the top left"] == {"the apple"}
    assert told["in the middle"] == {"the guitar"}
    assert set(told) == {"at the top left", "in the middle", "nowhere"}  # the dog: between thirds
    assert len(told["nowhere"]) > 20 and not told["nowhere"] & {"the apple", "the guitar"}


@pytest.mark.parametrize(
    ("kind", "placed", "asked", "unclear"),
    [
        (
            "half",
            [("apple", 30, 40, 30), ("guitar", 109, 160, 30)],
            "top half",
            "left half|right h",
        ),
        ("relative", [("apple", 30, 100, 30), ("guitar", 109, 110, 30)], "left", "above|below"),
    ],
)
def test_what_is_too_close_to_call_is_not_asked_for(
    kind: str, placed: list[tuple[str, float, float, int]], asked: str, unclear: str
) -> None:
    questions = " ".join(targets_by_question(scene_of(*placed), kind))
    assert asked in questions and not re.search(unclear, questions)


@pytest.mark.parametrize(
    ("near", "far", "asked"), [(60, 150, True), (60, 68, False), (60, 62, False)]
)
def test_the_nearest_thing_is_asked_for_only_with_a_clear_lead(
    near: float, far: float, asked: bool
) -> None:
    scene = scene_of(("apple", 20, 20, 20), ("guitar", near, 20, 20), ("dog", 20, far, 20))
    found = [
        one
        for question, one in targets_by_question(scene, "nearest").items()
        if "apple" in question
    ]
    assert found == [[1]] * len(found)
    assert bool(found) is asked


@pytest.mark.parametrize(("small", "asked"), [(40, True), (45, True), (46, True), (48, False)])
def test_sizes_are_compared_only_when_they_differ_by_a_third(small: int, asked: bool) -> None:
    scene = scene_of(("apple", 40, 40, 53), ("guitar", 150, 150, small))
    assert bool(turns_of(scene, "size")) is asked


def test_a_thin_thing_is_not_called_smaller_than_a_box_it_fills() -> None:
    ladder = SceneObject(
        "ladder", RLE(size=[SIDE, SIDE], counts="0"), (0, 0, 90, 90), 900, (45, 45)
    )
    apple = SceneObject(
        "apple", RLE(size=[SIDE, SIDE], counts="1"), (150, 150, 40, 40), 1500, (170, 170)
    )
    scene = Scene(np.zeros((SIDE, SIDE, 3), np.uint8), (ladder, apple))
    assert turns_of(scene, "size") == []


@pytest.mark.parametrize(
    ("objects", "phrases"),
    [
        ([("dog", 50, 100, 20), ("dog", 150, 100, 20)], ["the left dog", "the right dog"]),
        ([("dog", 100, 150, 20), ("dog", 101, 50, 20)], ["the bottom dog", "the top dog"]),
        (
            [("dog", 20, 20, 20), ("dog", 100, 20, 20), ("dog", 180, 20, 20)],
            ["the left dog", "the middle dog", "the right dog"],
        ),
        (
            [("dog", 20, 20, 20), ("dog", 25, 150, 20), ("dog", 180, 25, 20)],
            ["the first dog", "the second dog", "the third dog"],
        ),
    ],
)
def test_things_of_a_kind_are_told_apart_by_place(
    objects: list[tuple[str, float, float, int]], phrases: list[str]
) -> None:
    view = SceneView(scene_of(*objects), KNOWLEDGE)
    assert [item.phrase for item in view.objects] == phrases


def test_an_arguable_thing_keeps_a_question_from_being_asked() -> None:
    clear = scene_of(("apple", 40, 40, 30), ("guitar", 150, 150, 30))
    arguable = scene_of(("apple", 40, 40, 30), ("tomato", 150, 150, 30))
    assert "show me all the fruit" in targets_by_question(clear, "category")
    assert not any("fruit" in question for question in targets_by_question(arguable, "category"))


def test_a_wider_name_is_neither_asked_for_nor_denied() -> None:
    scene = scene_of(("taxi", 40, 40, 30), ("car", 150, 150, 30), ("panda", 50, 160, 30))
    for kind in ("naming", "negative", "plain"):
        for question in targets_by_question(scene, kind):
            assert not re.search(r"the (car|automobile|bear|brown bear)\b", question), question
            assert not re.search(r"a (car|bear)\b", question), question


def test_an_activity_grounds_both_purposes_in_their_order() -> None:
    scene = scene_of(("cake", 40, 40, 30), ("paintbrush", 150, 150, 30), ("dog", 60, 160, 30))
    found = targets_by_question(scene, "activity")
    sweet_first = "i want to satisfy my sweet tooth and then paint the fence. what do i need"
    paint_first = "i want to paint the fence and then satisfy my sweet tooth. what do i need"
    assert found[sweet_first] == [0, 1]
    assert found[paint_first] == [1, 0]
    assert {tuple(sorted(numbers)) for numbers in found.values()} == {(0, 1)}


def test_answers_speak_to_the_asker() -> None:
    scene = scene_of(("toothbrush", 40, 40, 30), ("umbrella", 150, 150, 30))
    answers = [
        turn.answer for seed in range(40) for (turn,) in turns_of(scene, "activity", seed=seed)
    ]
    assert any("brush your teeth" in answer for answer in answers)
    assert not any(re.search(r"\bmy(self)?\b", answer) for answer in answers)


def test_counts_are_number_words_without_masks() -> None:
    answers = {}
    for seed in range(60):
        for (turn,) in turns_of(KITCHEN_TABLE, "counting", seed=seed):
            assert turn.targets == ()
            answers[turn.question.lower().rstrip(".?")] = turn.answer
    assert answers["how many bananas can you see"] in ("There are two.", "I count two.")
    assert answers["count the things"] in ("There are five.", "I count five.")
    assert answers["how many pieces of fruit are there"] in ("There are three.", "I count three.")
    assert answers["count the guitars"] in ("There is one.", "I count one.")


def test_plain_answers_are_true() -> None:
    answers = {}
    for seed in range(200):
        for (turn,) in turns_of(KITCHEN_TABLE, "plain", seed=seed):
            assert turn.targets == ()
            answers[turn.question.lower().rstrip(".?")] = turn.answer
    assert answers["is there a guitar"] == "Yes, there is a guitar."
    assert answers["are there any scissors"] == "Yes, there are some scissors."
    assert answers["what color is the apple"] == "The apple is red."
    assert answers["just name the largest thing"] == "The largest thing is the guitar."
    assert answers["is the apple left of the guitar"].startswith("No, the apple is not")
    assert (
        answers["are the scissors left of the guitar"]
        == "Yes, the scissors are left of the guitar."
    )
    denied = [one for one in answers.values() if one.startswith("No, there")]
    present = re.compile(r"\b(guitar|banana|scissors|apple)\b")
    assert denied and not any(present.search(one) for one in denied)


def test_second_turns_refer_to_the_first() -> None:
    seen = Counter[str]()
    for seed in range(80):
        for first, second in turns_of(KITCHEN_TABLE, "follow_up", seed=seed):
            assert second.kind == "follow_up" and first.kind != "follow_up"
            assert first.targets
            question = second.question.lower()
            if "else" in question or "other things" in question:
                together = numbers_of(first) + numbers_of(second)
                assert sorted(together) == [0, 1, 2, 3, 4]
                seen["others"] += 1
            elif "larger" in question or "bigger" in question:
                areas = {i: one.area for i, one in enumerate(KITCHEN_TABLE.objects)}
                assert numbers_of(second) == [max(numbers_of(first), key=areas.__getitem__)]
                seen["larger"] += 1
            elif "color" not in question and "of the" not in question and len(first.targets) == 1:
                assert numbers_of(second) != numbers_of(first)
                seen["beside"] += 1
    assert min(seen[one] for one in ("others", "larger", "beside")) > 5


def test_every_phrase_names_its_target(corpus: list[tuple[Scene, tuple[Turn, ...]]]) -> None:
    names = {concept.name: key for key, concept in KNOWLEDGE.concepts.items()}
    for _, dialogue in corpus:
        for turn in dialogue:
            for label, target in zip(turn.answer.split(SEG_MARK), turn.targets, strict=False):
                assert label.endswith(f"{target.name} "), turn.answer
                assert concept_of_phrase(label, KNOWLEDGE) == names[target.name]


def test_targets_are_the_scenes_objects_from_left_to_right(
    corpus: list[tuple[Scene, tuple[Turn, ...]]],
) -> None:
    for scene, dialogue in corpus:
        for turn in dialogue:
            numbers = numbers_of(turn)
            assert len(set(numbers)) == len(numbers)
            centers = [scene.objects[number].center[0] for number in numbers]
            assert turn.kind in ("several", "activity") or centers == sorted(centers)
            names = [KNOWLEDGE.concepts[scene.objects[number].concept].name for number in numbers]
            assert [target.name for target in turn.targets] == names


def test_uses_and_categories_are_answered_completely(
    corpus: list[tuple[Scene, tuple[Turn, ...]]],
) -> None:
    wordings = {
        text.replace(" my ", " your "): key
        for key, use in KNOWLEDGE.uses.items()
        for text in use.wordings
    }
    checked = 0
    for scene, (turn, *_) in corpus:
        if turn.kind not in ("use", "negative"):
            continue
        question = f"{turn.question} ".replace(" my ", " your ")
        keys = [key for text, key in wordings.items() if re.search(rf"\b{text}\b", question)]
        if keys:
            expected = [
                number
                for number, one in enumerate(scene.objects)
                if set(keys) & set(KNOWLEDGE.concepts[one.concept].uses)
            ]
            assert sorted(numbers_of(turn)) == expected, turn
            checked += 1
    assert checked > 200


def test_what_is_denied_is_not_in_the_scene(corpus: list[tuple[Scene, tuple[Turn, ...]]]) -> None:
    checked = 0
    for scene, (turn, *_) in corpus:
        if turn.kind != "negative":
            continue
        assert turn.targets == ()
        denied = re.search(r"\bno (.*?)(?: in the picture| here)\.", turn.answer)
        if denied:
            key = KNOWLEDGE.concept_by_phrase.get(denied[1])
            assert key not in {one.concept for one in scene.objects}
            checked += 1
    assert checked > 60


def test_every_kind_comes_up_and_reads_as_a_sentence(
    corpus: list[tuple[Scene, tuple[Turn, ...]]],
) -> None:
    turns = [turn for _, dialogue in corpus for turn in dialogue]
    counts = Counter(turn.kind for turn in turns)
    assert set(counts) == set(DEFAULT_WEIGHTS) == set(KINDS) - {"choice", "order"}
    assert min(counts.values()) > 20
    for turn in turns:
        assert "{" not in turn.question
        assert "{" not in turn.answer.replace(SEG_MARK, "")
        assert turn.answer[0].isupper() and turn.answer.endswith(".")
        assert "  " not in turn.question + turn.answer
        assert not re.search(r"\ba [aeio]|\ban [^aeioh]", turn.answer), turn.answer


def test_dialogues_of_a_scene_differ() -> None:
    dialogues = compose_dialogues(KITCHEN_TABLE, KNOWLEDGE, random.Random(0), 200)
    questions = [tuple(turn.question.lower() for turn in one) for one in dialogues]
    assert len(set(questions)) == len(questions)


def test_a_poor_scene_gives_fewer_dialogues_and_an_empty_one_none() -> None:
    poor = scene_of(("volcano", 100, 100, 50))
    assert 0 < len(compose_dialogues(poor, KNOWLEDGE, random.Random(0), 10_000)) < 10_000
    assert compose_dialogues(scene_of(), KNOWLEDGE, random.Random(0), 5) == []


def test_absent_groups_can_be_weighed_for_themselves() -> None:
    weights = {"negative_group": 1.0}
    dialogues = compose_dialogues(KITCHEN_TABLE, KNOWLEDGE, random.Random(0), 60, kinds=weights)
    turns = [turn for one in dialogues for turn in one]
    assert len(turns) > 20
    assert {turn.kind for turn in turns} == {"negative"}
    assert not any(turn.targets for turn in turns)
    denied = [re.search(r"\bno (.*?)(?: in the picture| here)\.", turn.answer) for turn in turns]
    groups = {category.many for category in KNOWLEDGE.categories.values()}
    assert {match[1] for match in denied if match} <= groups


@pytest.mark.parametrize(
    ("label", "concept"),
    [
        ("the left banana", "banana"),
        ("You could use the hot dog", "hot_dog"),
        ("the dog", "dog"),
        ("Next to the guitar I see the second bell pepper", "bell_pepper"),
        ("The puppy", "dog"),
        ("two bulbs of garlic", "garlic"),
        ("the TV", "television"),
        ("the flip-flop,", "flip_flop"),
        ("the thing over there", None),
        ("", None),
        ("the dogged cart", None),
    ],
)
def test_a_phrase_is_read_as_the_concept_it_names(label: str, concept: str | None) -> None:
    assert concept_of_phrase(label, KNOWLEDGE) == concept
