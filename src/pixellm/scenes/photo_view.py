"""A photo as the question writer sees it: what its annotations leave open is never claimed.

A drawn scene is known to the last pixel; a photo shows more than somebody annotated, objects
overlap, and far away ones can't be told apart. This module narrows what
:class:`~pixellm.scenes.scene_view.SceneView` holds for sayable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import numpy as np

from pixellm.masks import decode_mask, encode_mask
from pixellm.scenes.knowledge import Knowledge
from pixellm.scenes.scene import Scene, SceneObject, measure_object
from pixellm.scenes.scene_view import INSTANCE_MARGIN, Objects, SceneView, ViewedGroup, ViewedObject

PERSON = "person"
"""Key of the concept of people."""

LEAST_SHARE = 0.001
"""An object that covers less of the photo is not clear enough to be picked out or counted."""

WHOLLY_BESIDE = 0.8
"""Share of an object's extent that lies beyond a line for it to be on that side."""

MOST_LEVEL = 0.5
"""Share of an object's extent that may be level with another one that it lies beside."""

DENIABLE = frozenset(
    {
        *("category:animals", "category:pets", "category:farm_animals", "category:wild_animals"),
        *("category:vehicles", "category:flying", "category:bags", "category:cutlery"),
        *("use:ride", "use:drive", "use:many_people", "use:fly", "use:stop_traffic", "use:put_out"),
        *("use:park", "use:wool", "use:milk", "use:stay_dry", "use:snow", "use:waves"),
        *("use:restroom", "use:watch_film", "use:pointer", "use:channel", "use:toast"),
        *("use:brush_teeth", "use:dry_hair", "use:cool", "use:cuddle", "use:heat"),
    }
)
"""Kinds of objects whose annotated members are nearly all that there are of them."""

_DENIABLE_OUTDOORS = frozenset(
    {
        *("category:food", "category:fruit", "category:vegetables", "category:sweets"),
        *("category:furniture", "category:electronics", "category:appliances"),
        *("category:tableware", "use:eat", "use:drink", "use:sleep", "use:cut", "use:eat_with"),
        *("use:wash_hands", "use:type", "use:read", "use:flowers"),
    }
)
_OUTDOORS = frozenset({"vehicles", "farm_animals", "wild_animals"})
_INDOORS = frozenset({"food", "furniture", "electronics", "appliances", "tableware"})


class PhotoView(SceneView):
    """The annotated objects of a photo, and what may truly be said of them.

    Args:
        scene: its objects, and which concepts they don't show all of.
        knowledge: the tables.
        max_targets: more objects than this are never asked for at once.
        people: what a question may call each person of this photo, beside the usual words.
        together: answers that mean all of a kind name it once, "the dogs", with one mask of all.
    """

    def __init__(
        self,
        scene: Scene,
        knowledge: Knowledge,
        max_targets: int,
        people: tuple[str, ...] = (),
        together: bool = False,
    ) -> None:
        self._people = people
        self._together = together
        self._groups: dict[str, ViewedGroup] = {}
        super().__init__(scene, knowledge, max_targets)
        pixels = self._height * self._width
        self.tiny = frozenset(
            id(item) for item in self.objects if item.object.area < LEAST_SHARE * pixels
        )
        small = {item.concept.key for item in self.objects if id(item) in self.tiny}
        self.uncountable = scene.uncertain | small
        self.is_complete = not self.uncountable
        self.is_all_there_is = False
        unsure = [knowledge.concepts[key] for key in scene.uncertain]
        self.ambiguous |= {f"name:{concept.key}" for concept in unsure}
        self.ambiguous |= {f"category:{key}" for one in unsure for key in one.categories}
        self.ambiguous |= {f"use:{key}" for one in unsure for key in one.uses}
        self.ambiguous |= frozenset[str]().union(*(one.ambiguous for one in unsure))
        kinds = {key for item in self.objects for key in item.concept.categories}
        self._is_outdoors = not _OUTDOORS.isdisjoint(kinds) and _INDOORS.isdisjoint(kinds)

    @cached_property
    def unambiguous(self) -> list[ViewedObject]:
        """Objects that their name alone picks out, large enough to be seen."""
        return [item for item in super().unambiguous if self.is_clear(item)]

    def told(self, objects: Objects) -> list[ViewedObject]:
        """What an answer that means all of its kinds names, in order; see ``together``."""
        if not self._together:
            return list(objects)
        keys = dict.fromkeys(one.concept.key for one in objects)
        return [self._group(key) if self.counts[key] > 1 else self.group(key)[0] for key in keys]

    def _group(self, key: str) -> ViewedGroup:
        if key not in self._groups:
            members = tuple(self.group(key))
            mask = np.logical_or.reduce([decode_mask(one.object.mask) for one in members])
            joined = measure_object(key, mask, encode_mask(mask))
            one = self._measure(joined, "")
            self._groups[key] = ViewedGroup(joined, one.concept, one.center, one.edges, "", members)
        return self._groups[key]

    def is_clear(self, item: ViewedObject) -> bool:
        """Whether an object is large enough to be picked out."""
        return id(item) not in self.tiny

    def surely_lacks(self, kind: str, key: str) -> bool:
        """Whether nothing is of a category, or serves a use, even where nobody annotated it."""
        mark = f"{kind}:{key}"
        sure = mark in DENIABLE or (self._is_outdoors and mark in _DENIABLE_OUTDOORS)
        return sure and super().surely_lacks(kind, key)

    def in_half(self, side: str) -> list[ViewedObject] | None:
        """Objects that lie in a half; None where that is unclear, or nothing annotated does."""
        return (super().in_half(side) or None) if self.is_complete else None

    def beside(self, anchor: ViewedObject, side: str) -> list[ViewedObject] | None:
        """Objects on a side of another; None where that is unclear, or nothing annotated is."""
        found = super().beside(anchor, side) if self.is_complete else None
        if not found or any(self._overlaps(item, anchor, side) for item in found):
            return None
        return found

    def is_beside(self, item: ViewedObject, anchor: ViewedObject, side: str) -> bool | None:
        """Whether an object is on a side of another one; None where it is unclear."""
        beside = super().is_beside(item, anchor, side)
        return None if beside and self._overlaps(item, anchor, side) else beside

    def nearest_edge(self, side: str, among: Objects) -> ViewedObject | None:
        """The object nearest an edge; None where it is unclear."""
        return self._sure(super().nearest_edge(side, among), among)

    def nearest_object(self, anchor: ViewedObject) -> ViewedObject | None:
        """The object nearest another one; None where it is unclear, as where several touch it."""
        nearest = super().nearest_object(anchor) if self.is_complete else None
        if nearest is None:
            return None
        gap = self._gap(anchor, nearest)
        others = [one for one in self.objects if one is not anchor and one is not nearest]
        return nearest if all(gap < self._gap(anchor, one) for one in others) else None

    def extreme_size(self, among: Objects, *, largest: bool) -> ViewedObject | None:
        """The largest or smallest; None where it is unclear."""
        return self._sure(super().extreme_size(among, largest=largest), among)

    def index_in_row(self, item: ViewedObject, group: Objects) -> int | None:
        """How many of a group lie left of one of them; None where a neighbour is too close."""
        if any(not self.is_clear(one) for one in group):
            return None
        offsets = [one.center[0] - item.center[0] for one in group if one is not item]
        if min(map(abs, offsets), default=0.0) < INSTANCE_MARGIN:
            return None
        return sum(offset < 0 for offset in offsets)

    def salient(self, number: int) -> list[ViewedObject]:
        """The largest clear objects, so many at most and two of a kind, left to right."""
        chosen: list[ViewedObject] = []
        for item in sorted(self.objects, key=lambda one: -one.object.area):
            alike = [one for one in chosen if one.concept.key == item.concept.key]
            if len(chosen) < number and len(alike) < 2 and self.is_clear(item):
                chosen.append(item)
        return [item for item in self.objects if item in chosen]

    def _measure(self, one: SceneObject, position: str) -> ViewedObject:
        """An object with its measures; a person may have more names than usual."""
        item = super()._measure(one, position)
        if not self._people or one.concept != PERSON:
            return item
        names = (*item.concept.synonyms, *self._people)
        return replace(item, concept=replace(item.concept, synonyms=names))

    def _overlaps(self, item: ViewedObject, anchor: ViewedObject, side: str) -> bool:
        """Whether most of an object lies level with another, as a person on a couch does."""
        axis = 0 if side in ("left", "right") else 1
        low, high = item.edges[axis], item.edges[axis + 2]
        common = min(high, anchor.edges[axis + 2]) - max(low, anchor.edges[axis])
        return common > MOST_LEVEL * (high - low)

    def _sure(self, found: ViewedObject | None, among: Objects) -> ViewedObject | None:
        """What was found, where it is clear and all that could be meant is known."""
        of_all = len(among) == len(self.objects)
        if found is None or not self.is_clear(found) or (of_all and not self.is_complete):
            return None
        return found

    def _beyond(
        self, among: Iterable[ViewedObject], side: str, origin: tuple[float, float], margin: float
    ) -> list[ViewedObject] | None:
        """Objects beyond a line by their centres and by most of their extent."""
        objects = list(among)
        found = super()._beyond(objects, side, origin, margin)
        if found is None:
            return None
        axis = 0 if side in ("left", "right") else 1
        for item in objects:
            low, high = item.edges[axis], item.edges[axis + 2]
            before = min(max((origin[axis] - low) / max(high - low, 1e-9), 0.0), 1.0)
            beyond = before if side in ("left", "top") else 1 - before
            is_found = any(item is one for one in found)
            if (beyond if is_found else 1 - beyond) < WHOLLY_BESIDE:
                return None
        return found
