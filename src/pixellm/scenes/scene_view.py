"""A scene as the question writer sees it: objects with names, positions and sizes, left to right.

It measures and names; which question to ask and how to word it is decided elsewhere.
Frame: fractions of the image's sides, x to the right, y down; distances are fractions of the
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
"""Least offset of every centre from the object that "left of" and the like refer to."""

INSTANCE_MARGIN = 0.06
"""Least gap between the centres of two objects of a kind that are called left and right."""

EDGE_MARGIN = 0.06
"""Least lead of the object nearest an edge over the next one."""

NEAREST_RATIO = 1.25
"""The second nearest object is at least this many times further away than the nearest."""

SIZE_RATIO = 1.3
"""Least ratio of the areas of two objects that are compared."""

MAX_TARGETS = 5
"""More objects of a drawn scene than this are never asked for at once."""

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
class ViewedObject:
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


@dataclass(frozen=True, slots=True, eq=False)
class ViewedGroup(ViewedObject):
    """Several objects of a kind that one phrase names: "the bananas".

    Attributes:
        members: left to right.
    """

    members: tuple[ViewedObject, ...] = ()

    @property
    def plain_phrase(self) -> str:
        """Their plural with the definite article."""
        return f"the {self.concept.plural}"


Objects = Sequence[ViewedObject]


def members_of(told: Iterable[ViewedObject]) -> tuple[ViewedObject, ...]:
    """The objects of what an answer names, one by one."""
    return tuple(
        member
        for one in told
        for member in (one.members if isinstance(one, ViewedGroup) else (one,))
    )


def is_plural(told: Objects) -> bool:
    """Whether an answer says "are" of what it names."""
    return len(members_of(told)) > 1 or any(one.concept.is_plural for one in told)


class SceneView:
    """The objects of one scene, left to right by centre, and what may truly be said of them.

    Args:
        scene: its objects' concepts must be in ``knowledge``.
        knowledge: the tables.
        max_targets: more objects than this are never asked for at once.

    Attributes:
        is_complete: whether the objects are all that a question for everything can mean.
        is_all_there_is: whether nothing else at all is in the image.
        uncountable: keys of concepts of which a number would be open to dispute.
    """

    def __init__(self, scene: Scene, knowledge: Knowledge, max_targets: int = MAX_TARGETS) -> None:
        self.knowledge = knowledge
        self.max_targets = max_targets
        self.is_complete = self.is_all_there_is = True
        self.uncountable: frozenset[str] = frozenset()
        self._height, self._width = scene.size
        objects = sorted(scene.objects, key=lambda one: (one.center[0], one.center[1]))
        positions = self._name_positions(objects)
        self.objects = tuple(
            self._measure(one, position) for one, position in zip(objects, positions, strict=True)
        )
        self.counts = Counter(item.concept.key for item in self.objects)
        self.ambiguous = frozenset[str]().union(*(item.concept.ambiguous for item in self.objects))

    @cached_property
    def unambiguous(self) -> list[ViewedObject]:
        """Objects that their name alone picks out: the only one that it can mean."""
        return [
            item
            for item in self.objects
            if self.counts[item.concept.key] == 1
            and f"name:{item.concept.key}" not in self.ambiguous
        ]

    def present_kinds(self, least: int = 1, most: float = math.inf) -> list[str]:
        """Concepts of which so many are there, and that their name alone surely means."""
        return [
            key
            for key, count in self.counts.items()
            if least <= count <= most and f"name:{key}" not in self.ambiguous
        ]

    def group(self, concept: str) -> list[ViewedObject]:
        """All objects of a concept, left to right."""
        return [item for item in self.objects if item.concept.key == concept]

    def present_categories(self) -> list[str]:
        """Categories that something belongs to and nothing is ambiguous for."""
        return self._clear("category", (item.concept.categories for item in self.objects))

    def present_uses(self) -> list[str]:
        """Uses that something serves and nothing is ambiguous for."""
        return self._clear("use", (item.concept.uses for item in self.objects))

    def told(self, objects: Objects) -> list[ViewedObject]:
        """What an answer that means all of its kinds names, in order: each object by itself."""
        return list(objects)

    def in_category(self, category: str) -> list[ViewedObject]:
        """All objects of a category, left to right."""
        return [item for item in self.objects if category in item.concept.categories]

    def serving(self, use: str) -> list[ViewedObject]:
        """All objects that serve a use, left to right."""
        return [item for item in self.objects if use in item.concept.uses]

    def surely_lacks(self, kind: str, key: str) -> bool:
        """Whether nothing at all is of the category, or serves the use, that ``key`` names."""
        present = self.in_category(key) if kind == "category" else self.serving(key)
        return not present and f"{kind}:{key}" not in self.ambiguous

    def ninth(self, item: ViewedObject) -> str | None:
        """Where in the image an object's centre is, in words; None where it is near a border."""
        for share in item.center:
            if min(abs(share - 1 / 3), abs(share - 2 / 3)) < NINTH_MARGIN:
                return None
        column, row = (min(int(share * 3), 2) for share in item.center)
        return _NINTHS[row][column]

    def in_half(self, side: str) -> list[ViewedObject] | None:
        """Objects whose centre lies in a half; None where one lies too near the middle line."""
        return self._beyond(self.objects, side, (0.5, 0.5), HALF_MARGIN)

    def beside(self, anchor: ViewedObject, side: str) -> list[ViewedObject] | None:
        """Objects on a side of another by their centres; None where one is too close to call."""
        others = [item for item in self.objects if item is not anchor]
        return self._beyond(others, side, anchor.center, RELATIVE_MARGIN)

    def is_beside(self, item: ViewedObject, anchor: ViewedObject, side: str) -> bool | None:
        """Whether an object is on a side of another one; None where it is too close to call."""
        found = self._beyond([item], side, anchor.center, RELATIVE_MARGIN)
        return None if found is None else bool(found)

    def nearest_edge(self, side: str, among: Objects) -> ViewedObject | None:
        """The object nearest an edge by centre and by outline alike; None where it is unclear."""
        if len(among) < 2:
            return None
        axis, sign = _AXES[side]
        first, second = sorted(among, key=lambda one: sign * one.center[axis])[:2]
        if sign * (second.center[axis] - first.center[axis]) < EDGE_MARGIN:
            return None
        outline = axis if sign > 0 else axis + 2
        winner = min(among, key=lambda one: sign * one.edges[outline])
        return first if winner is first else None

    def nearest_object(self, anchor: ViewedObject) -> ViewedObject | None:
        """The object nearest another one by centre and by box alike; None where it is unclear."""
        others = [item for item in self.objects if item is not anchor]
        if len(others) < 2:
            return None
        reach = {id(one): self._distance(anchor, one) for one in others}
        first, second = sorted(others, key=lambda one: reach[id(one)])[:2]
        if reach[id(second)] < NEAREST_RATIO * reach[id(first)]:
            return None
        gap = self._gap(anchor, first)
        return first if all(gap <= self._gap(anchor, one) for one in others) else None

    def extreme_size(self, among: Objects, *, largest: bool) -> ViewedObject | None:
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

    def ranked(self, among: Objects, order: str) -> list[ViewedObject] | None:
        """Objects in order: from a side, or from "large" or "small" on by visible area.

        None where two neighbours are too close to call.
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
        return [key for key in found if f"{kind}:{key}" not in self.ambiguous]

    def _measure(self, one: SceneObject, position: str) -> ViewedObject:
        left, top, width, height = one.box
        return ViewedObject(
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
        """What tells objects of one kind apart; "" for the only one of its kind."""
        positions = [""] * len(objects)
        for concept, count in Counter(one.concept for one in objects).items():
            if count < 2:
                continue
            indices = [i for i, one in enumerate(objects) if one.concept == concept]
            for word, index in self._ranked([objects[i] for i in indices], indices):
                positions[index] = word
        return positions

    def _ranked(self, group: Sequence[SceneObject], indices: list[int]) -> list[tuple[str, int]]:
        ways = ((0, self._width, "left", "right"), (1, self._height, "top", "bottom"))
        for axis, side, low, high in ways if len(group) <= 3 else ():
            order = sorted(range(len(group)), key=lambda i: group[i].center[axis])
            values = [group[i].center[axis] / side for i in order]
            if min(b - a for a, b in pairwise(values)) >= INSTANCE_MARGIN:
                words = (low, high) if len(group) == 2 else (low, "middle", high)
                return [(word, indices[i]) for word, i in zip(words, order, strict=True)]
        return list(zip(ORDINALS, indices, strict=False))

    def _beyond(
        self, among: Iterable[ViewedObject], side: str, origin: tuple[float, float], margin: float
    ) -> list[ViewedObject] | None:
        axis, sign = _AXES[side]
        found = []
        for item in among:
            offset = sign * (origin[axis] - item.center[axis])
            if abs(offset) < margin:
                return None
            if offset > 0:
                found.append(item)
        return found

    def _distance(self, one: ViewedObject, other: ViewedObject) -> float:
        short = min(self._height, self._width)
        dx = (one.center[0] - other.center[0]) * self._width / short
        dy = (one.center[1] - other.center[1]) * self._height / short
        return math.hypot(dx, dy)

    def _gap(self, one: ViewedObject, other: ViewedObject) -> float:
        """Distance between two boxes, in pixels; 0 where they touch."""
        a, b = one.object.box, other.object.box
        dx = max(a[0] - b[0] - b[2], b[0] - a[0] - a[2], 0)
        dy = max(a[1] - b[1] - b[3], b[1] - a[1] - a[3], 0)
        return math.hypot(dx, dy)


_AXES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
