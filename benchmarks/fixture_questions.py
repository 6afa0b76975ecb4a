"""What the fixtures of the benchmarks ask about COCO photos, composed from annotations by rules.

Reads the photo set and knows which instances an expression singles out; knows no data set's layout,
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
"""Share of its photo that an instance covers at least to be asked for."""
GAP = 0.1
"""Share of the photo's side by which a leftmost instance is apart from the next."""
RATIO = 1.5
"""How many times larger than the next a largest instance is, or nearer a nearest one."""
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
class Instance:
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
    instances: list[Instance]
    crowds: set[str]
    captions: list[str]

    def rivals(self, instance: Instance) -> list[Instance]:
        """The other instances of an instance's category, however small."""
        return [one for one in self.instances if one.name == instance.name and one is not instance]

    def askable(self) -> list[Instance]:
        """Things that are large enough, of categories whose instances are told apart."""
        return [t for t in self.instances if t.share >= SMALLEST and t.name not in self.crowds]

    def fitting(self, names: set[str]) -> list[Instance]:
        """All instances of some categories; none where one of these has a crowd."""
        return [] if names & self.crowds else [t for t in self.instances if t.name in names]


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked about a photo, and all instances that fit it."""

    photo: Photo
    text: str
    instances: list[Instance]


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
        instances = [read_instance(row, entry, categories) for row in own if not row["iscrowd"]]
        crowds = {categories[row["category_id"]]["name"] for row in own if row["iscrowd"]}
        path = folder / SPLIT / "images" / entry["file_name"]
        photos.append(Photo(entry, own, path, instances, crowds, captions[entry["id"]]))
    return photos, content["categories"]


def read_instance(
    row: dict[str, Any], entry: dict[str, Any], categories: dict[int, Any]
) -> Instance:
    """An annotation with what the rules ask of it."""
    (x, y, w, h), width, height = row["bbox"], entry["width"], entry["height"]
    category = categories[row["category_id"]]
    centre = (x + w / 2) / width, (y + h / 2) / height
    share = row["area"] / (width * height)
    return Instance(row, category["name"], category["supercategory"], share, centre)


def positions_of(photo: Photo, instance: Instance) -> list[tuple[str, str]]:
    """Word and phrase of each end that an instance is at, among those of its category."""
    rivals = photo.rivals(instance)
    suffix = "most" if len(rivals) > 1 else ""
    return [
        (word + suffix, phrase)
        for word, phrase, axis, sign in PLACES
        if rivals and min(sign * (instance.centre[axis] - r.centre[axis]) for r in rivals) >= GAP
    ]


def sizes_of(photo: Photo, instance: Instance) -> list[str]:
    """Whether an instance is by far the largest or the smallest of its category."""
    shares = [one.share for one in photo.rivals(instance)]
    if not shares:
        return []
    fits = {
        "largest": instance.share >= RATIO * max(shares),
        "smallest": instance.share * RATIO <= min(shares),
    }
    return [word for word, holds in fits.items() if holds]


def neighbours_of(photo: Photo, instance: Instance) -> list[str]:
    """Categories with a single instance that this one is much nearer to than its rivals are."""
    rivals, found = photo.rivals(instance), []
    for other in photo.askable() if rivals else []:
        if other.name != instance.name and not photo.rivals(other):
            away = min(math.dist(one.centre, other.centre) for one in rivals)
            if RATIO * math.dist(instance.centre, other.centre) <= away:
                found.append(other.name)
    return found


def only(photo: Photo, instance: Instance, form: str) -> list[str]:
    """The form with the category of an instance that is the only one of it."""
    return [] if photo.rivals(instance) else [form.format(instance.name)]


def word_short(photo: Photo, instance: Instance) -> list[str]:
    """refCOCO: "left dog", "largest dog", or "dog" where it is the only one."""
    words = [word for word, _ in positions_of(photo, instance)] + sizes_of(photo, instance)
    return [f"{word} {instance.name}" for word in words] or only(photo, instance, "{}")


def word_without_position(photo: Photo, instance: Instance) -> list[str]:
    """refCOCO+: "largest dog", or "dog" where it is the only one."""
    return [f"{word} {instance.name}" for word in sizes_of(photo, instance)] or only(
        photo, instance, "{}"
    )


def word_long(photo: Photo, instance: Instance) -> list[str]:
    """refCOCOg: whole phrases, also with what an instance is nearest to."""
    name = instance.name
    texts = [f"the {name} that is nearest to the {it}" for it in neighbours_of(photo, instance)]
    texts += [f"the {name} that is {how} of all" for _, how in positions_of(photo, instance)]
    texts += [f"the {word} {name} of all" for word in sizes_of(photo, instance)]
    return texts or only(photo, instance, "the only {} to be seen")


def refer(photo: Photo, turn: int, word: Callable[[Photo, Instance], list[str]]) -> list[Asked]:
    """One expression for each instance that can be told apart, those with rivals first.

    Another `turn` takes another of the wordings that fit, and begins with another instance.
    """
    asked = []
    for index, instance in enumerate(photo.askable()):
        if texts := word(photo, instance):
            asked.append(Asked(photo, texts[(turn + index) % len(texts)], [instance]))
    return sorted(rotate(asked, turn), key=lambda one: not photo.rivals(one.instances[0]))


def refer_generally(photo: Photo, turn: int, categories: list[dict[str, Any]]) -> list[Asked]:
    """gRefCOCO: an expression for several instances, for one, and for none."""
    here = {row["category_id"] for row in photo.rows}
    kinds = {instance.kind for instance in photo.askable()}
    absent = [c for c in categories if c["supercategory"] in kinds and c["id"] not in here]
    groups = [photo.fitting({name}) for name in sorted({one.name for one in photo.askable()})]
    several = [Asked(photo, f"every {g[0].name}", g) for g in groups if is_several(g)]
    none = [Asked(photo, one["name"], []) for one in rotate(absent, turn)]
    one = refer(photo, turn, word_short)
    return several[:1] + list(chain(*rotate([one[:1], none[:1]], turn)))


def is_several(instances: list[Instance]) -> bool:
    """Whether instances are two to so many, none of them tiny."""
    return 2 <= len(instances) <= MOST and all(one.share >= SMALLEST for one in instances)


def reason_about(photo: Photo, turn: int) -> list[Asked]:
    """ReasonSeg: a purpose, and all instances that serve it; the tiny ones are to be ignored."""
    asked = []
    for purpose, names in rotate(list(PURPOSES.items()), turn):
        instances = photo.fitting(names)
        drawn = all(isinstance(one.row["segmentation"], list) for one in instances)
        if drawn and any(one.share >= SMALLEST for one in instances):
            asked.append(Asked(photo, purpose, instances))
    return asked


def reason_about_several(photo: Photo, turn: int) -> list[Asked]:
    """MUSE: what a caption names, two purposes at once, and a purpose of several instances."""
    asked = [
        Asked(photo, f'A caption says: "{caption}" Show what it names.', named_by(caption, photo))
        for caption in photo.captions
    ]
    serving = {purpose: photo.fitting(names) for purpose, names in PURPOSES.items()}
    pairs = rotate(list(combinations(serving.items(), 2)), turn)
    for (first, instances), (second, others) in pairs:
        if instances and others and not {id(t) for t in instances} & {id(t) for t in others}:
            text = f"What here is {first}, and what is {second}?"
            asked.append(Asked(photo, text, instances + others))
    for purpose, instances in serving.items():
        asked.append(Asked(photo, f"What here is {purpose}? There is more than one.", instances))
    return [one for one in asked if is_several(one.instances)]


def named_by(caption: str, photo: Photo) -> list[Instance]:
    """The instances that a caption names; none where it may mean one of several, or a tiny one."""
    names = {instance.name for instance in photo.instances} | photo.crowds
    words = {name: f"{PEOPLE}|{name}" if name == "person" else name for name in names}
    said = {n for n, form in words.items() if re.search(rf"\b({form})(s|es)?\b", caption, re.I)}
    single = [instance for instance in photo.askable() if not photo.rivals(instance)]
    return [t for t in single if t.name in said] if said <= {t.name for t in single} else []


def rotate(values: list[T], turn: int) -> list[T]:
    """The values, beginning at another one each turn."""
    first = turn % len(values) if values else 0
    return values[first:] + values[:first]


def spread(asked: Iterable[list[Asked]], num: int) -> list[Asked]:
    """So many, each photo's first before any photo's second."""
    return [one for one in chain(*zip_longest(*asked)) if one is not None][:num]
