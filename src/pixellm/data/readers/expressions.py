"""Images with expressions that single out annotated objects: what the refer family shares.

Holds the expressions in compact arrays, groups them into items, and turns an item into dialogues.
Knows instances files; which expressions there are, a subclass reads from its own file.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixellm.data.dataset import (
    BadRow,
    Dataset,
    LazySamples,
    UnusableDataError,
)
from pixellm.data.questions import NamedMasks, as_benchmark_asks, benchmark_turn, compose_dialogues
from pixellm.data.readers.instances import InstanceFile
from pixellm.data.readers.text_table import TextTable
from pixellm.masks import decode_mask
from pixellm.types import Sample, Target, Turn

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression as a file holds it.

    Attributes:
        image: id of the image.
        thing: number of what it singles out; other expressions may single out the same.
        number: its number among those of the same thing.
        text: as annotated.
        annotations: ids of the objects that fit; () for none.
    """

    image: int
    thing: int
    number: int
    text: str
    annotations: tuple[int, ...]


class ExpressionTable:
    """Expressions in arrays, those of one image next to each other.

    Images and their expressions keep the order in which they first come.

    Attributes:
        texts: the expressions.
        images: (E,) id of each one's image.
        things: (E,) number of what each singles out.
        numbers: (E,) number among the expressions of the same thing.
        starts: (I + 1,) first expression of each image, and the end.

    Args:
        expressions: read once.
    """

    def __init__(self, expressions: Iterable[Expression]) -> None:
        kept, ids, ends = array("q"), array("q"), array("q", [0])
        texts = TextTable(_text_after_noting(expressions, kept, ids, ends))
        columns: Integers = np.array(kept, dtype=np.int64).reshape(-1, 3)
        _, first, inverse = np.unique(columns[:, 0], return_index=True, return_inverse=True)
        self._order = np.argsort(first[inverse.reshape(-1)], kind="stable")
        self.images, self.things, self.numbers = columns[self._order].T.copy()
        changes = np.flatnonzero(np.diff(self.images)) + 1
        self.starts: Integers = np.concatenate(([0], changes, [len(columns)])).astype(np.int64)
        self.texts = texts
        self._annotations: Integers = np.array(ids, dtype=np.int64)
        self._ends: Integers = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._order)

    def text(self, expression: int) -> str:
        """An expression, as annotated."""
        return self.texts[int(self._order[expression])]

    def annotations(self, expression: int) -> tuple[int, ...]:
        """Ids of the objects that an expression singles out."""
        place = int(self._order[expression])
        return tuple(self._annotations[self._ends[place] : self._ends[place + 1]].tolist())

    @property
    def num_targets(self) -> int:
        """Objects over all expressions."""
        return len(self._annotations)

    @property
    def num_bytes(self) -> int:
        """What the arrays take up."""
        arrays = (self.images, self.things, self.numbers, self.starts, self._order)
        more = self._annotations.nbytes + self._ends.nbytes + self.texts.num_bytes
        return sum(one.nbytes for one in arrays) + more


def _text_after_noting(
    expressions: Iterable[Expression], kept: array[int], ids: array[int], ends: array[int]
) -> Iterator[str]:
    """The texts; everything else of an expression goes into the arrays."""
    for one in expressions:
        kept.extend((one.image, one.thing, one.number))
        ids.extend(one.annotations)
        ends.append(len(ids))
        yield one.text


class ExpressionReader(Dataset[int]):
    """A reader whose rows are expressions.

    Args:
        root: folder that holds all data sets.
        split: one of :attr:`splits`.
        seed: another seed gives other groups, another order and wording.
        images: folder of the images, where it is not the usual one.
        per_item: expressions of an image that are asked in one item, at most.
        questions_per_picture: an item is an image and asks at most so many questions, each for at
            most ``per_item`` expressions of different things; the expressions that are left over
            come in other epochs. None asks for every expression in each.

    Raises:
        ValueError: an unknown split, no usable expression, or a damaged file.
        FileNotFoundError: a file is missing; says where to get it.
    """

    folder: str
    """Below the root: the data set's own folder."""
    image_folders: tuple[str, ...]
    """Below the root: where the images usually are; the first that is there counts."""

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        images: Path | str | None = None,
        per_item: int = 3,
        questions_per_picture: int | None = None,
    ) -> None:
        super().__init__(root, split, seed)
        if per_item < 1:
            raise ValueError(f"An item of {self.name} holds at least 1 expression, not {per_item}.")
        if questions_per_picture is not None and questions_per_picture < 1:
            raise ValueError(f"questions_per_picture of {self.name} is at least 1.")
        self.images = Path(images) if images else self.find_folder(self.root, self.image_folders)
        self.per_item = per_item
        self.questions_per_picture = questions_per_picture
        self.require(self.instances_path, self.expressions_path, self.images)
        self.instances = InstanceFile(self.instances_path)
        bad: list[BadRow] = []
        self.table = ExpressionTable(self._usable(bad))
        self.bad_rows = tuple(bad)
        if not len(self.table):
            raise UnusableDataError(
                f"{self.expressions_path} has no usable expression of {split}.",
                (*bad, *self._bad_instances()),
            )
        self._members, self._ends = self.group_for_training()

    @property
    def instances_path(self) -> Path:
        """The file of images and annotations."""
        return self.root / self.folder / "instances.json"

    @property
    @abstractmethod
    def expressions_path(self) -> Path:
        """The file of expressions."""

    @abstractmethod
    def read_expressions(self, bad: list[BadRow]) -> Iterator[Expression]:
        """The split's expressions as the file holds them; malformed ones go to ``bad``."""

    def group_for_training(self) -> tuple[Integers, Integers]:
        """Expression numbers item by item, and where each item starts, with the end.

        The expressions of an item single out different things, unless an item is an image.
        """
        if self.questions_per_picture is not None:
            return np.arange(len(self.table)), self.table.starts
        draw = np.random.default_rng(self.seed)
        groups = [
            group
            for first, end in zip(self.table.starts, self.table.starts[1:], strict=False)
            for group in self._rounds(draw, int(first), int(end))
        ]
        return flatten(groups)

    def group_for_evaluation(self) -> tuple[Integers, Integers]:
        """As for training: here one expression a question."""
        return np.arange(len(self.table)), np.arange(len(self.table) + 1)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def compose(self, item: int, rng: random.Random) -> tuple[Sample, ...]:
        """See :meth:`Dataset.compose`."""
        members = self._members[self._ends[item] : self._ends[item + 1]]
        if self.questions_per_picture is None:
            dialogues = self.to_dialogues(rng, self._things(members))
        else:
            drawn = self._draw_questions(rng, members, self.questions_per_picture)
            together = (compose_dialogues(rng, self._things(one), "together") for one in drawn)
            dialogues = tuple(dialogue for one in together for dialogue in one)
        ids = [f"{self.name}-{self.split}-{item}-{number}" for number in range(len(dialogues))]
        image = int(self.table.images[members[0]])
        return tuple(self._sample(image, *one) for one in zip(dialogues, ids, strict=True))

    def to_dialogues(
        self, rng: random.Random, things: Sequence[NamedMasks]
    ) -> tuple[tuple[Turn, ...], ...]:
        """How an item's expressions are asked."""
        return compose_dialogues(rng, things)

    def where(self, item: int) -> tuple[Path, str]:
        """See :meth:`Dataset.where`."""
        first = self._members[self._ends[item]]
        return self.expressions_path, self._row(int(first))

    def evaluation_samples(self) -> LazySamples:
        """See :meth:`Dataset.evaluation_samples`."""
        members, ends = self.group_for_evaluation()

        def build(question: int) -> Sample:
            group = members[ends[question] : ends[question + 1]]
            first = int(group[0])
            row = f"{self.table.things[first]}-{self.table.numbers[first]}"
            turn = benchmark_turn([as_benchmark_asks(thing) for thing in self._things(group)])
            name = f"{self.name}-{self.split}-{row}"
            return self._sample(int(self.table.images[first]), (turn,), name)

        return LazySamples(len(ends) - 1, build)

    def counts(self) -> dict[str, int]:
        """Images, expressions (as questions), targets and items of an epoch."""
        return {
            "images": len(self.table.starts) - 1,
            "questions": len(self.table),
            "targets": self.table.num_targets,
            "items": len(self),
        }

    def check(self) -> Iterator[BadRow]:
        """See :meth:`Dataset.check`; unusable entries of the instances file are listed too.

        These are entries of all splits, since an instances file does not tell whose they are, and
        masks without a pixel that this split asks for.
        """
        yield from self.bad_rows
        yield from self._bad_instances()
        checked: set[int] = set()
        for expression in range(len(self.table)):
            size = self.instances.image(int(self.table.images[expression])).size
            for annotation in set(self.table.annotations(expression)) - checked:
                checked.add(annotation)
                try:
                    _, mask = self.instances.name_and_mask(annotation, size)
                except ValueError as error:
                    yield BadRow(self.instances_path, f"annotation {annotation}", str(error))
                    continue
                if not decode_mask(mask).any():
                    reason = "Its mask covers no pixel."
                    yield BadRow(self.instances_path, f"annotation {annotation}", reason)
        for start in self.table.starts[:-1]:
            image = self.instances.image(int(self.table.images[start]))
            yield from self.check_image(self.images / image.file_name, image.size)

    def _bad_instances(self) -> Iterator[BadRow]:
        """The entries of the instances file that can't be used."""
        for row, reason in self.instances.problems:
            yield BadRow(self.instances_path, row, reason)

    def _usable(self, bad: list[BadRow]) -> Iterator[Expression]:
        """The expressions whose image and annotations are there."""
        for one in self.read_expressions(bad):
            unknown = [i for i in one.annotations if not self.instances.has_annotation(i)]
            if not self.instances.has_image(one.image):
                reason = f"Its image {one.image} is missing in {self.instances_path.name}."
            elif unknown:
                name = self.instances_path.name
                reason = f"Its annotation {unknown[0]} is missing in {name}, or has no mask."
            else:
                yield one
                continue
            bad.append(BadRow(self.expressions_path, row_name(one.thing, one.number), reason))

    def _rounds(self, draw: np.random.Generator, first: int, end: int) -> list[Integers]:
        """The expressions of an image in groups: the first of each thing, the second, ..."""
        mixed = first + draw.permutation(end - first)
        _, things = np.unique(self.table.things[mixed], return_inverse=True)
        seen: dict[int, int] = {}
        rounds: dict[int, list[int]] = {}
        for member, thing in zip(mixed.tolist(), things.reshape(-1).tolist(), strict=True):
            seen[thing] = seen.get(thing, -1) + 1
            rounds.setdefault(seen[thing], []).append(member)
        return [
            part
            for members in rounds.values()
            for part in np.array_split(np.array(members), -(-len(members) // self.per_item))
        ]

    def _draw_questions(
        self, rng: random.Random, members: Integers, num_questions: int
    ) -> list[Integers]:
        """Some of an image's expressions in groups, each of different things."""
        of_thing: dict[int, list[int]] = {}
        for member in rng.sample(members.tolist(), len(members)):
            of_thing.setdefault(int(self.table.things[member]), []).append(member)
        usable = [member for own in of_thing.values() for member in own[:num_questions]]
        drawn = set(rng.sample(usable, min(len(usable), num_questions * self.per_item)))
        kept = [[member for member in own if member in drawn] for own in of_thing.values()]
        dealt = [member for own in kept for member in own]
        # Dealt in turn, the expressions of one thing, next to each other, come into different ones.
        count = max(-(-len(dealt) // self.per_item), *map(len, kept))
        return [np.array(dealt[first::count]) for first in range(count)]

    def _things(self, members: Integers) -> list[NamedMasks]:
        size = self.instances.image(int(self.table.images[members[0]])).size
        return [
            NamedMasks(self.table.text(member), self._targets(member, size))
            for member in members.tolist()
        ]

    def _targets(self, expression: int, size: tuple[int, int]) -> tuple[Target, ...]:
        found = []
        for identity in self.table.annotations(expression):
            name, mask = self.instances.name_and_mask(identity, size)
            found.append(Target(name or self.table.text(expression), mask))
        return tuple(found)

    def _sample(self, image: int, turns: tuple[Turn, ...], name: str) -> Sample:
        entry = self.instances.image(image)
        return Sample(self.images / entry.file_name, entry.size, turns, name)

    def _row(self, expression: int) -> str:
        return row_name(int(self.table.things[expression]), int(self.table.numbers[expression]))


def row_name(thing: int, number: int) -> str:
    """The place of an expression in a file of the refer family."""
    return f"ref {thing}, sentence {number}"


def flatten(groups: Sequence[Integers]) -> tuple[Integers, Integers]:
    """Groups behind each other, and where each starts, with the end."""
    lengths = np.array([len(group) for group in groups], dtype=np.int64)
    return np.concatenate(groups), np.concatenate(([0], np.cumsum(lengths)))
