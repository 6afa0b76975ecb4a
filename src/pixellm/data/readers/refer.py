"""refCOCO, refCOCO+, refCOCOg and refCLEF as their authors publish them, and multi-refCOCO.

``refer_seg/NAME/instances.json`` holds images and masks, ``refs(PARTITION).p``, a pickle, the
expressions and their splits. Knows these two files; the rest is in ``expressions``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pixellm.data.dataset import BadRow
from pixellm.data.json_values import text_fault
from pixellm.data.questions import KIND, NamedMasks, ask_for_regions, to_noun
from pixellm.data.readers.expressions import (
    Expression,
    ExpressionReader,
    Integers,
    flatten,
    row_name,
)
from pixellm.data.restricted_pickle import load_plain_pickle
from pixellm.types import Turn

GROUP_SIZES = (6, 5, 4)
"""How many expressions of an image multi-refCOCO asks together, over and over (PAPER.md 5)."""

COCO_FOLDERS = ("refer_seg/images/mscoco/images/train2014", "coco/train2014")


class ReferReader(ExpressionReader):
    """A data set of the refer family.

    Args:
        root: folder that holds all data sets.
        split: one of :attr:`splits`.
        seed: another seed gives other groups, another order and wording.
        partition: who made the splits, as in the name of the file; the usual one where None.
        images: folder of the images, where it is not the usual one.
        per_item: expressions of an image that are asked in one item, at most.
        questions_per_picture: see :class:`~pixellm.data.readers.expressions.ExpressionReader`.

    Raises:
        ValueError: an unknown split or partition, or a file that is damaged or refused.
        FileNotFoundError: a file is missing; says where to get it.
    """

    partitions: ClassVar[Mapping[str, tuple[str, ...]]]
    """Splits by partition, the usual partition first."""
    image_folders: tuple[str, ...] = COCO_FOLDERS
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
        questions_per_picture: int | None = None,
    ) -> None:
        self.partition = partition or self.usual_partition(split)
        known = self.partitions.get(self.partition)
        if known is None:
            names = ", ".join(self.partitions)
            raise ValueError(f"{self.name} has no partition {partition!r}; choose {names}.")
        if split in self.splits and split not in known:
            raise ValueError(
                f"The partition {self.partition} of {self.name} has no split {split!r}; choose "
                f"{', '.join(known)}."
            )
        super().__init__(root, split, seed, images, per_item, questions_per_picture)

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """See :meth:`Dataset.files`; of the usual partition that has the split."""
        folder = root / cls.folder
        images = cls.find_folder(root, cls.image_folders)
        return folder / "instances.json", folder / f"refs({cls.usual_partition(split)}).p", images

    @classmethod
    def usual_partition(cls, split: str) -> str:
        """The first partition that has a split; the first of all where none has."""
        owners = [name for name, splits in cls.partitions.items() if split in splits]
        return (owners or list(cls.partitions))[0]

    @property
    def expressions_path(self) -> Path:
        """The file of expressions."""
        return self.root / self.folder / f"refs({self.partition}).p"

    def read_expressions(self, bad: list[BadRow]) -> Iterator[Expression]:
        """See :meth:`ExpressionReader.read_expressions`."""
        refs = load_plain_pickle(self.expressions_path)
        if not isinstance(refs, list):
            raise ValueError(f"{self.expressions_path} is no list of refs; download it again.")
        for place, ref in enumerate(refs):
            yield from self.expressions_of(ref, place, bad)

    def expressions_of(self, ref: Any, place: int, bad: list[BadRow]) -> Iterator[Expression]:
        """The expressions of an entry; none where it belongs to another split."""
        if isinstance(ref, Mapping) and not is_in_split(self.split, str(ref.get("split"))):
            return
        try:
            head = int(ref["image_id"]), int(ref["ref_id"])
            texts = [sentence["sent"] for sentence in ref["sentences"]]
            annotations = self.annotations_of(ref)
        except KeyError as error:
            bad.append(BadRow(self.expressions_path, f"entry {place}", f"It has no {error}."))
        except (TypeError, ValueError):
            reason = "Its ids and sentences are not of the usual types."
            bad.append(BadRow(self.expressions_path, f"entry {place}", reason))
        else:
            for number, text in enumerate(texts):
                if fault := text_fault(text, "expression"):
                    row = row_name(head[1], number)
                    bad.append(BadRow(self.expressions_path, row, fault))
                else:
                    yield Expression(*head, number, text, annotations)

    def annotations_of(self, ref: Mapping[str, Any]) -> tuple[int, ...]:
        """Ids of the objects that fit an entry.

        Raises:
            KeyError, TypeError, ValueError: the entry is malformed.
        """
        return (int(ref["ann_id"]),)


def is_in_split(split: str, marked: str) -> bool:
    """Whether an entry marked so belongs to a split; "testAB" is in testA, testB and test."""
    if split.startswith("test") and marked.startswith("test"):
        return split == "test" or split[4:] in marked[4:]
    return split == marked


class RefCoco(ReferReader):
    """refCOCO."""

    name = "refcoco"
    title = "refCOCO: short expressions for objects of COCO photos, places allowed"
    splits = ("train", "val", "testA", "testB", "test")
    partitions: ClassVar = {
        "unc": ("train", "val", "testA", "testB"),
        "google": ("train", "val", "test"),
    }
    folder = "refer_seg/refcoco"


class RefCocoPlus(ReferReader):
    """refCOCO+."""

    name = "refcoco+"
    title = "refCOCO+: short expressions for objects of COCO photos, without places"
    splits = ("train", "val", "testA", "testB")
    partitions: ClassVar = {"unc": splits}
    folder = "refer_seg/refcoco+"


class RefCocoG(ReferReader):
    """refCOCOg."""

    name = "refcocog"
    title = "refCOCOg: whole sentences for objects of COCO photos"
    splits = ("train", "val", "test")
    partitions: ClassVar = {"umd": splits, "google": ("train", "val")}
    folder = "refer_seg/refcocog"


class RefClef(ReferReader):
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


class _Grouped(ReferReader):
    """Expressions of an image asked together, in groups of 6, 5, 4, 6, 5, ..."""

    def group_for_training(self) -> tuple[Integers, Integers]:
        """Expression numbers item by item: the evaluation's groups.

        Raises:
            ValueError: another number of questions was asked for.
        """
        if self.questions_per_picture is not None:
            raise ValueError(
                f"An item of {self.name} is one question for up to {max(GROUP_SIZES)} expressions; "
                f"take {self.folder.rpartition('/')[2]} to choose questions_per_picture."
            )
        return self.group_for_evaluation()

    def group_for_evaluation(self) -> tuple[Integers, Integers]:
        """In the order of the file; each image starts with a group of 6."""
        groups = []
        for first, end in zip(self.table.starts, self.table.starts[1:], strict=False):
            for size in cycle(GROUP_SIZES):
                groups.append(np.arange(first, min(first + size, end)))
                first += size
                if first >= end:
                    break
        return flatten(groups)

    def to_dialogues(
        self, rng: random.Random, things: Sequence[NamedMasks]
    ) -> tuple[tuple[Turn, ...], ...]:
        """One question for all."""
        named = [NamedMasks(to_noun(thing.name), thing.targets) for thing in things]
        return ((ask_for_regions(rng, named, KIND),),)


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
