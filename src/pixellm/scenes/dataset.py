"""Scenes as an endless data set: image number n of a split and seed is always the same one.

Joins drawing and questions. Splits differ by their random stream, so that no image of one is in
another; ``test_combination`` asks only (concept, kind of question) pairs that training never
asks, ``test_style`` draws with artwork that training never sees.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.random import Generator

from pixellm.scenes.artwork import load_style
from pixellm.scenes.draw import choose_concepts, choose_object_count, choose_size, draw_scene
from pixellm.scenes.knowledge import Concept, Knowledge, load_knowledge
from pixellm.scenes.questions import DEFAULT_WEIGHTS, Dialogues, check_weights, compose_dialogues
from pixellm.scenes.scene import Scene
from pixellm.types import Sample, Target

SPLITS = ("train", "val", "test", "test_combination", "test_style")

TRAINING_STYLE = "openmoji"
UNSEEN_STYLE = "fluent3d"

HELD_OUT_SHARE = 0.05
"""Share of (concept, kind) pairs that are asked in ``test_combination`` only."""

_NEVER_HELD_OUT = frozenset(
    {
        *("naming", "follow_up", "negative", "negative_group", "many"),
        *("repeat", "where", "counting", "plain"),
    }
)
"""Of "many", whose turns are "several", pairs are held out under that name."""
_THEMES = ("any", "category", "use")
_THEME_SHARES = (0.5, 0.2, 0.3)
_SPARE = 3
"""Of scenes for single targets so many times more dialogues are composed than kept."""


def is_held_out(concept: str, kind: str) -> bool:
    """Whether training never asks this kind of question with this concept among its targets.

    A fixed choice, the same for every seed. Naming is never held out, so that every concept is
    learnt; nor are kinds whose questions have no targets of their own.
    """
    if kind in _NEVER_HELD_OUT:
        return False
    digest = hashlib.blake2b(f"{concept}/{kind}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


class EndlessScenes(ABC):
    """Images made anew from their numbers, with dialogues about them: a map-style data set.

    Everything follows from ``(split, seed, index)`` and the arguments of the set: not from the
    order of access, the process or the worker.
    """

    stream: ClassVar[str] = ""
    """What the random stream of a set of this kind begins with."""
    attempts: ClassVar[int] = 100
    """So many scenes are tried before none is found that allows a question."""

    split: str
    seed: int
    length: int
    kinds: Mapping[str, float] | None

    @property
    @abstractmethod
    def knowledge(self) -> Knowledge:
        """What is true of the objects."""

    @abstractmethod
    def scene(self, index: int, attempt: int = 0) -> Scene:
        """Image ``index``; a later attempt replaces one that allows no question."""

    @abstractmethod
    def compose(self, scene: Scene, index: int, attempt: int) -> Dialogues:
        """The dialogues about a scene; none where it allows no question."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all objects, as targets carry them, in the order of their table."""
        return tuple(concept.name for concept in self.knowledge.concepts.values())

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        """The dialogues about image ``index``; they share one image array.

        IndexError past the length, so that plain iteration ends; ValueError where no question of
        the kinds asked for fits any of many scenes; ImportError or FileNotFoundError where the
        packages of the extra ``scenes`` or the style's artwork are missing.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"Scene {index} of {self.length}.")
        for attempt in range(self.attempts):
            scene = self.scene(index, attempt)
            if dialogues := self.compose(scene, index, attempt):
                return self._to_samples(index, scene, dialogues)
        raise ValueError(
            f"No question of the kinds {', '.join(self.kinds or DEFAULT_WEIGHTS)} fits the scenes "
            f"of {self.split}; allow more kinds or more objects."
        )

    def entropy(self, index: int, attempt: int) -> int:
        """What seeds everything about an image."""
        key = f"{self.stream}{self.split}/{self.seed}/{index}/{attempt}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big")

    def _to_samples(self, index: int, scene: Scene, dialogues: Dialogues) -> tuple[Sample, ...]:
        concepts = self.knowledge.concepts
        # Crowds count among what is annotated, as in photos: their cells are no background.
        shown = (*scene.crowds, *((one.concept, one.mask) for one in scene.objects))
        objects = tuple(Target(concepts[concept].name, mask) for concept, mask in shown)
        prefix = self.stream.replace(" ", "-").replace("/", "-")
        name = f"{prefix}{self.split}-{self.seed}-{index:06d}"
        return tuple(
            Sample(scene.image, scene.size, turns, id=f"{name}-{number}", objects=objects)
            for number, turns in enumerate(dialogues)
        )


class ScenesDataset(EndlessScenes):
    """Drawn scenes. Cheap to build and to pickle; stickers are kept once per process.

    Args:
        split: one of :data:`SPLITS`.
        seed: another seed gives other scenes.
        length: how many images the set pretends to hold.
        dialogues_per_image: dialogues about each image, at most; a poor scene allows fewer.
            Evaluation takes 500 scenes with 4 dialogues each unless told otherwise.
        style: artwork; the split's own where None.
        kinds: weight of each kind of question; the default weights where None.
        long_side: of the images, in pixels.
        num_objects: in every scene; 2 to 6 at random where None.
        single_target: only dialogues whose answers have one target or none, for comparisons.

    Raises:
        ValueError: an unknown split, a number that is too small, or weights of unknown kinds.
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
        num_objects: int | None = None,
        single_target: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r} of the scenes; use {', '.join(SPLITS)}.")
        counts = {"length": length, "dialogues_per_image": dialogues_per_image}
        for name, count in {**counts, "num_objects": num_objects or 1}.items():
            if count < 1:
                raise ValueError(f"Scenes with {name} {count} are not possible; give at least 1.")
        if kinds is not None:
            check_weights(kinds)
        self.split = split
        self.seed = seed
        self.length = length
        self.dialogues_per_image = dialogues_per_image
        self.style = style or (UNSEEN_STYLE if split == "test_style" else TRAINING_STYLE)
        self.kinds = _held_out_kinds(kinds) if split == "test_combination" else kinds
        self.long_side = long_side
        self.num_objects = num_objects
        self.single_target = single_target

    @property
    def knowledge(self) -> Knowledge:
        """What is true of the objects as the style draws them."""
        return knowledge_of_style(self.style)

    def scene(self, index: int, attempt: int = 0) -> Scene:
        """The drawing of image ``index``."""
        rng = np.random.default_rng(self.entropy(index, attempt))
        style = load_style(self.style)
        known = drawable_concepts(self.style)
        count = self.num_objects or choose_object_count(rng)
        if self.split == "test_combination":
            kind = self._kind_of_attempt(index, attempt)
            theme = _shuffled(rng, [c for c in known if is_held_out(c.key, kind)])[:count]
        else:
            theme = _choose_theme(rng, known)
        concepts = choose_concepts(rng, known, count, theme)
        size = choose_size(rng, self.long_side)
        for fewer in range(count):  # a crowd that finds no room is drawn with one object less
            try:
                return draw_scene(rng, concepts[: count - fewer], style, size=size)
            except ValueError:
                continue
        raise ValueError(f"An image of {self.long_side} pixels is too small for a scene.")

    def compose(self, scene: Scene, index: int, attempt: int) -> Dialogues:
        """The dialogues about a scene, with pairs of concept and kind that the split allows."""
        combination = self.split == "test_combination"
        dialogues = compose_dialogues(
            scene,
            self.knowledge,
            random.Random(self.entropy(index, attempt)),
            self.dialogues_per_image * (_SPARE if self.single_target else 1),
            kinds={self._kind_of_attempt(index, attempt): 1.0} if combination else self.kinds,
            allowed=lambda concept, kind: is_held_out(concept, kind) is combination,
        )
        if self.single_target:
            dialogues = [d for d in dialogues if all(len(turn.targets) <= 1 for turn in d)]
        return dialogues[: self.dialogues_per_image]

    def _kind_of_attempt(self, index: int, attempt: int) -> str:
        """The kind that a scene of ``test_combination`` is drawn for."""
        weights = self.kinds or {}
        draw = random.Random(self.entropy(index, attempt) + 1)
        return draw.choices(list(weights), list(weights.values()))[0]


@cache
def knowledge_of_style(style: str) -> Knowledge:
    """What is true of the objects as a style draws them: colours are known for OpenMoji alone."""
    knowledge = load_knowledge()
    if style == TRAINING_STYLE:
        return knowledge
    concepts = {key: replace(one, color="") for key, one in knowledge.concepts.items()}
    return replace(knowledge, concepts=concepts)


@cache
def drawable_concepts(style: str) -> tuple[Concept, ...]:
    """The concepts that a style has a sticker for, in the order of their table."""
    artwork = load_style(style)
    concepts = load_knowledge().concepts.values()
    known = tuple(concept for concept in concepts if artwork.covers(concept.openmoji))
    if not known:
        raise ValueError(f"The style {style!r} has no sticker of any concept; fetch it anew.")
    return known


def _held_out_kinds(kinds: Mapping[str, float] | None) -> dict[str, float]:
    """The weights, without kinds of which no pair is held out."""
    weights = DEFAULT_WEIGHTS if kinds is None else kinds
    left = {kind: weight for kind, weight in weights.items() if kind not in _NEVER_HELD_OUT}
    if not any(left.values()):
        raise ValueError(
            f"The split test_combination has no questions of the kinds {', '.join(weights)}; "
            "allow others."
        )
    return left


def _choose_theme(rng: Generator, known: tuple[Concept, ...]) -> list[Concept]:
    """What a scene shows on purpose: nothing, two of one category, or two that serve two uses.

    Themes make questions about categories, uses and activities as common as they should be among
    hundreds of concepts.
    """
    theme = str(rng.choice(_THEMES, p=_THEME_SHARES))
    if theme == "any":
        return []
    if theme == "use":
        return _shuffled(rng, [concept for concept in known if concept.uses])[:2]
    names = sorted({name for concept in known for name in concept.categories})
    name = names[int(rng.integers(len(names)))]
    return _shuffled(rng, [concept for concept in known if name in concept.categories])[:2]


def _shuffled(rng: Generator, concepts: list[Concept]) -> list[Concept]:
    return [concepts[int(i)] for i in rng.permutation(len(concepts))]
