"""What the fixtures of the benchmarks ask about COCO photos, composed from annotations by rules.

Reads the photo set and knows which things an expression singles out; knows no data set's layout,
and no model. See benchmark_fixtures.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, combinations, zip_longest
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SPLIT = "val"
SMALLEST = 0.01
"""Share of its photo that a thing covers at least to be asked for."""
GAP = 0.1
"""Share of the photo's side by which a leftmost thing is apart from the next."""
RATIO = 1.5
"""How many times larger than the next a largest thing is, or nearer a nearest one."""
MOST = 6
"""Things that one question asks for, at most."""

PLACES = (
    ("left", "farthest to the left", 0, -1),
    ("right", "farthest to the right", 0, 1),
    ("top", "highest up", 1, -1),
    ("bottom", "lowest down", 1, 1),
)
"""Word, phrase, axis, and sign of the way there along it."""
PEOPLE = "man|men|woman|women|boy|girl|child|children|lady|ladies|guy|people|player|skier|surfer"
"""What captions call persons."""
VEHICLES = {"bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"}
ANIMALS = {"bird", "cat", "dog", "sheep", "cow", "elephant", "bear", "giraffe", "horse", "zebra"}
FRUIT = {"banana", "apple", "orange", "broccoli", "carrot"}
FOOD = FRUIT | {"sandwich", "hot dog", "pizza", "donut", "cake"}
PURPOSES = {
    "something to drink from": {"cup", "wine glass", "bottle"},
    "something that carries people": VEHICLES,
    "an animal of any kind": ANIMALS,
    "something to eat": FOOD,
    "something to sit on": {"bench", "chair", "couch"},
    "something to lie down on": {"bed", "couch"},
    "something that keeps food cold": {"refrigerator"},
    "something that heats food": {"microwave", "oven", "toaster"},
    "something to type on": {"laptop", "keyboard", "cell phone"},
    "something to cut with": {"knife", "scissors"},
    "something to read": {"book"},
    "something to carry belongings in": {"backpack", "handbag", "suitcase"},
    "something to wash one's hands in": {"sink"},
    "something that keeps the rain off": {"umbrella"},
    "something to stand on and glide": {"skis", "snowboard", "surfboard", "skateboard"},
    "something that directs the traffic": {"traffic light", "stop sign"},
    "somebody who could answer": {"person"},
}
"""Purpose -> the COCO categories that serve it."""


@dataclass(frozen=True, eq=False)
class Thing:
    """An instance; its area as a share of the photo's, its centre in shares of the sides."""

    row: dict[str, Any]
    name: str
    kind: str
    share: float
    centre: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo with its instances; of `crowds`, its categories, some are not told apart."""

    entry: dict[str, Any]
    rows: list[dict[str, Any]]
    path: Path
    things: list[Thing]
    crowds: set[str]
    captions: list[str]

    def rivals(self, thing: Thing) -> list[Thing]:
        """The other instances of a thing's category, however small."""
        return [one for one in self.things if one.name == thing.name and one is not thing]

    def askable(self) -> list[Thing]:
        """Things that are large enough, of categories whose instances are told apart."""
        return [t for t in self.things if t.share >= SMALLEST and t.name not in self.crowds]

    def fitting(self, names: set[str]) -> list[Thing]:
        """All instances of some categories; none where one of these has a crowd."""
        return [] if names & self.crowds else [t for t in self.things if t.name in names]


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked about a photo, and all things that fit it."""

    photo: Photo
    text: str
    things: list[Thing]


def read_photos(folder: Path) -> tuple[list[Photo], list[dict[str, Any]]]:
    """The photos of the split, and the categories."""
    files = (f"annotations/{name}_{SPLIT}.json" for name in ("instances", "captions"))
    content, described = (json.loads((folder / name).read_bytes()) for name in files)
    categories = {one["id"]: one for one in content["categories"]}
    rows: dict[int, list[dict[str, Any]]] = {one["id"]: [] for one in content["images"]}
    captions: dict[int, list[str]] = {one["id"]: [] for one in content["images"]}
    for row in content["annotations"]:
        rows[row["image_id"]].append(row)
    for one in described["annotations"]:
        captions[one["image_id"]].append(one["caption"].strip())
    photos = []
    for entry in content["images"]:
        own = rows[entry["id"]]
        things = [to_thing(row, entry, categories) for row in own if not row["iscrowd"]]
        crowds = {categories[row["category_id"]]["name"] for row in own if row["iscrowd"]}
        path = folder / SPLIT / "images" / entry["file_name"]
        photos.append(Photo(entry, own, path, things, crowds, captions[entry["id"]]))
    return photos, content["categories"]


def to_thing(row: dict[str, Any], entry: dict[str, Any], categories: dict[int, Any]) -> Thing:
    """An annotation with what the rules ask of it."""
    (x, y, w, h), width, height = row["bbox"], entry["width"], entry["height"]
    category = categories[row["category_id"]]
    centre = (x + w / 2) / width, (y + h / 2) / height
    share = row["area"] / (width * height)
    return Thing(row, category["name"], category["supercategory"], share, centre)


def places_of(photo: Photo, thing: Thing) -> list[tuple[str, str]]:
    """Word and phrase of each end that a thing is at, among those of its category."""
    rivals = photo.rivals(thing)
    suffix = "most" if len(rivals) > 1 else ""
    return [
        (word + suffix, phrase)
        for word, phrase, axis, sign in PLACES
        if rivals and min(sign * (thing.centre[axis] - r.centre[axis]) for r in rivals) >= GAP
    ]


def sizes_of(photo: Photo, thing: Thing) -> list[str]:
    """Whether a thing is by far the largest or the smallest of its category."""
    shares = [one.share for one in photo.rivals(thing)]
    if not shares:
        return []
    fits = {
        "largest": thing.share >= RATIO * max(shares),
        "smallest": thing.share * RATIO <= min(shares),
    }
    return [word for word, holds in fits.items() if holds]


def neighbours_of(photo: Photo, thing: Thing) -> list[str]:
    """Categories with a single thing that this one is much nearer to than its rivals are."""
    rivals, found = photo.rivals(thing), []
    for other in photo.askable() if rivals else []:
        if other.name != thing.name and not photo.rivals(other):
            away = min(math.dist(one.centre, other.centre) for one in rivals)
            if RATIO * math.dist(thing.centre, other.centre) <= away:
                found.append(other.name)
    return found


def only(photo: Photo, thing: Thing, form: str) -> list[str]:
    """The form with the category of a thing that is the only one of it."""
    return [] if photo.rivals(thing) else [form.format(thing.name)]


def word_short(photo: Photo, thing: Thing) -> list[str]:
    """refCOCO: "left dog", "largest dog", or "dog" where it is the only one."""
    words = [word for word, _ in places_of(photo, thing)] + sizes_of(photo, thing)
    return [f"{word} {thing.name}" for word in words] or only(photo, thing, "{}")


def word_without_place(photo: Photo, thing: Thing) -> list[str]:
    """refCOCO+: "largest dog", or "dog" where it is the only one."""
    return [f"{word} {thing.name}" for word in sizes_of(photo, thing)] or only(photo, thing, "{}")


def word_long(photo: Photo, thing: Thing) -> list[str]:
    """refCOCOg: whole phrases, also with what a thing is nearest to."""
    name = thing.name
    texts = [f"the {name} that is nearest to the {it}" for it in neighbours_of(photo, thing)]
    texts += [f"the {name} that is {how} of all" for _, how in places_of(photo, thing)]
    texts += [f"the {word} {name} of all" for word in sizes_of(photo, thing)]
    return texts or only(photo, thing, "the only {} to be seen")


def refer(photo: Photo, turn: int, word: Callable[[Photo, Thing], list[str]]) -> list[Asked]:
    """One expression for each thing that can be told apart, those with rivals first.

    Another `turn` takes another of the wordings that fit, and begins with another thing.
    """
    asked = []
    for place, thing in enumerate(photo.askable()):
        if texts := word(photo, thing):
            asked.append(Asked(photo, texts[(turn + place) % len(texts)], [thing]))
    return sorted(rotate(asked, turn), key=lambda one: not photo.rivals(one.things[0]))


def refer_generally(photo: Photo, turn: int, categories: list[dict[str, Any]]) -> list[Asked]:
    """gRefCOCO: an expression for several things, for one, and for none."""
    here = {row["category_id"] for row in photo.rows}
    kinds = {thing.kind for thing in photo.askable()}
    absent = [c for c in categories if c["supercategory"] in kinds and c["id"] not in here]
    groups = [photo.fitting({name}) for name in sorted({one.name for one in photo.askable()})]
    several = [Asked(photo, f"every {g[0].name}", g) for g in groups if is_several(g)]
    none = [Asked(photo, one["name"], []) for one in rotate(absent, turn)]
    one = refer(photo, turn, word_short)
    return several[:1] + list(chain(*rotate([one[:1], none[:1]], turn)))


def is_several(things: list[Thing]) -> bool:
    """Whether things are two to so many, none of them tiny."""
    return 2 <= len(things) <= MOST and all(one.share >= SMALLEST for one in things)


def reason_about(photo: Photo, turn: int) -> list[Asked]:
    """ReasonSeg: a purpose, and all things that serve it; the tiny ones are to be ignored."""
    asked = []
    for purpose, names in rotate(list(PURPOSES.items()), turn):
        things = photo.fitting(names)
        drawn = all(isinstance(one.row["segmentation"], list) for one in things)
        if drawn and any(one.share >= SMALLEST for one in things):
            asked.append(Asked(photo, purpose, things))
    return asked


def reason_about_several(photo: Photo, turn: int) -> list[Asked]:
    """MUSE: what a caption names, two purposes at once, and a purpose that several things serve."""
    asked = [
        Asked(photo, f'A caption says: "{caption}" Show what it names.', named_by(caption, photo))
        for caption in photo.captions
    ]
    serving = {purpose: photo.fitting(names) for purpose, names in PURPOSES.items()}
    pairs = rotate(list(combinations(serving.items(), 2)), turn)
    for (first, things), (second, others) in pairs:
        if things and others and not {id(t) for t in things} & {id(t) for t in others}:
            text = f"What here is {first}, and what is {second}?"
            asked.append(Asked(photo, text, things + others))
    for purpose, things in serving.items():
        asked.append(Asked(photo, f"What here is {purpose}? There is more than one.", things))
    return [one for one in asked if is_several(one.things)]


def named_by(caption: str, photo: Photo) -> list[Thing]:
    """The things that a caption names; none where it may mean one of several, or a tiny one."""
    names = {thing.name for thing in photo.things} | photo.crowds
    words = {name: f"{PEOPLE}|{name}" if name == "person" else name for name in names}
    said = {n for n, form in words.items() if re.search(rf"\b({form})(s|es)?\b", caption, re.I)}
    single = [thing for thing in photo.askable() if not photo.rivals(thing)]
    return [t for t in single if t.name in said] if said <= {t.name for t in single} else []


def rotate(values: list[T], turn: int) -> list[T]:
    """The values, beginning at another one each turn."""
    first = turn % len(values) if values else 0
    return values[first:] + values[:first]


def spread(asked: Iterable[list[Asked]], num: int) -> list[Asked]:
    """So many, each photo's first before any photo's second."""
    return [one for one in chain(*zip_longest(*asked)) if one is not None][:num]
