"""Scenes as an endless data set: picture number n of a split and seed is always the same one.

Joins drawing and questions. Splits differ by their random stream, so that no picture of one is in
another; ``test_combination`` asks only (concept, kind of question) pairs that training never
asks, ``test_style`` draws with artwork that training never sees.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from functools import cache

import numpy as np

from pixellm.data.scenes.artwork import StickerStyle, load_style
from pixellm.data.scenes.draw import choose_concepts, choose_object_count, choose_size, draw_scene
from pixellm.data.scenes.knowledge import Concept, Knowledge, load_knowledge
from pixellm.data.scenes.questions import DEFAULT_WEIGHTS, compose_dialogues
from pixellm.data.scenes.scene import Scene
from pixellm.types import Sample, Target, Turn

SPLITS = ("train", "val", "test", "test_combination", "test_style")

TRAINING_STYLE = "openmoji"
UNSEEN_STYLE = "fluent3d"

HELD_OUT_SHARE = 0.05
"""Share of (concept, kind) pairs that are asked in ``test_combination`` only."""

_NEVER_HELD_OUT = frozenset({"naming", "follow_up", "negative", "counting", "plain"})
_THEMES = ("any", "category", "use")
_THEME_SHARES = (0.5, 0.2, 0.3)


def is_held_out(concept: str, kind: str) -> bool:
    """Whether training never asks this kind of question with this concept among its targets.

    A fixed choice, the same for every seed. Naming is never held out, so that every concept is
    learnt; nor are kinds whose questions have no targets of their own.
    """
    if kind in _NEVER_HELD_OUT:
        return False
    digest = hashlib.blake2b(f"{concept}/{kind}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


def _is_trained(concept: str, kind: str) -> bool:
    return not is_held_out(concept, kind)


class ScenesDataset:
    """Drawn scenes with dialogues, a map-style data set.

    Everything follows from ``(split, seed, index)``: not from the order of access, the process
    or the number of dialogues asked for in another picture.

    Args:
        split: one of :data:`SPLITS`.
        seed: another seed gives other scenes.
        length: how many pictures the set pretends to hold.
        dialogues_per_image: dialogues about each picture, at most.
        style: artwork; the split's own where None.
        kinds: weight of each kind of question; the default weights where None.
        long_side: of the pictures, in pixels.

    Raises:
        ValueError: an unknown split.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        length: int = 1000,
        dialogues_per_image: int = 2,
        style: str | None = None,
        kinds: Mapping[str, float] | None = None,
        long_side: int = 256,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r} of the scenes; use {', '.join(SPLITS)}.")
        self.split = split
        self.seed = seed
        self.length = length
        self.dialogues_per_image = dialogues_per_image
        self.style = style or (UNSEEN_STYLE if split == "test_style" else TRAINING_STYLE)
        self.kinds = _held_out_kinds(kinds) if split == "test_combination" else kinds
        self.long_side = long_side

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all concepts, in the order of their table."""
        return tuple(concept.name for concept in load_knowledge().concepts.values())

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        """The dialogues about picture ``index``; they share one image array.

        Raises:
            IndexError: past the length, so that plain iteration ends.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"Scene {index} of {self.length}.")
        knowledge = load_knowledge()
        allowed = is_held_out if self.split == "test_combination" else _is_trained
        for attempt in range(100):
            scene = self.scene(index, attempt)
            dialogues = compose_dialogues(
                scene,
                knowledge,
                random.Random(self._entropy(index, attempt)),
                self.dialogues_per_image,
                kinds=self.kinds,
                allowed=allowed,
            )
            if dialogues:
                return self._to_samples(index, scene, dialogues, knowledge)
        raise ValueError(f"No question of the kinds {self.kinds} fits the scenes of {self.split}.")

    def scene(self, index: int, attempt: int = 0) -> Scene:
        """The drawing of picture ``index``; a later attempt replaces one that allows no question."""
        rng = np.random.default_rng(self._entropy(index, attempt))
        style = load_style(self.style)
        known = _drawable(self.style)
        concepts = _choose_themed(rng, known, choose_object_count(rng))
        for count in range(len(concepts), 0, -1):
            try:
                return draw_scene(
                    rng, concepts[:count], style, size=choose_size(rng, self.long_side)
                )
            except ValueError:
                continue  # a crowd that found no room: the same scene with one thing less
        raise ValueError(f"A picture of {self.long_side} pixels is too small for a scene.")

    def _entropy(self, index: int, attempt: int) -> int:
        key = f"{self.split}/{self.seed}/{index}/{attempt}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big")

    def _to_samples(
        self,
        index: int,
        scene: Scene,
        dialogues: list[tuple[Turn, ...]],
        knowledge: Knowledge,
    ) -> tuple[Sample, ...]:
        objects = tuple(
            Target(knowledge.concepts[thing.concept].name, thing.mask) for thing in scene.objects
        )
        name = f"{self.split}-{self.seed}-{index:06d}"
        return tuple(
            Sample(scene.image, scene.size, turns, id=f"{name}-{number}", objects=objects)
            for number, turns in enumerate(dialogues)
        )


def _held_out_kinds(kinds: Mapping[str, float] | None) -> dict[str, float]:
    """The weights, without kinds of which no pair is held out."""
    weights = DEFAULT_WEIGHTS if kinds is None else kinds
    return {kind: weight for kind, weight in weights.items() if kind not in _NEVER_HELD_OUT}


@cache
def _drawable(style: str) -> tuple[Concept, ...]:
    """The concepts that a style has a sticker for."""
    artwork: StickerStyle = load_style(style)
    return tuple(c for c in load_knowledge().concepts.values() if artwork.covers(c.openmoji))


def _choose_themed(
    rng: np.random.Generator, known: tuple[Concept, ...], num_objects: int
) -> list[Concept]:
    """Concepts of a scene: any, or two that share a category, or two that are good for something.

    Themes make questions about categories, uses and activities as common as they should be among
    hundreds of concepts.
    """
    theme = str(rng.choice(_THEMES, p=_THEME_SHARES))
    chosen = choose_concepts(rng, known, num_objects)
    if theme == "any":
        return chosen
    if theme == "category":
        names = sorted({name for concept in known for name in concept.categories})
        name = names[int(rng.integers(len(names)))]
        pool = [c for c in known if name in c.categories]
    else:
        pool = [c for c in known if c.uses]
    picked = rng.choice(len(pool), size=min(2, len(pool)), replace=False)
    themed = [pool[int(i)] for i in picked]
    for place, concept in zip(rng.permutation(len(chosen)), themed, strict=False):
        if concept not in chosen:
            chosen[int(place)] = concept
    return chosen
