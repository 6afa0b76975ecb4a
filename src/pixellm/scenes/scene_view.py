"""A scene as the question writer sees it: things with names, places and sizes, left to right.

It measures and names; which question to ask and how to word it is decided elsewhere.
Frame: fractions of the picture's sides, x to the right, y down; distances are fractions of the
shorter side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from pixellm.scenes.knowledge import Concept, Knowledge
from pixellm.scenes.scene import Scene, SceneObject
from pixellm.types import Target

HALF_MARGIN = 0.06
"""Least distance of every centre from the middle line for a question about halves."""

NINTH_MARGIN = 0.04
"""Least distance of a centre from the lines between thirds for it to have a ninth's name."""

RELATIVE_MARGIN = 0.08
"""Least offset of every centre from the thing that "left of" and the like refer to."""

INSTANCE_MARGIN = 0.06
"""Least gap between the centres of two things of a kind that are called left and right."""

EDGE_MARGIN = 0.06
"""Least lead of the thing nearest an edge over the next one."""

NEAREST_RATIO = 1.25
"""The second nearest thing is at least this many times further away than the nearest."""

SIZE_RATIO = 1.3
"""Least ratio of the areas of two things that are compared."""

MAX_TARGETS = 5
"""More things of a drawn scene than this are never asked for at once."""

SIDES = ("left", "right", "top", "bottom")
_NINTHS = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
    *("tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth"),
    *("seventeenth", "eighteenth", "nineteenth", "twentieth"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Thing:
    """One object with its measures.

    Attributes:
        object: the scene's object.
        concept: what it is.
        center: (x, y) as fractions of the sides.
        edges: outermost (left, top, right, bottom) as fractions of the sides.
        position: "" for the only one of its kind, else what tells it apart, such as "left".
    """

    object: SceneObject
    concept: Concept
    center: tuple[float, float]
    edges: tuple[float, float, float, float]
    position: str

    @property
    def phrase(self) -> str:
        """How answers call it: "the banana", "the left banana"."""
        return f"the {self.position} {self.concept.name}" if self.position else self.plain_phrase

    @property
    def plain_phrase(self) -> str:
        """Its name with the definite article alone."""
        return f"the {self.concept.name}"

    @property
    def target(self) -> Target:
        """The object as a turn's target."""
        return Target(self.concept.name, self.object.mask)


class SceneView:
    """The things of one scene, left to right by centre, and what may truly be said of them.

    Args:
        scene: its objects' concepts must be in ``knowledge``.
        knowledge: the tables.
        max_targets: more things than this are never asked for at once.

    Attributes:
        is_complete: whether the things are all that can be seen.
        uncountable: keys of concepts of which a number would be open to dispute.
    """

    def __init__(self, scene: Scene, knowledge: Knowledge, max_targets: int = MAX_TARGETS) -> None:
        self.knowledge = knowledge
        self.max_targets = max_targets
        self.is_complete = True
        self.uncountable: frozenset[str] = frozenset()
        self._height, self._width = scene.size
        objects = sorted(scene.objects, key=lambda one: (one.center[0], one.center[1]))
        positions = self._name_positions(objects)
        self.things = tuple(
            self._measure(one, position) for one, position in zip(objects, positions, strict=True)
        )
        self.counts = Counter(thing.concept.key for thing in self.things)
        self.borderline = frozenset[str]().union(
            *(thing.concept.borderline for thing in self.things)
        )

    @cached_property
    def unmistakable(self) -> list[Thing]:
        """Things that their name alone picks out: the only one that it can mean."""
        return [
            thing
            for thing in self.things
            if self.counts[thing.concept.key] == 1
            and f"name:{thing.concept.key}" not in self.borderline
        ]

    def group(self, concept: str) -> list[Thing]:
        """All things of a concept, left to right."""
        return [thing for thing in self.things if thing.concept.key == concept]

    def present_categories(self) -> list[str]:
        """Categories that something belongs to and nothing is borderline for."""
        return self._clear("category", (thing.concept.categories for thing in self.things))

    def present_uses(self) -> list[str]:
        """Uses that something serves and nothing is borderline for."""
        return self._clear("use", (thing.concept.uses for thing in self.things))

    def in_category(self, category: str) -> list[Thing]:
        """All things of a category, left to right."""
        return [thing for thing in self.things if category in thing.concept.categories]

    def serving(self, use: str) -> list[Thing]:
        """All things that serve a use, left to right."""
        return [thing for thing in self.things if use in thing.concept.uses]

    def surely_lacks(self, kind: str, key: str) -> bool:
        """Whether nothing at all is of a category, or serves a use.

        Args:
            kind: "category" or "use".
            key: its row.
        """
        present = self.in_category(key) if kind == "category" else self.serving(key)
        return not present and f"{kind}:{key}" not in self.borderline

    def ninth(self, thing: Thing) -> str | None:
        """Where in the picture a thing's centre is, in words; None where it is near a border."""
        for share in thing.center:
            if min(abs(share - 1 / 3), abs(share - 2 / 3)) < NINTH_MARGIN:
                return None
        column, row = (min(int(share * 3), 2) for share in thing.center)
        return _NINTHS[row][column]

    def in_half(self, side: str) -> list[Thing] | None:
        """Things whose centre lies in a half; None where one lies too near the middle line."""
        return self._beyond(self.things, side, (0.5, 0.5), HALF_MARGIN)

    def beside(self, anchor: Thing, side: str) -> list[Thing] | None:
        """Things on a side of another one by their centres; None where one is too close to call."""
        others = [thing for thing in self.things if thing is not anchor]
        return self._beyond(others, side, anchor.center, RELATIVE_MARGIN)

    def is_beside(self, thing: Thing, anchor: Thing, side: str) -> bool | None:
        """Whether a thing is on a side of another one; None where it is too close to call."""
        found = self._beyond([thing], side, anchor.center, RELATIVE_MARGIN)
        return None if found is None else bool(found)

    def nearest_edge(self, side: str, among: Sequence[Thing]) -> Thing | None:
        """The thing nearest an edge by centre and by outline alike; None where it is unclear."""
        if len(among) < 2:
            return None
        axis, sign = _AXES[side]
        first, second = sorted(among, key=lambda one: sign * one.center[axis])[:2]
        if sign * (second.center[axis] - first.center[axis]) < EDGE_MARGIN:
            return None
        outline = axis if sign > 0 else axis + 2
        winner = min(among, key=lambda one: sign * one.edges[outline])
        return first if winner is first else None

    def nearest_thing(self, anchor: Thing) -> Thing | None:
        """The thing nearest another one by centre and by box alike; None where it is unclear."""
        others = [thing for thing in self.things if thing is not anchor]
        if len(others) < 2:
            return None
        reach = {id(one): self._distance(anchor, one) for one in others}
        first, second = sorted(others, key=lambda one: reach[id(one)])[:2]
        if reach[id(second)] < NEAREST_RATIO * reach[id(first)]:
            return None
        gap = self._gap(anchor, first)
        return first if all(gap <= self._gap(anchor, one) for one in others) else None

    def extreme_size(self, among: Sequence[Thing], *, largest: bool) -> Thing | None:
        """The largest or smallest by visible area and by box alike; None where it is unclear."""
        if len(among) < 2:
            return None
        sign = -1 if largest else 1
        first, second = sorted(among, key=lambda one: sign * one.object.area)[:2]
        areas = sorted((first.object.area, second.object.area))
        if areas[1] < SIZE_RATIO * areas[0]:
            return None
        boxes = [one.object.box[2] * one.object.box[3] for one in among]
        own = first.object.box[2] * first.object.box[3]
        return first if own == (max(boxes) if largest else min(boxes)) else None

    def ranked(self, among: Sequence[Thing], order: str) -> list[Thing] | None:
        """Things from one side of the picture to the other, or by size.

        Args:
            among: which things.
            order: the side to begin at, or "large" or "small" for what comes first by visible area.

        Returns:
            All of them in order; None where two neighbours are too close to call.
        """
        rest, ranked = list(among), []
        while len(rest) > 1:
            if order in _AXES:
                first = self.nearest_edge(order, rest)
            else:
                first = self.extreme_size(rest, largest=order == "large")
            if first is None:
                return None
            rest.remove(first)
            ranked.append(first)
        return [*ranked, *rest]

    def _clear(self, kind: str, keys: Iterable[Iterable[str]]) -> list[str]:
        found = dict.fromkeys(key for some in keys for key in some)
        return [key for key in found if f"{kind}:{key}" not in self.borderline]

    def _measure(self, one: SceneObject, position: str) -> Thing:
        left, top, width, height = one.box
        return Thing(
            object=one,
            concept=self.knowledge.concepts[one.concept],
            center=(one.center[0] / self._width, one.center[1] / self._height),
            edges=(
                left / self._width,
                top / self._height,
                (left + width) / self._width,
                (top + height) / self._height,
            ),
            position=position,
        )

    def _name_positions(self, objects: Sequence[SceneObject]) -> list[str]:
        """What tells things of one kind apart; "" for the only one of its kind."""
        positions = [""] * len(objects)
        for concept, count in Counter(one.concept for one in objects).items():
            if count < 2:
                continue
            places = [i for i, one in enumerate(objects) if one.concept == concept]
            for word, place in self._ranked([objects[i] for i in places], places):
                positions[place] = word
        return positions

    def _ranked(self, group: Sequence[SceneObject], places: Sequence[int]) -> list[tuple[str, int]]:
        ways = ((0, self._width, "left", "right"), (1, self._height, "top", "bottom"))
        for axis, side, low, high in ways if len(group) <= 3 else ():
            order = sorted(range(len(group)), key=lambda i: group[i].center[axis])
            values = [group[i].center[axis] / side for i in order]
            if min(b - a for a, b in pairwise(values)) >= INSTANCE_MARGIN:
                words = (low, high) if len(group) == 2 else (low, "middle", high)
                return [(word, places[i]) for word, i in zip(words, order, strict=True)]
        return list(zip(ORDINALS, places, strict=False))

    def _beyond(
        self, among: Iterable[Thing], side: str, origin: tuple[float, float], margin: float
    ) -> list[Thing] | None:
        axis, sign = _AXES[side]
        found = []
        for thing in among:
            offset = sign * (origin[axis] - thing.center[axis])
            if abs(offset) < margin:
                return None
            if offset > 0:
                found.append(thing)
        return found

    def _distance(self, one: Thing, other: Thing) -> float:
        short = min(self._height, self._width)
        dx = (one.center[0] - other.center[0]) * self._width / short
        dy = (one.center[1] - other.center[1]) * self._height / short
        return math.hypot(dx, dy)

    def _gap(self, one: Thing, other: Thing) -> float:
        """Distance between two boxes, in pixels; 0 where they touch."""
        a, b = one.object.box, other.object.box
        dx = max(a[0] - b[0] - b[2], b[0] - a[0] - a[2], 0)
        dy = max(a[1] - b[1] - b[3], b[1] - a[1] - a[3], 0)
        return math.hypot(dx, dy)


_AXES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
