"""The refer family: images with expressions that single out none, one or many annotated objects.

refCOCO, refCOCO+, refCOCOg and refCLEF as their authors publish them, gRefCOCO, and multi-refCOCO.
``refer_seg/NAME/instances.json`` holds images and masks, ``refs(PARTITION).p``, a pickle, or
``grefs(unc).json`` the expressions and their splits.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pixellm.data.coco import CocoFile, file_of, size_of
from pixellm.data.dataset import (
    BadRow,
    BadRowError,
    Dataset,
    Group,
    Groups,
    UnusableDataError,
    check_at_least_one,
)
from pixellm.data.json_stream import scan_list
from pixellm.data.json_values import text_fault, whole_number
from pixellm.data.lazy import Lazy
from pixellm.data.questions import (
    REFERRING_KIND,
    Dialogues,
    NamedMasks,
    as_benchmark_asks,
    ask_for_regions,
    benchmark_turn,
    compose_dialogues,
    to_noun,
)
from pixellm.data.restricted_pickle import load_plain_pickle
from pixellm.data.table import Integers, Table, TablesWriter
from pixellm.masks import areas_of, segmentation_to_rle
from pixellm.types import RLE, Sample, Target, Turn

GROUP_SIZES = (6, 5, 4)
"""How many expressions of an image multi-refCOCO asks together, over and over (PAPER.md 5)."""

COCO_FOLDERS = ("refer_seg/images/mscoco/images/train2014", "coco/train2014")

_NOTHING = -1
"""Stands in gRefCOCO's list of annotations where nothing fits."""


class Expressions:
    """The expressions of a split, those of one image next to each other.

    Images and their expressions keep the order in which they first come in the file.

    Attributes:
        images: (E,) id of each one's image.
        refs: (E,) number of the ref that each belongs to; all of a ref single out the same.
        numbers: (E,) number among the expressions of the same ref.
        by_image: the expressions of each image.
        num_targets: objects over all expressions.

    Args:
        table: records [text, ids of annotations], with the three columns.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        images = table.numbers("image")
        _, first, inverse = np.unique(images, return_index=True, return_inverse=True)
        self._order = np.argsort(first[inverse.reshape(-1)], kind="stable")
        self.images = images[self._order]
        self.refs = table.numbers("ref")[self._order]
        self.numbers = table.numbers("number")[self._order]
        changes = np.flatnonzero(np.diff(self.images)) + 1
        starts = np.concatenate(([0], changes, [len(images)])).astype(np.int64)
        self.by_image = Groups(np.arange(len(images)), starts)
        self.num_targets = int(table.numbers("targets").sum())

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, expression: int) -> tuple[str, tuple[int, ...]]:
        """An expression as annotated, and the ids of the objects that it singles out."""
        text, annotations = self._table[int(self._order[expression])]
        return text, tuple(annotations)


class ReferDataset(Dataset[Group]):
    """A data set of the refer family.

    Args:
        root, split, seed: see :class:`~pixellm.data.dataset.Dataset`.
        partition: who made the splits, as in the name of the file; the usual one where None.
        images: folder of the images, where it is not the usual one.
        per_item: expressions of an image that are asked in one item, at most.
        questions_per_image: an item is an image and asks at most so many questions, each for at
            most ``per_item`` expressions of different objects; the expressions that are left over
            come in other epochs. None asks for every expression in each.
    """

    partitions: ClassVar[Mapping[str, tuple[str, ...]]]
    """Splits by partition, the usual partition first."""
    folder: ClassVar[str]
    """Below the root: the data set's own folder."""
    image_folders: ClassVar[tuple[str, ...]] = COCO_FOLDERS
    """Below the root: where the images usually are; the first that is there counts."""
    file_pattern: ClassVar[str] = "refs({}).p"
    """The file of expressions of a partition."""
    obtain = (
        "the refer toolbox (github.com/lichengunc/refer) says where to download annotations, and "
        "the images are train2014 of cocodataset.org"
    )

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        partition: str | None = None,
        images: Path | str | None = None,
        per_item: int = 3,
        questions_per_image: int | None = None,
    ) -> None:
        super().__init__(root, split, seed)
        check_at_least_one(self.name, per_item=per_item, questions_per_image=questions_per_image)
        self.partition = self._known_partition(partition)
        self.images = Path(images) if images else self.find_folder(self.root, self.image_folders)
        self.per_item = per_item
        self.questions_per_image = questions_per_image
        folder = self.root / self.folder
        self.instances_path = folder / "instances.json"
        self.expressions_path = folder / self.file_pattern.format(self.partition)
        self.require(self.instances_path, self.expressions_path, self.images)
        self.coco = CocoFile(self.instances_path)
        sources = (self.expressions_path, self.instances_path)
        tables = self.open_tables(sources, self._fill_expressions)
        self.bad_rows = tables.bad_rows
        self.expressions = Expressions(tables["expressions"])
        if not len(self.expressions):
            raise UnusableDataError(
                f"{self.expressions_path} has no usable expression of {split}.",
                (*self.bad_rows, *self.coco.bad_rows),
            )
        self._groups = self.group_for_training()
        self.num_items = len(self._groups)

    def _known_partition(self, asked: str | None) -> str:
        partition = asked or self.usual_partition(self.split)
        known = self.partitions.get(partition)
        if known is None:
            names = ", ".join(self.partitions)
            raise ValueError(f"{self.name} has no partition {partition!r}; choose {names}.")
        if self.split not in known:
            raise ValueError(
                f"The partition {partition} of {self.name} has no split {self.split!r}; choose "
                f"{', '.join(known)}."
            )
        return partition

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The two annotation files of the usual partition that has the split, and the images."""
        folder = root / cls.folder
        expressions = folder / cls.file_pattern.format(cls.usual_partition(split))
        images = cls.find_folder(root, cls.image_folders)
        return folder / "instances.json", expressions, images

    @classmethod
    def usual_partition(cls, split: str) -> str:
        """The first partition that has a split; the first of all where none has."""
        owners = [name for name, splits in cls.partitions.items() if split in splits]
        return (owners or list(cls.partitions))[0]

    # Reading the file once.

    def read_refs(self) -> Iterator[Any]:
        """The entries of the file of expressions, of all splits."""
        refs = load_plain_pickle(self.expressions_path)
        if not isinstance(refs, list):
            raise ValueError(f"{self.expressions_path} is no list of refs; download it again.")
        yield from refs

    def annotations_of(self, ref: Mapping[str, Any]) -> tuple[int, ...]:
        """Ids of the objects that fit an entry."""
        return (_id_of(ref["ann_id"]),)

    def _fill_expressions(self, tables: TablesWriter) -> None:
        writer = tables.table("expressions", "image", "ref", "number", "targets")
        for index, ref in enumerate(self.read_refs()):
            if isinstance(ref, Mapping) and not is_in_split(self.split, str(ref.get("split"))):
                continue
            try:
                image, number = _id_of(ref["image_id"]), _id_of(ref["ref_id"])
                texts = [sentence["sent"] for sentence in ref["sentences"]]
                annotations = self.annotations_of(ref)
            except KeyError as error:
                reason = f"It has no {error}."
            except (TypeError, ValueError):
                reason = "Its ids and sentences are not of the usual types."
            else:
                missing = self._what_is_missing(image, annotations)
                for sentence, text in enumerate(texts):
                    if fault := text_fault(text, "expression") or missing:
                        row = _row_name(number, sentence)
                        tables.refuse(BadRow(self.expressions_path, row, fault))
                    else:
                        count = len(annotations)
                        writer.append([text, annotations], image, number, sentence, count)
                continue
            tables.refuse(BadRow(self.expressions_path, f"entry {index}", reason))

    def _what_is_missing(self, image: int, annotations: Sequence[int]) -> str:
        """Why an entry can't be asked for by what the instances file has; "" where it can."""
        name = self.instances_path.name
        if self.coco.find_image(image) < 0:
            return f"Its image {image} is missing in {name}."
        unknown = [one for one in annotations if self.coco.find_annotation(one) < 0]
        return (
            f"Its annotation {unknown[0]} is missing in {name}, or has no mask." if unknown else ""
        )

    # Items and dialogues.

    def group_for_training(self) -> Groups:
        """The expressions of each item, of different objects unless an item is an image."""
        if self.questions_per_image is not None:
            return self.expressions.by_image
        draw = np.random.default_rng(self.seed)
        images = self.expressions.by_image
        return Groups.of([group for own in images for group in self._rounds(draw, own)])

    def group_for_evaluation(self) -> Groups:
        """As for training: here one expression a question."""
        count = len(self.expressions)
        return Groups(np.arange(count), np.arange(count + 1))

    def row(self, item: int) -> Group:
        """The expressions of an item."""
        return Group(item, self._groups[item])

    def compose(self, row: Group, rng: random.Random) -> tuple[Sample, ...]:
        """The dialogues about some expressions of an image."""
        item, members = row
        if self.questions_per_image is None:
            dialogues = self.to_dialogues(rng, self._named(members))
        else:
            drawn = self._draw_questions(rng, members, self.questions_per_image)
            together = (compose_dialogues(rng, self._named(one), "together") for one in drawn)
            dialogues = tuple(dialogue for one in together for dialogue in one)
        ids = [f"{self.name}-{self.split}-{item}-{number}" for number in range(len(dialogues))]
        first = int(members[0])
        return tuple(self._sample(first, *one) for one in zip(dialogues, ids, strict=True))

    def to_dialogues(self, rng: random.Random, asked: Sequence[NamedMasks]) -> Dialogues:
        """How an item's expressions are asked."""
        return compose_dialogues(rng, asked)

    def where(self, item: int) -> tuple[Path, str]:
        """The file of expressions, and the first one's row in it."""
        first = int(self._groups[item][0])
        ref, number = int(self.expressions.refs[first]), int(self.expressions.numbers[first])
        return self.expressions_path, _row_name(ref, number)

    def evaluation_samples(self) -> Lazy[Sample]:
        """One question for each expression, or for each group."""
        groups = self.group_for_evaluation()

        def build(question: int) -> Sample:
            first = int(groups[question][0])
            row = f"{self.expressions.refs[first]}-{self.expressions.numbers[first]}"
            turn = benchmark_turn([as_benchmark_asks(one) for one in self._named(groups[question])])
            return self._sample(first, (turn,), f"{self.name}-{self.split}-{row}")

        return Lazy(range(len(groups)), build)

    def counts(self) -> dict[str, int]:
        """Images, expressions (as questions), targets and items of an epoch."""
        return {
            "images": len(self.expressions.by_image),
            "questions": len(self.expressions),
            "targets": self.expressions.num_targets,
            "items": len(self),
        }

    def check(self) -> Iterator[BadRow]:
        """Every bad row; unusable entries of the instances file are listed too.

        These are entries of all splits, since an instances file does not tell whose they are, and
        masks without a pixel that this split asks for.
        """
        yield from self.bad_rows
        yield from self.coco.bad_rows
        checked: set[int] = set()
        for expression in range(len(self.expressions)):
            size = size_of(self._image(expression))
            for annotation in set(self.expressions[expression][1]) - checked:
                checked.add(annotation)
                try:
                    self._name_and_mask(annotation, size)
                except BadRowError as error:
                    yield error.bad
        for members in self.expressions.by_image:
            entry = self._image(members[0])
            yield from self.check_image(self.images / file_of(entry), size_of(entry))

    def _rounds(self, draw: np.random.Generator, own: Integers) -> list[Integers]:
        """The expressions of an image in groups: the first of each ref, the second, ..."""
        mixed = own[0] + draw.permutation(len(own))
        _, refs = np.unique(self.expressions.refs[mixed], return_inverse=True)
        seen: dict[int, int] = {}
        rounds: dict[int, list[int]] = {}
        for member, ref in zip(mixed.tolist(), refs.reshape(-1).tolist(), strict=True):
            seen[ref] = seen.get(ref, -1) + 1
            rounds.setdefault(seen[ref], []).append(member)
        return [
            part
            for members in rounds.values()
            for part in np.array_split(np.array(members), -(-len(members) // self.per_item))
        ]

    def _draw_questions(
        self, rng: random.Random, members: Integers, num_questions: int
    ) -> list[Integers]:
        """Some of an image's expressions in groups, each of different objects."""
        of_ref: dict[int, list[int]] = {}
        for member in rng.sample(members.tolist(), len(members)):
            of_ref.setdefault(int(self.expressions.refs[member]), []).append(member)
        usable = [member for own in of_ref.values() for member in own[:num_questions]]
        drawn = set(rng.sample(usable, min(len(usable), num_questions * self.per_item)))
        kept = [[member for member in own if member in drawn] for own in of_ref.values()]
        dealt = [member for own in kept for member in own]
        # Dealt in turn, neighbouring expressions of one object come into different ones.
        count = max(-(-len(dealt) // self.per_item), *map(len, kept))
        return [np.array(dealt[first::count]) for first in range(count)]

    def _image(self, expression: int) -> dict[str, Any]:
        return self.coco.image(self.coco.find_image(int(self.expressions.images[expression])))

    def _named(self, members: Integers) -> list[NamedMasks]:
        size = size_of(self._image(members[0]))
        asked = []
        for text, ids in map(self.expressions.__getitem__, members.tolist()):
            found = [self._name_and_mask(one, size) for one in ids]
            targets = tuple(Target(name or text, mask) for name, mask in found)
            asked.append(NamedMasks(text, targets))
        return asked

    def _name_and_mask(self, identity: int, size: tuple[int, int]) -> tuple[str, RLE]:
        """The category's name of an annotation ("" where unknown), and its mask."""
        entry = self.coco.annotation(self.coco.find_annotation(identity))
        try:
            mask = segmentation_to_rle(entry["segmentation"], size)
            if not areas_of([mask])[0]:
                raise ValueError("Its mask covers no pixel.")
        except (TypeError, ValueError) as error:
            bad = BadRow(self.instances_path, f"annotation {identity}", str(error))
            raise BadRowError(bad) from None
        category = whole_number(entry.get("category_id"))
        known = self.coco.categories.get(-1 if category is None else category, {})
        return str(known.get("name", "")), mask

    def _sample(self, first: int, turns: tuple[Turn, ...], name: str) -> Sample:
        entry = self._image(first)
        return Sample(self.images / file_of(entry), size_of(entry), turns, name)


def _id_of(value: Any) -> int:
    number = whole_number(value)
    if number is None:
        raise ValueError("no id")
    return number


def _row_name(ref: int, number: int) -> str:
    return f"ref {ref}, sentence {number}"


def is_in_split(split: str, marked: str) -> bool:
    """Whether an entry marked so belongs to a split; "testAB" is in testA, testB and test."""
    if split.startswith("test") and marked.startswith("test"):
        return split == "test" or split[4:] in marked[4:]
    return split == marked


class RefCoco(ReferDataset):
    """refCOCO."""

    name = "refcoco"
    title = "refCOCO: short expressions for objects of COCO photos, places allowed"
    splits = ("train", "val", "testA", "testB", "test")
    partitions: ClassVar = {
        "unc": ("train", "val", "testA", "testB"),
        "google": ("train", "val", "test"),
    }
    folder = "refer_seg/refcoco"


class RefCocoPlus(ReferDataset):
    """refCOCO+."""

    name = "refcoco+"
    title = "refCOCO+: short expressions for objects of COCO photos, without places"
    splits = ("train", "val", "testA", "testB")
    partitions: ClassVar = {"unc": splits}
    folder = "refer_seg/refcoco+"


class RefCocoG(ReferDataset):
    """refCOCOg."""

    name = "refcocog"
    title = "refCOCOg: whole sentences for objects of COCO photos"
    splits = ("train", "val", "test")
    partitions: ClassVar = {"umd": splits, "google": ("train", "val")}
    folder = "refer_seg/refcocog"


class RefClef(ReferDataset):
    """refCLEF."""

    name = "refclef"
    title = "refCLEF: short expressions for regions of ImageCLEF photos"
    splits = ("train", "val", "testA", "testB", "testC", "test")
    partitions: ClassVar = {
        "unc": ("train", "val", "testA", "testB", "testC"),
        "berkeley": ("train", "val", "test"),
    }
    folder = "refer_seg/refclef"
    image_folders = ("refer_seg/images/saiapr_tc-12",)
    obtain = (
        "the refer toolbox (github.com/lichengunc/refer) says where to download annotations and "
        "the images of saiapr_tc-12"
    )


class GRefCoco(ReferDataset):
    """gRefCOCO."""

    name = "grefcoco"
    title = "gRefCOCO: expressions for none, one or many objects of COCO photos"
    splits = ("train", "val", "testA", "testB")
    partitions: ClassVar = {"unc": splits}
    folder = "refer_seg/grefcoco"
    file_pattern = "grefs({}).json"
    obtain = (
        "github.com/henghuiding/gRefCOCO says where to download the annotations, and the images "
        "are train2014 of cocodataset.org"
    )

    def read_refs(self) -> Iterator[Any]:
        """The entries of the file, one at a time."""
        return scan_list(self.expressions_path)

    def annotations_of(self, ref: Mapping[str, Any]) -> tuple[int, ...]:
        """Ids of the objects that fit an entry; () where nothing does."""
        listed = ref["ann_id"]
        ids = tuple(map(_id_of, listed if isinstance(listed, list) else [listed]))
        return () if ref.get("no_target") or ids == (_NOTHING,) else ids


class _Grouped(ReferDataset):
    """Expressions of an image asked together, in groups of 6, 5, 4, 6, 5, ..."""

    def group_for_training(self) -> Groups:
        """Expression numbers item by item: the evaluation's groups."""
        if self.questions_per_image is not None:
            raise ValueError(
                f"An item of {self.name} is one question for up to {max(GROUP_SIZES)} expressions; "
                f"take {self.folder.rpartition('/')[2]} to choose questions_per_image."
            )
        return self.group_for_evaluation()

    def group_for_evaluation(self) -> Groups:
        """In the order of the file; each image starts with a group of 6."""
        groups = []
        for own in self.expressions.by_image:
            sizes = cycle(GROUP_SIZES)
            while len(own):
                size = next(sizes)
                groups.append(own[:size])
                own = own[size:]
        return Groups.of(groups)

    def to_dialogues(self, rng: random.Random, asked: Sequence[NamedMasks]) -> Dialogues:
        """One question for all."""
        named = [NamedMasks(to_noun(one.name), one.targets) for one in asked]
        return ((ask_for_regions(rng, named, REFERRING_KIND),),)


class MultiRefCoco(_Grouped, RefCoco):
    """multi-refCOCO."""

    name = "multi-refcoco"
    title = "multi-refCOCO: up to six expressions of refCOCO in one question"


class MultiRefCocoPlus(_Grouped, RefCocoPlus):
    """multi-refCOCO+."""

    name = "multi-refcoco+"
    title = "multi-refCOCO+: up to six expressions of refCOCO+ in one question"


class MultiRefCocoG(_Grouped, RefCocoG):
    """multi-refCOCOg."""

    name = "multi-refcocog"
    title = "multi-refCOCOg: up to six expressions of refCOCOg in one question"
