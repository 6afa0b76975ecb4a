"""Photos asked for all that annotations can answer: what is said of them is true.

Photos are laid out by hand: rectangles with names. A check of every turn of a corpus compares the
words with the rectangles, not with the code that chose them.
"""

from __future__ import annotations

import itertools
import json
import pickle
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_photos import PHOTOS, coco_values, draw_photo, rectangle, write_json

from pixellm.data.photos import Photos
from pixellm.data.registry import open_reader
from pixellm.masks import decode_mask
from pixellm.scenes.questions_photos import compose_photo_dialogues
from pixellm.types import SEG_MARK, Turn

SIZE = (200, 300)
CATEGORIES = [
    "person",
    "dog",
    "cat",
    "car",
    "chair",
    "couch",
    "banana",
    "pizza",
    "knife",
    "tv",
    "bus",
]
PICKED = ("left", "right", "top", "bottom", "middle", "largest", "smallest", "nth")
INSTANCES = "annotations/instances_train.json"

Box = tuple[str, int, int, int, int]
WriteFile = Callable[..., Path]


@pytest.fixture
def photos_root(tmp_path: Path) -> WriteFile:
    """Writes an instances file; each photo is a list of (category, left, top, right, bottom)."""

    def write(
        *photos: Sequence[Box], crowds: Sequence[int] = (), names: Sequence[str] = CATEGORIES
    ) -> Path:
        shapes: list[dict[str, Any]] = []
        for number, boxes in enumerate(photos):
            draw_photo(tmp_path / "train" / f"{number}.png", SIZE, number)
            for name, *corners in boxes:
                one = {"name": name, "image_id": number, "segmentation": [rectangle(*corners)]}
                shapes.append(one | {"iscrowd": int(len(shapes) in crowds)})
        values = coco_values(SIZE, names, *shapes, images=range(len(photos)), suffix=".png")
        write_json(tmp_path / INSTANCES, values)
        return tmp_path

    return write


def ask_kind(
    root: Path, kind: str, about: str = "", *, seeds: int = 40, **options: Any
) -> list[Turn]:
    """All last turns of a kind about the first photo, over many seeds, that ask about something."""
    turns = []
    data = Photos(root, kinds={kind: 1.0}, dialogues_per_image=4, **options)
    for seed in range(seeds):
        turns += [sample.turns[-1] for sample in data.item(0, random.Random(seed))]
    kinds = {*PICKED} if kind == "pick" else {kind}
    return [t for t in turns if t.kind in kinds and re.search(about, t.question.lower())]


def lefts(turn: Turn) -> list[int]:
    """The left border of each target."""
    return [int(np.flatnonzero(decode_mask(one.mask).any(axis=0))[0]) for one in turn.targets]


DOGS = [
    ("dog", 10, 100, 60, 150),
    ("dog", 100, 90, 200, 190),
    ("dog", 240, 110, 280, 140),
    ("car", 20, 10, 120, 60),
]


def test_every_one_of_a_kind_is_answered_however_many_were_expected(photos_root: WriteFile) -> None:
    root = photos_root(DOGS)
    dogs = ask_kind(root, "every", "dog|pup")
    assert len({turn.question.lower() for turn in dogs}) > 20
    assert all(lefts(turn) == [10, 100, 240] for turn in dogs)
    assert all("left dog" in turn.answer and "right dog" in turn.answer for turn in dogs)
    cars = ask_kind(root, "every", "car|auto")
    assert cars and all(lefts(turn) == [20] for turn in cars)


def test_together_all_of_a_kind_are_named_once_with_one_mask_of_them(
    photos_root: WriteFile,
) -> None:
    root = photos_root(DOGS)
    dogs = ask_kind(root, "every", "dog|pup", together=True)
    assert dogs
    for turn in dogs:
        assert f"the dogs {SEG_MARK}" in turn.answer.lower() and " is " not in turn.answer
        (joined,) = turn.targets
        assert np.count_nonzero(decode_mask(joined.mask)) == 50 * 50 + 100 * 100 + 40 * 30
    for turn in ask_kind(root, "category", together=True):
        assert sorted(lefts(turn)) in ([10], [10, 20], [20])
    followed = [turn for turn in ask_kind(root, "follow_up", together=True) if turn.targets]
    assert followed and not any("dogs" in turn.answer for turn in followed)
    for sample in Photos(root, together=True).evaluation_samples():
        assert "the dogs" not in sample.turns[0].answer.lower()


@pytest.mark.parametrize(
    ("kind", "left"), [("left", 10), ("right", 240), ("largest", 100), ("smallest", 240)]
)
def test_one_of_several_is_picked_by_place_or_size(
    photos_root: WriteFile, kind: str, left: int
) -> None:
    found = [turn for turn in ask_kind(photos_root(DOGS), "pick") if turn.kind == kind]
    assert found and all(lefts(turn) == [left] for turn in found)


def test_the_second_from_the_right_is_counted_from_there(photos_root: WriteFile) -> None:
    row = [("dog", 10 + 60 * n, 100, 50 + 60 * n, 150) for n in range(4)]
    turns = [turn for turn in ask_kind(photos_root(row), "pick") if turn.kind == "nth"]
    words = {
        "second dog from the left": 70,
        "third dog from the left": 130,
        "second dog from the right": 130,
        "third dog from the right": 70,
        "dog number two from the left": 70,
        "dog number three from the left": 130,
    }
    said = [(key, turn) for turn in turns for key in words if key in turn.question.lower()]
    assert len({key for key, _ in said}) > 3
    assert all(lefts(turn) == [words[key]] for key, turn in said)


def test_two_that_are_side_by_side_by_a_hair_are_not_called_left_and_right(
    photos_root: WriteFile,
) -> None:
    root = photos_root([("dog", 100, 20, 150, 70), ("dog", 104, 120, 154, 170)])
    assert not [t for t in ask_kind(root, "pick") if t.kind in ("left", "right", "nth")]


def test_what_reaches_over_to_both_sides_is_on_neither(photos_root: WriteFile) -> None:
    """A person on a couch is not left of it, whichever way their middles lie."""
    root = photos_root([("couch", 20, 80, 280, 190), ("person", 60, 30, 160, 180)])
    for kind in ("relative", "half"):
        assert not ask_kind(root, kind, "left|right"), kind
    apart = photos_root([("couch", 150, 80, 280, 190), ("person", 10, 90, 80, 180)])
    asked = ask_kind(apart, "relative", "left.*(couch|sofa)")
    assert asked and all(lefts(turn) == [10] for turn in asked)


def test_of_two_that_touch_an_object_none_is_nearest(photos_root: WriteFile) -> None:
    tv = ("tv", 100, 60, 200, 120)
    touching = photos_root([tv, ("cat", 90, 50, 110, 70), ("dog", 190, 100, 260, 190)])
    assert not ask_kind(touching, "nearest", "(near|clos).* (tv|tele)")
    apart = photos_root([tv, ("cat", 60, 60, 90, 120), ("dog", 260, 150, 290, 190)])
    asked = ask_kind(apart, "nearest", "(near|clos).* tv")
    assert asked and all(lefts(turn) == [60] for turn in asked)


def test_a_category_of_one_letter_can_be_asked_for(photos_root: WriteFile) -> None:
    turns = ask_kind(photos_root([("x", 10, 10, 90, 90)], names=("x",)), "every", seeds=120)
    assert any(turn.question.lower() == "x" for turn in turns)


def test_a_crowd_is_neither_denied_nor_counted_nor_asked_for(photos_root: WriteFile) -> None:
    people = [("person", 10, 10, 60, 150), ("person", 100, 20, 299, 190), ("dog", 62, 150, 99, 190)]
    root = photos_root(people, crowds=[1])
    for kind in ("every", "pick", "counting", "negative", "plain", "several", "choice"):
        for turn in ask_kind(root, kind, seeds=15):
            assert not re.search(r"\bperson|(?<!lot of )people|human", turn.answer), (kind, turn)
    assert not ask_kind(root, "half")


def test_tiny_objects_are_not_counted_or_picked(photos_root: WriteFile) -> None:
    root = photos_root([("dog", 10, 10, 90, 90), ("dog", 200, 100, 204, 104)])
    assert not [t for t in ask_kind(root, "pick") if lefts(t) == [200]]
    assert not ask_kind(root, "counting", "dog|animal")


def test_uses_are_asked_as_people_do_and_answered_with_all_that_serves(
    photos_root: WriteFile,
) -> None:
    room = [("couch", 5, 100, 120, 180), ("chair", 160, 90, 220, 190), ("tv", 130, 5, 200, 60)]
    sitting = ask_kind(photos_root(room), "use", r"\bsit\b")
    assert sitting and all(lefts(turn) == [5, 160] for turn in sitting)
    assert {"What can I sit on?", "what can I sit on?"} & {t.question for t in sitting}
    assert [t for t in ask_kind(photos_root(room), "use", "film") if lefts(t) == [130]]


def test_what_is_absent_is_denied_and_a_kitchen_is_never_said_to_lack_food(
    photos_root: WriteFile,
) -> None:
    turns = ask_kind(photos_root([("knife", 5, 100, 60, 120), ("tv", 130, 5, 200, 60)]), "negative")
    assert all(not turn.targets and SEG_MARK not in turn.answer for turn in turns)
    assert not [t for t in turns if re.search(r"food|\beat\b|hungr|snack", t.question + t.answer)]
    outdoors = photos_root([("car", 5, 100, 160, 180), ("dog", 180, 90, 220, 190)])
    assert ask_kind(outdoors, "negative", r"\beat\b|hungr")


def test_unknown_nouns_are_admitted(photos_root: WriteFile) -> None:
    turns = ask_kind(photos_root(DOGS), "unknown")
    assert all(re.fullmatch(r"I don't know what an? .* looks like\.", t.answer) for t in turns)
    nouns = {re.sub(r".* what an? (.*) looks like.", r"\1", turn.answer) for turn in turns}
    assert len(nouns) > 50
    assert not re.search(r"\ba [aeio]|\ban [^aeio]", " ".join(turn.answer for turn in turns))


def test_open_questions_get_what_is_seen(photos_root: WriteFile) -> None:
    described = ask_kind(photos_root(DOGS), "describe")
    assert any(re.search(r"a dog \{seg\}.*another dog", turn.answer) for turn in described)
    assert all(turn.targets for turn in described)
    opened = ask_kind(photos_root(DOGS), "open")
    assert all(re.search("can't|don't know", turn.answer) for turn in opened)
    assert any("the car {seg}" in turn.answer for turn in opened)


def test_a_photo_without_objects_is_asked_what_it_lacks(photos_root: WriteFile) -> None:
    data = Photos(photos_root([]), dialogues_per_image=20)
    kinds = {turn.kind for sample in data[0] for turn in sample.turns}
    assert (
        kinds <= {"absent", "negative", "unknown", "describe", "open", "foreign"} and len(kinds) > 2
    )
    assert not any(list(sample.all_targets()) for sample in data[0])


def test_names_that_no_table_holds_are_asked_for_and_nothing_is_claimed_of_them(
    photos_root: WriteFile,
) -> None:
    root = photos_root(
        [("lawn gnome", 10, 10, 90, 90), ("chair", 100, 100, 200, 190)],
        names=("lawn gnome", "chair", "couch"),
    )
    data = Photos(root)
    assert data.class_names == ("chair", "couch", "lawn gnome")
    turns = ask_kind(root, "every")
    assert any("lawn gnomes" in turn.question for turn in turns)
    assert not ask_kind(root, "use")


def test_a_mirrored_view_says_left_of_what_is_left_there(photos_root: WriteFile) -> None:
    root = photos_root([("dog", 10, 80, 60, 120), ("dog", 230, 60, 290, 140)])
    seen = set()
    data = Photos(root, kinds={"pick": 1.0}, augment=True)
    for seed in range(30):
        for sample in data.item(0, random.Random(seed)):
            middles = [np.nonzero(decode_mask(one.mask))[1].mean() for one in sample.objects]
            for turn in sample.turns:
                if turn.kind in ("left", "right"):
                    middle = np.nonzero(decode_mask(turn.targets[0].mask))[1].mean()
                    assert middle == (min(middles) if turn.kind == "left" else max(middles))
                    seen.add(turn.kind)
    assert seen == {"left", "right"}


def test_the_same_seed_and_epoch_ask_the_same(photos_root: WriteFile) -> None:
    root = photos_root(DOGS, DOGS[1:])
    first, second = (Photos(root, seed=3, augment=True) for _ in range(2))
    for epoch in (0, 1):
        turns = [[s.turns for s in data.dialogues(1, epoch)] for data in (first, second)]
        assert turns[0] == turns[1]
    other = pickle.loads(pickle.dumps(first))
    assert [s.turns for s in other.dialogues(1, 1)] == [s.turns for s in first.dialogues(1, 1)]
    assert first.dialogues(0, 0)[0].turns != Photos(root, seed=4, augment=True)[0][0].turns


def test_exchanged_names_are_used_for_all_and_told_with_the_sample(photos_root: WriteFile) -> None:
    root = photos_root(DOGS)
    (plain, *_) = Photos(root, kinds={"naming": 1.0, "every": 1.0})[0]
    assert plain.renamed is None
    named = set()
    data = Photos(root, kinds={"naming": 1.0, "every": 1.0}, exchange=1.0)
    for seed in range(20):
        for sample in data.item(0, random.Random(seed)):
            assert sample.renamed is not None
            assert sorted(sample.renamed) == sorted(sample.renamed.values())
            shown = {sample.renamed["dog"], sample.renamed["car"]}
            assert {target.name.lower() for target in sample.objects} <= shown
            named |= {target.name for turn in sample.turns for target in turn.targets}
    assert len(named) > 2  # dogs and cars go by other names


def test_people_are_called_as_captions_agree(photos_root: WriteFile) -> None:
    one, two = (
        [("person", 5, 5, 90, 190)],
        [("person", 5, 5, 90, 190), ("person", 150, 9, 290, 190)],
    )
    root = photos_root(one, one, two, two)
    texts = {
        0: ["A man on a bench.", "A guy sits.", "Someone outdoors."],
        1: ["A man with a dog.", "A woman with a dog."],
        2: ["Two women talk.", "Women at a table.", "A pair."],
        3: ["A man and a woman.", "Two men."],
    }
    captions = [{"image_id": n, "caption": text} for n, all_of in texts.items() for text in all_of]
    write_json(root / "annotations" / "captions_train.json", {"annotations": captions})
    asked: dict[int, set[str]] = {number: set() for number in texts}
    data = Photos(root, kinds={"every": 1.0, "pick": 1.0})
    for seed in range(60):
        for item in range(4):
            for sample in data.item(item, random.Random(seed)):
                words = re.findall(r"[a-z]+", sample.turns[0].question.lower())
                asked[item] |= {"man", "men", "guy", "guys", "woman", "women", "lady"} & {*words}
                assert "person" in sample.turns[0].answer or sample.turns[0].kind != "every"
    assert {"man", "guy"} <= asked[0] <= {"man", "men", "guy", "guys"}
    assert not asked[1] and not asked[3]
    assert {"women", "woman", "lady"} <= asked[2]
    plain = Photos(root, kinds={"every": 1.0}, captions="")
    questions = [t.question for item in range(4) for s in plain[item] for t in s.turns]
    assert not re.search(r"\bwom[ae]n|\bm[ae]n\b", " ".join(questions).lower())
    assert "man" not in {one.turns[0].question for one in plain.evaluation_samples()}


def test_evaluation_asks_each_photo_everything_the_same_for_every_seed(
    photos_root: WriteFile,
) -> None:
    root = photos_root(DOGS, [("cat", 20, 20, 180, 150)])
    values = json.loads((root / INSTANCES).read_text())
    values["images"][1]["coco_url"] = "http://images.example/val2017/1.png"
    write_json(root / INSTANCES, values)
    first, second = (Photos(root, seed=seed).evaluation_samples() for seed in (0, 1))
    assert [one.turns for one in first] == [one.turns for one in second]
    kinds = Counter(one.turns[-1].kind for one in first)
    assert {"every", "left", "right", "largest", "use", "absent", "unknown", "open"} <= {*kinds}
    assert kinds["every"] == 3 and kinds["left"] == 1
    assert {one.source for one in first} == {"", "val2017"}
    trained = {turn.question for turn in ask_kind(root, "unknown", seeds=30)}
    tested = {one.turns[0].question for one in first if one.turns[0].kind == "unknown"}
    assert not trained & tested


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": {"colour": 1.0}}, "Unknown kind of question 'colour'"),
        ({"dialogues_per_image": 0}, "at least 1"),
        ({"max_targets": 0}, "at least 1"),
        ({"colour": True}, "Options of data set 'photos'"),
    ],
)
def test_wrong_options_are_refused(
    photos_root: WriteFile, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_reader("photos", photos_root(DOGS), "train", **options)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photos at PIXELLM_TEST_PHOTOS")
def test_real_photos_read_as_english() -> None:
    data = Photos(PHOTOS, dialogues_per_image=6)
    turns = [turn for item in range(0, len(data), 4) for s in data[item] for turn in s.turns]
    assert len({turn.kind for turn in turns}) > 20
    for turn in turns:
        assert "{" not in turn.question + turn.answer.replace(SEG_MARK, "")
        assert turn.answer[0].isupper() and turn.answer.endswith(".")
        assert not re.search(r"\ba [aeio]|\ban [^aeiouh]", turn.answer), turn.answer
        assert not re.search(r"\b[a-z][A-Z]", turn.question), turn.question


HOME = [("dog", 10, 100, 60, 150), ("dog", 100, 90, 200, 190), ("couch", 210, 20, 290, 90)]
SAID = {"dog": "dog", "puppy": "dog", "pup": "dog", "couch": "couch", "sofa": "couch"}
"""What each word of an answer or a question about HOME stands for."""


def talk(root: Path, kind: str) -> list[tuple[Turn, ...]]:
    """Dialogues of a kind about the first photo."""
    data, rng = Photos(root), random.Random(0)
    view = data.view(data.row(0), together=True)
    drawn = (compose_photo_dialogues(view, rng, 3, kinds={kind: 1.0}) for _ in range(40))
    found = list(itertools.chain.from_iterable(drawn))
    assert len(found) > 20, kind
    return found


def test_what_is_said_in_a_hurry_is_true(photos_root: WriteFile) -> None:
    root = photos_root(HOME)
    firsts = {"left": 10, "dog": 10, "couch": 210}
    for kind in ("another", "pair", "either", "part"):
        for turns in talk(root, kind):
            assert len(turns) == (2 if kind == "another" else 1)
            for turn in turns:
                assert turn.answer.count(SEG_MARK) == len(turn.targets)
                assert "{" not in turn.question + turn.answer.replace(SEG_MARK, "")
                shown = re.findall(r"(\w+) \{seg\}", turn.answer)
                named = [SAID.get(word.removesuffix("s"), SAID.get(word)) for word in shown]
                assert named == [target.name for target in turn.targets]
                assert lefts(turn) == [
                    firsts[one] if "right" not in turn.answer else 100 for one in named
                ]


def test_of_two_kinds_the_one_that_is_missing_is_denied(photos_root: WriteFile) -> None:
    answers = [turns[0].answer for turns in talk(photos_root(HOME), "pair")]
    denied = [one for one in answers if " no " in one]
    assert 0.2 < len(denied) / len(answers) < 0.8
    assert not [one for one in denied if re.search(r"no (dog|couch)\b", one)]


def test_what_was_told_can_be_asked_to_be_shown(photos_root: WriteFile) -> None:
    told = [turns for turns in talk(photos_root(HOME), "another") if turns[0].kind == "plain"]
    assert told
    for first, second in told:
        assert first.answer.startswith("Yes, there is")
        assert second.targets and second.targets[0].name in first.answer
