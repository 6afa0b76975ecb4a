"""Photos with annotated instances, asked everything that their annotations can answer.

An instances file in COCO's format becomes scenes: the annotated objects of a photo have names,
positions and sizes, and the scenes' question writer does the rest.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pixellm.data.annotated import AnnotatedImage
from pixellm.data.augment import augment_image
from pixellm.data.captions import read_people_words
from pixellm.data.coco import ANNOTATIONS, published_or
from pixellm.data.coco_sets import OwnCoco
from pixellm.data.dataset import BadRow, check_at_least_one, path_of_split
from pixellm.data.json_values import identity
from pixellm.data.lazy import LastKept, Lazy
from pixellm.masks import decode_mask
from pixellm.scenes.knowledge import Knowledge
from pixellm.scenes.photo_knowledge import knowledge_of_categories
from pixellm.scenes.photo_view import PERSON, PhotoView
from pixellm.scenes.questions import check_weights
from pixellm.scenes.questions_photos import PHOTO_WEIGHTS, compose_photo_dialogues, unknown_nouns
from pixellm.scenes.scene import Scene, measure_object
from pixellm.types import Sample, Target, Turn

CAPTIONS = "annotations/captions_{split}.json"
"""Where captions usually are, below the root."""

MOST_ALIKE = 4
"""Of more people, some may be others than those that captions speak of."""

MAX_TARGETS = 14
"""COCO tells so many objects of a category apart in a photo, and makes a crowd of the rest."""


class PhotoSet(OwnCoco):
    """The images of an instances file, with what is known of the objects that it annotates.

    Args:
        root, split, seed, annotations, images: see :class:`~pixellm.data.coco_sets.OwnCoco`.
        options: see :class:`~pixellm.data.classes.ClassDataset`.
    """

    id_name = OwnCoco.name

    def __init__(
        self, root: Path | str, split: str = "train", seed: int = 0, **options: Any
    ) -> None:
        # With negatives every image is an item: those without annotations lack everything.
        super().__init__(root, split, seed, negatives=1.0, **options)

    @property
    def knowledge(self) -> Knowledge:
        """What is known of the objects that the file annotates."""
        return knowledge_of_categories(self.categories)[0]

    @property
    def keys(self) -> Mapping[str, str]:
        """Concept of each category."""
        return knowledge_of_categories(self.categories)[1]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all objects that the file annotates, as targets carry them."""
        return tuple(concept.name for concept in self.knowledge.concepts.values())

    def uncertain(self, image: AnnotatedImage) -> frozenset[str]:
        """The concepts of which an image may show more than can be asked for."""
        return frozenset(self.keys[c.name] for c in image.classes if c.crowds or not c.askable)


class Photos(PhotoSet):
    """An instances file asked for names, positions, sizes, kinds, uses and what no mask can answer.

    An item is an image. A category with a crowd, or with an annotation that can't be used, is known
    to be there and never asked for.

    Args:
        root, split, seed, annotations, images: see :class:`~pixellm.data.coco_sets.OwnCoco`.
        dialogues_per_image: dialogues about each image in an epoch, at most.
        kinds: weight of each kind of question; see
            :data:`~pixellm.scenes.questions_photos.PHOTO_WEIGHTS`, used where None. An image
            that none of them fits is asked questions of any kind.
        max_targets: no question has more.
        captions: file of captions in COCO's format, read where it is there: a person of whom they
            agree may be asked for as the man, the lady, the kid or the surfer. Evaluation does
            without.
        together: answers that mean all of a kind name it once, with one mask of all of them, as
            models with ``masks_per_thing`` are taught. Training only: an evaluation has a mask for
            every object.
        augment: show each image mirrored, cut out and recoloured at random, another way in each
            epoch; questions are about what the view shows.
        exchange: share of images in which every category goes by another's name, drawn anew, in the
            dialogue; a model with evidence is told by the same names what was found. So words are
            matched with what is there, where few images would be learnt by heart. Training only.
    """

    name = "photos"
    title = "Photos with annotated instances, asked for all that these can answer"

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        *,
        annotations: str = ANNOTATIONS,
        images: str = "",
        dialogues_per_image: int = 3,
        kinds: Mapping[str, float] | None = None,
        max_targets: int = MAX_TARGETS,
        captions: str = CAPTIONS,
        together: bool = False,
        augment: bool = False,
        exchange: float = 0.0,
    ) -> None:
        check_at_least_one(
            self.name, dialogues_per_image=dialogues_per_image, max_targets=max_targets
        )
        if kinds is not None:
            check_weights(kinds, tuple(PHOTO_WEIGHTS))
        if not 0 <= exchange <= 1:
            raise ValueError(f"exchange of {self.name} lies between 0 and 1, not {exchange}.")
        super().__init__(root, split, seed, annotations=annotations, images=images, augment=augment)
        path = published_or(path_of_split(self.root, captions, split))
        self._people = read_people_words(path) if captions and path.exists() else {}
        self.dialogues_per_image = dialogues_per_image
        self.kinds = kinds
        self.max_targets = max_targets
        self.together = together
        self.exchange = exchange

    def row(self, item: int) -> AnnotatedImage:
        """An image with its classes and, by its captions, what its people may be called."""
        image = super().row(item)
        name = identity(self.coco.image(int(self._items[item]))["id"])
        said = self._people.get(name)
        shown = [one for one in image.classes if self.keys[one.name] == PERSON]
        if said is None or any(one.crowds or not one.askable for one in shown):
            return image
        number = sum(len(one.masks) for one in shown)
        fits = 2 <= number <= MOST_ALIKE if said.are_several else number == 1
        return replace(image, people=said.words) if fits else image

    def view(self, image: AnnotatedImage, *, together: bool = False) -> PhotoView:
        """An image as the question writer sees it; ``together`` as of :class:`Photos`."""
        blank = np.broadcast_to(np.uint8(0), (*image.size, 3))
        objects = tuple(
            measure_object(self.keys[one.name], decode_mask(mask), mask)
            for one in image.classes
            for mask in one.masks
        )
        scene = Scene(blank, objects, self.uncertain(image))
        return PhotoView(scene, self.knowledge, self.max_targets, image.people, together)

    def teachable(self, image: AnnotatedImage) -> AnnotatedImage:
        """What training may ask about an image, as it is shown."""
        return image

    def compose(self, row: AnnotatedImage, rng: random.Random) -> tuple[Sample, ...]:
        """The dialogues about an image."""
        image = augment_image(row, rng) if self.augment else row
        asked = self.teachable(image)
        renamed = None
        if self.exchange and rng.random() < self.exchange:
            names = list(self.categories)
            renamed = dict(zip(names, rng.sample(names, len(names)), strict=True))
            image, asked = (_rename(one, renamed) for one in (image, asked))
        view = self.view(asked, together=self.together)
        for kinds in (self.kinds, None):
            turns = compose_photo_dialogues(view, rng, self.dialogues_per_image, kinds=kinds)
            if turns:
                samples = self._to_samples(image, turns)
                return tuple(replace(sample, renamed=renamed) for sample in samples)
        raise ValueError("No kind of question fits the photo.")

    def evaluation_samples(self) -> Lazy[Sample]:
        """Questions of every kind about every image, the same for every seed."""
        asked: list[tuple[int, int]] = []
        bad: list[BadRow] = []
        for item in range(len(self)):
            try:
                asked += [(item, number) for number in range(len(self._evaluation(item)))]
            except (OSError, ValueError) as error:
                bad.append(BadRow(*self.where(item), str(error)))
        samples_of = LastKept(self._evaluation)

        def build(number: int) -> Sample:
            item, dialogue = asked[number]
            return samples_of(item)[dialogue]

        return Lazy(range(len(asked)), build, bad)

    def counts(self) -> dict[str, int]:
        """Images, annotated objects, and the kinds of objects among them."""
        shown = (self.row(item).classes for item in range(len(self)))
        objects = sum(len(one.masks) for classes in shown for one in classes)
        return {"images": len(self), "targets": objects, "classes": len(self.class_names)}

    def _evaluation(self, item: int) -> tuple[Sample, ...]:
        image = replace(self.row(item), people=())
        rng = random.Random(f"evaluation/{image.id}")
        view = self.view(image)
        turns = [
            dialogue
            for kind, number in EVALUATED.items()
            if self.kinds is None or self.kinds.get(kind)
            for dialogue in compose_photo_dialogues(
                view, rng, number, kinds={kind: 1.0}, nouns=unknown_nouns(held_out=True)
            )
        ]
        return self._to_samples(image, turns)

    def _to_samples(
        self, image: AnnotatedImage, dialogues: Sequence[tuple[Turn, ...]]
    ) -> tuple[Sample, ...]:
        concepts, keys = self.knowledge.concepts, self.keys
        objects = tuple(
            Target(concepts[keys[one.name]].name, mask)
            for one in image.classes
            for mask in (*one.crowds, *one.masks)
        )
        return tuple(
            Sample(image.image, image.size, turns, f"{image.id}-{number}", objects, image.source)
            for number, turns in enumerate(dialogues)
        )


def _rename(image: AnnotatedImage, renamed: Mapping[str, str]) -> AnnotatedImage:
    """An image whose classes go by other names, of which nothing else is known."""
    classes = tuple(replace(one, name=renamed[one.name]) for one in image.classes)
    return replace(image, classes=classes, people=())


EVALUATED = {
    "every": 40,
    "pick": 12,
    "use": 6,
    "category": 4,
    "activity": 2,
    "negative": 3,
    "unknown": 1,
    "counting": 2,
    "plain": 2,
    "half": 1,
    "relative": 2,
    "nearest": 2,
    "size": 2,
    "several": 1,
    "describe": 1,
    "open": 1,
    "follow_up": 1,
}
"""Questions of each kind about an image that a benchmark asks, at most."""
