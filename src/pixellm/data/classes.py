"""Images annotated with classes, as questions for these classes: what such data sets share.

A subclass says which classes an image shows and with which masks; :class:`ClassDataset` chooses
what is asked together.
"""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pixellm.data.annotated import AnnotatedClass, AnnotatedImage
from pixellm.data.augment import augment_image
from pixellm.data.dataset import BadRow, Dataset, check_at_least_one
from pixellm.data.lazy import Lazy
from pixellm.data.questions import (
    NamedMasks,
    ask_for_absent,
    ask_for_instances,
    ask_for_regions,
    plain_question,
)
from pixellm.masks import areas_of, boxes_of, union_of
from pixellm.types import Sample, Target, Turn

_WORD = re.compile(r"\w+")

_NOTHING_TO_ASK = "No class of the image has masks that can be used."

TargetKind = Literal["instances", "regions"]


class ClassDataset(Dataset[AnnotatedImage]):
    """A data set that is asked for classes.

    An item is an image. In an epoch its classes are asked for in random groups, each group a
    dialogue of its own.

    Args:
        root, split, seed: see :class:`~pixellm.data.dataset.Dataset`.
        targets: ``instances`` gives every instance its own mask, from left to right, and leaves
            out classes with a crowd; ``regions`` gives each class one mask, its whole region.
        classes_per_question: at most; each question asks for 1 to so many.
        questions_per_image: at most, in one epoch; the classes that are left over come in other
            epochs. None asks for everything in each.
        fill_questions: ask each question for ``classes_per_question`` classes where as many are
            left, rather than for 1 to so many.
        max_instances: a question has no more targets; a class with more is not asked for.
        min_area: a class that covers less than this share of the image is not asked for, unless
            the image shows nothing larger.
        negatives: probability of one more question, for a class that the image does not show;
            sensible only where every image is annotated with all classes.
        augment: show each image mirrored, cut out and recoloured at random, another way in each
            epoch; evaluation always sees the images as they are.
    """

    exhaustive: ClassVar[bool] = False
    """Whether every image is annotated with all classes that it shows, so that a class without
    a mask is known to be absent; an image without any mask is then asked for an absent class."""

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        *,
        targets: TargetKind = "regions",
        classes_per_question: int = 3,
        questions_per_image: int | None = None,
        fill_questions: bool = False,
        max_instances: int = 20,
        min_area: float = 0.0,
        negatives: float = 0.0,
        augment: bool = False,
    ) -> None:
        super().__init__(root, split, seed)
        if targets not in ("instances", "regions"):
            raise ValueError(f"targets of {self.name} is instances or regions, not {targets!r}.")
        check_at_least_one(
            self.name,
            classes_per_question=classes_per_question,
            questions_per_image=questions_per_image,
            max_instances=max_instances,
        )
        if not (0 <= min_area <= 1 and 0 <= negatives <= 1):
            raise ValueError(f"min_area and negatives of {self.name} lie between 0 and 1.")
        self.targets = targets
        self.classes_per_question = classes_per_question
        self.questions_per_image = questions_per_image
        self.fill_questions = fill_questions
        self.max_instances = max_instances
        self.min_area = min_area
        self.negatives = negatives
        self.augment = augment

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes that the set annotates, as its targets carry them."""

    @property
    def deniable_names(self) -> tuple[str, ...]:
        """The names of which an image without their masks can be said to show nothing."""
        return self.class_names

    @abstractmethod
    def row(self, item: int) -> AnnotatedImage:
        """An image with its classes, in the order of the files."""

    def compose(self, row: AnnotatedImage, rng: random.Random) -> tuple[Sample, ...]:
        """The dialogues about an image."""
        shown = self._augmented(row, rng) if self.augment else row
        askable = [shown.classes[index] for index in self._askable(shown)]
        if not askable and not (self.negatives or self.exhaustive):
            raise ValueError(_NOTHING_TO_ASK)
        rng.shuffle(askable)
        turns = [self._ask(rng, group) for group in self._groups(rng, askable)]
        wanted = rng.random() < self.negatives or not turns
        absent = self._absent(shown) if wanted else []
        if absent:
            index = rng.randint(0, len(turns))
            turns.insert(index, ask_for_absent(rng, rng.choice(absent)))
        if not turns:
            raise ValueError(_NOTHING_TO_ASK)
        objects = _objects(shown.classes)
        return tuple(
            Sample(shown.image, shown.size, (turn,), f"{shown.id}-{number}", objects)
            for number, turn in enumerate(turns)
        )

    def check(self) -> Iterator[BadRow]:
        """Every bad row; of an image with good and bad annotations, the bad ones."""
        yield from self.bad_rows
        for item in range(len(self)):
            try:
                shown = self.row(item)
            except (OSError, ValueError) as error:
                yield BadRow(*self.where(item), str(error))
                continue
            yield from shown.faults
            if not (self._askable(shown) or self.negatives or self.exhaustive):
                yield BadRow(*self.where(item), _NOTHING_TO_ASK)
            if isinstance(shown.image, Path):
                yield from self.check_image(shown.image, shown.size)

    def evaluation_samples(self) -> Lazy[Sample]:
        """One question for each class of each image, in the plainest wording."""
        bad: list[BadRow] = []
        indices = [
            (item, index) for item, shown in self._images(bad) for index in self._askable(shown)
        ]
        return Lazy(range(len(indices)), lambda number: self._class_sample(*indices[number]), bad)

    def counts(self) -> dict[str, int]:
        """Images, questions when each class is asked for alone, targets and classes."""
        questions = targets = 0
        for _, shown in self._images([]):
            asked = [shown.classes[index] for index in self._askable(shown)]
            questions += len(asked)
            targets += sum(map(self._num_targets, asked))
        return {
            "images": len(self),
            "questions": questions,
            "targets": targets,
            "classes": len(self.class_names),
        }

    def _augmented(self, shown: AnnotatedImage, rng: random.Random) -> AnnotatedImage:
        """An image augmented, unless that leaves nothing to ask of what there was."""
        other = augment_image(shown, rng)
        return other if self._askable(other) or not self._askable(shown) else shown

    def _images(self, bad: list[BadRow]) -> Iterator[tuple[int, AnnotatedImage]]:
        """Number and content of every image that can be read; what can't is added to ``bad``."""
        for item in range(len(self)):
            try:
                shown = self.row(item)
            except (OSError, ValueError) as error:
                bad.append(BadRow(*self.where(item), str(error)))
                continue
            bad += shown.faults
            yield item, shown

    def _askable(self, shown: AnnotatedImage) -> list[int]:
        """The indices of the classes that can be asked for."""
        indices = [i for i, one in enumerate(shown.classes) if self._is_answerable(one)]
        if not self.min_area or not indices:
            return indices
        unions = [union_of((*shown.classes[i].masks, *shown.classes[i].crowds)) for i in indices]
        areas = areas_of(unions)
        least = min(self.min_area * shown.size[0] * shown.size[1], max(areas))
        return [index for index, area in zip(indices, areas, strict=True) if area >= least]

    def _is_answerable(self, one: AnnotatedClass) -> bool:
        if not one.askable:
            return False
        if self.targets == "instances":
            return not one.crowds and 1 <= len(one.masks) <= self.max_instances
        return bool(one.masks or one.crowds)

    def _num_targets(self, one: AnnotatedClass) -> int:
        return len(one.masks) if self.targets == "instances" else 1

    def _groups(
        self, rng: random.Random, classes: Sequence[AnnotatedClass]
    ) -> list[list[AnnotatedClass]]:
        groups: list[list[AnnotatedClass]] = []
        room = wanted = 0
        for one in classes:
            targets = self._num_targets(one)
            if not groups or len(groups[-1]) >= wanted or targets > room:
                if len(groups) == self.questions_per_image:
                    break
                groups.append([])
                fewest = self.classes_per_question if self.fill_questions else 1
                room, wanted = self.max_instances, rng.randint(fewest, self.classes_per_question)
            groups[-1].append(one)
            room -= targets
        return groups

    def _ask(self, rng: random.Random, group: Sequence[AnnotatedClass]) -> Turn:
        ask = ask_for_instances if self.targets == "instances" else ask_for_regions
        asked = [
            NamedMasks(rng.choice(one.wordings or (one.name,)), self._targets_of(one))
            for one in group
        ]
        return ask(rng, asked)

    def _targets_of(self, one: AnnotatedClass) -> tuple[Target, ...]:
        if self.targets == "regions":
            return (Target(one.name, union_of((*one.masks, *one.crowds))),)
        boxes = boxes_of(one.masks)
        middle = {i: (x + width / 2, y) for i, (x, y, width, _) in enumerate(boxes)}
        return tuple(Target(one.name, one.masks[i]) for i in sorted(middle, key=middle.__getitem__))

    def _absent(self, shown: AnnotatedImage) -> list[str]:
        """The classes that an image certainly does not show."""
        present = {word for one in shown.classes for word in _WORD.findall(one.name)}
        # "There is no table" would be wrong beside a dining table.
        return [n for n in self.deniable_names if not present.intersection(_WORD.findall(n))]

    def _class_sample(self, item: int, index: int) -> Sample:
        shown = self.row(item)
        one = shown.classes[index]
        question = plain_question((one.wordings or (one.name,))[0])
        turn = self._ask(random.Random(0), [one])
        turn = Turn(question, turn.answer, turn.targets, turn.kind)
        return Sample(
            shown.image, shown.size, (turn,), f"{shown.id}-{one.name}", _objects(shown.classes)
        )


def _objects(classes: Sequence[AnnotatedClass]) -> tuple[Target, ...]:
    """Everything annotated, the largest first, so that small ones lie on top."""
    masks = [(one.name, mask) for one in classes for mask in (*one.crowds, *one.masks)]
    areas = areas_of([mask for _, mask in masks]) if masks else []
    order = sorted(range(len(masks)), key=lambda i: -areas[i])
    return tuple(Target(*masks[i]) for i in order)
