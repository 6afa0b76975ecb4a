"""COCO-style files asked about: own images, sets of parts, expressions, the ``coco`` benchmark."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pixellm.data.annotated import AnnotatedClass, AnnotatedImage
from pixellm.data.classes import ClassDataset
from pixellm.data.coco import (
    ANNOTATIONS,
    CocoFile,
    category_name,
    expressions_of,
    file_of,
    is_background,
    own_files,
    size_of,
    source_of,
)
from pixellm.data.dataset import (
    BadRow,
    BadRowError,
    Dataset,
    Group,
    Groups,
    UnusableDataError,
    check_at_least_one,
)
from pixellm.data.json_values import whole_number
from pixellm.data.lazy import Lazy
from pixellm.data.other_layouts import advice_on_coco
from pixellm.data.questions import NamedMasks, as_benchmark_asks, benchmark_turn, compose_dialogues
from pixellm.data.table import Integers
from pixellm.masks import segmentation_to_rle, union_of
from pixellm.scenes.phrasing import mark_phrases
from pixellm.types import RLE, Sample, Target, Turn

_CROWDS_ALONE = (
    "all its annotations are crowds (iscrowd 1). CVAT marks brush masks so: set iscrowd to 0, or "
    "ask for whole regions with targets=regions"
)
_SENSE = re.compile(r"_?\(.*?\)")


class CocoClasses(ClassDataset):
    """A COCO-style file asked for its categories.

    Categories of one name are one class. A class is not asked for in an image where one of its
    annotations can't be used, or that the file says is not annotated exhaustively (LVIS).

    Args:
        root, split, seed: see :class:`~pixellm.data.dataset.Dataset`.
        annotations: the JSON file.
        images: the folder that each ``file_name`` is below.
        options: see :class:`~pixellm.data.classes.ClassDataset`.
    """

    id_name: ClassVar[str] = ""
    """What ids of samples begin with; the set's name where empty."""

    def __init__(
        self,
        root: Path | str,
        split: str,
        seed: int,
        annotations: Path,
        images: Path,
        **options: Any,
    ) -> None:
        super().__init__(root, split, seed, **options)
        self.annotations, self.images = annotations, images
        self.require(annotations, images)
        self.coco = CocoFile(annotations)
        self._called = {key: self.names_of(one) for key, one in self.coco.categories.items()}
        self._silent = frozenset(
            self._called[key][0] for key, one in self.coco.categories.items() if is_background(one)
        )
        askable, never = self._look_at_images()
        self._items = np.arange(len(self.coco)) if self.negatives else askable
        self.bad_rows = (*self.coco.bad_rows, *never)
        self.num_items = len(self._items)
        if not self.num_items:
            raise UnusableDataError(
                f"{annotations} has no image with a mask that can be asked for.", self.bad_rows
            )

    def names_of(self, category: Mapping[str, Any]) -> tuple[str, ...]:
        """What an entry of ``categories`` is called: its class, then what a question may say."""
        return (category_name(category),)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, as targets carry them."""
        return self.categories

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Names of all classes, in the order of the file; not those of groups and backgrounds."""
        named = dict.fromkeys(names[0] for names in self._called.values())
        empty_groups = self._parents - self._classes_of(self.coco.category_of)
        return tuple(n for n in named if n not in self._silent and n not in empty_groups)

    @property
    def deniable_names(self) -> tuple[str, ...]:
        """See :meth:`ClassDataset.deniable_names`: not those that hold other classes."""
        return tuple(name for name in self.class_names if name not in self._parents)

    @cached_property
    def _parents(self) -> frozenset[str]:
        """Classes that are the supercategory of another one, as Roboflow's root is."""
        above = {
            " ".join(str(one.get("supercategory") or "").replace("_", " ").split())
            for one in self.coco.categories.values()
            if str(one.get("supercategory") or "") != one["name"]
        }
        return frozenset(names[0] for names in self._called.values() if names[0] in above)

    def where(self, item: int) -> tuple[Path, str]:
        """The annotation file, and which of its images."""
        return self.annotations, f"image {self.coco.image_indices[self._items[item]]}"

    def row(self, item: int) -> AnnotatedImage:
        """An image with its classes, in the order of its annotations."""
        number = int(self._items[item])
        entry = self.coco.image(number)
        size = size_of(entry)
        masks: dict[str, list[RLE]] = defaultdict(list)
        crowds: dict[str, list[RLE]] = defaultdict(list)
        wordings = {}
        unsure = self._not_exhaustive(entry) | self._silent
        faults = []
        for row in self.coco.rows_of(number).tolist():
            name, *others = self._called[int(self.coco.category_of[row])]
            wordings[name] = tuple(others)
            try:
                mask = self.coco.mask(row, size)
            except (KeyError, TypeError, ValueError) as error:
                unsure.add(name)
                if not self.coco.is_faulty[row]:  # the others were listed when the file was read
                    faults.append(BadRow(self.annotations, f"annotation {row}", str(error)))
            else:
                (crowds if self.coco.is_crowd[row] else masks)[name].append(mask)
        classes = tuple(
            AnnotatedClass(name, tuple(masks[name]), tuple(crowds[name]), name not in unsure, words)
            for name, words in wordings.items()
        )
        path = self.images / file_of(entry)
        label = f"{self.id_name or self.name}-{self.split}-{entry['id']}"
        return AnnotatedImage(path, size, label, classes, tuple(faults), source_of(entry))

    def _not_exhaustive(self, entry: Mapping[str, Any]) -> set[str]:
        """Classes of which an image may show more than is annotated."""
        given = entry.get("not_exhaustive_category_ids")
        numbers = map(whole_number, given if isinstance(given, list) else ())
        return {self._called[number][0] for number in numbers if number in self._called}

    def _classes_of(self, category_ids: Integers) -> set[str]:
        numbers = np.unique(category_ids).tolist()
        return {self._called[number][0] for number in numbers if number in self._called}

    def _look_at_images(self) -> tuple[Integers, list[BadRow]]:
        """Numbers of the images that some question fits, as far as seen without masks.

        And the classes that are asked for nowhere because they have crowds alone, or too many
        targets.
        """
        names = list(dict.fromkeys(names[0] for names in self._called.values()))
        rows, count = self.coco.sorted_rows, max(len(names), 1)
        ids, inverse = np.unique(self.coco.category_of[rows], return_inverse=True)
        number = np.array([names.index(self._called[one][0]) for one in ids.tolist()], np.int64)
        # One key for each class in each image, the images in their order.
        keys = self.coco.items_of_sorted_rows * count + number[inverse.reshape(-1)]
        found, first, of_key, counts = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        unusable = self.coco.is_faulty[rows]
        if self.targets == "instances":
            unusable = unusable | self.coco.is_crowd[rows]
        silent = np.array([name in self._silent for name in names], dtype=bool)
        fit = np.bincount(of_key.reshape(-1), unusable, len(found)) == 0
        fit &= ~silent[found % count] if len(found) else True
        too_many = counts > self.max_instances
        if self.targets == "regions":
            too_many[:] = False
        fit &= ~too_many
        asked = {names[i] for i in np.unique(found[fit] % count).tolist()}
        reasons = dict.fromkeys(self._crowds_alone(), _CROWDS_ALONE)
        where = np.flatnonzero(too_many)
        for key in where[np.argsort(first[where], kind="stable")].tolist():
            item, one = divmod(int(found[key]), count)
            reasons.setdefault(
                names[one],
                f"in image {self.coco.image_indices[item]} it has {counts[key]} targets, "
                f"max_instances is {self.max_instances}",
            )
        never = [
            BadRow(self.annotations, f"category {name!r}", f"It is asked for nowhere: {reason}.")
            for name, reason in reasons.items()
            if name not in asked | self._silent
        ]
        return np.unique(found[fit] // count), never

    def _crowds_alone(self) -> list[str]:
        """Classes of which every annotation is a crowd, where these are not asked for."""
        if self.targets == "regions":
            return []
        of_crowds = self._classes_of(self.coco.category_of[self.coco.is_crowd])
        return sorted(of_crowds - self._classes_of(self.coco.category_of[~self.coco.is_crowd]))


class _OwnFiles:
    """What sets of one's own COCO-style files share."""

    root: Path
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    is_public: ClassVar[bool] = False
    obtain: ClassVar[str] = "export your annotations as COCO instances JSON"

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        return own_files(root, split)

    def how_to_go_on(self, missing: Path) -> str:
        return advice_on_coco(self.root, missing) or self.obtain


class OwnCoco(_OwnFiles, CocoClasses):
    """A COCO instances file of your own, asked for its categories.

    Args:
        root, split, seed: see :class:`~pixellm.data.dataset.Dataset`.
        annotations: the instances JSON, below ``root``, with ``{split}`` for the split.
        images: the folder that each ``file_name`` is below, as ``annotations``; see
            :func:`~pixellm.data.coco.own_files`.
        options: see :class:`~pixellm.data.classes.ClassDataset`; here ``targets`` is
            ``instances`` unless told otherwise.
    """

    name = "coco"
    title = "Your own photos: a COCO instances file, asked for its categories"

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        *,
        annotations: str = ANNOTATIONS,
        images: str = "",
        **options: Any,
    ) -> None:
        files = own_files(Path(root), split, annotations, images)
        super().__init__(root, split, seed, *files, **{"targets": "instances", **options})


class _Parts(CocoClasses):
    """Categories named "object" or "object:part": PACO-LVIS and Pascal-Part.

    They are asked for regions, or for instances where told so.
    """

    def __init__(
        self, root: Path | str, split: str = "train", seed: int = 0, **options: Any
    ) -> None:
        annotations, images = self.files(Path(root), split)
        super().__init__(root, split, seed, annotations, images, **options)

    def names_of(self, category: Mapping[str, Any]) -> tuple[str, ...]:
        """An object as it is; of "car:wheel" the class "car wheel", and both ways to ask for it."""
        words = _SENSE.sub("", str(category["name"])).replace("_", " ").split(":")
        whole, *part = (" ".join(word.split()) for word in words)
        if not part:
            return (whole,)
        return f"{whole} {part[0]}", f"{part[0]} of the {whole}", f"{whole} {part[0]}"


class PacoLvis(_Parts):
    """PACO-LVIS: 75 kinds of objects, 456 kinds of parts of them, on COCO photos."""

    name = "paco"
    title = "PACO-LVIS: objects and their parts"
    splits = ("train", "val", "test")
    obtain = (
        "download paco_lvis_v1.zip from github.com/facebookresearch/paco into "
        "vlpart/paco/annotations, and the photos from cocodataset.org into coco"
    )

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The annotations, and the folder that holds ``train2017`` and ``val2017``."""
        folder = root / "vlpart" / "paco" / "annotations"
        return folder / f"paco_lvis_v1_{split}.json", root / "coco"


class PascalPart(_Parts):
    """Pascal-Part as VLPart distributes it: parts of 20 kinds of objects."""

    name = "pascal-part"
    title = "Pascal-Part: parts of things and animals"
    splits = ("train", "val")
    obtain = (
        "download the annotations linked from github.com/facebookresearch/VLPart into "
        "vlpart/pascal_part, and VOC2010 from host.robots.ox.ac.uk/pascal/VOC/voc2010 beside them"
    )

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The annotations, and the folder of photos."""
        folder = root / "vlpart" / "pascal_part"
        return folder / f"{split}.json", folder / "VOCdevkit" / "VOC2010" / "JPEGImages"


class OwnExpressions(_OwnFiles, Dataset[Group]):
    """A COCO instances file of your own, asked for the expressions of its annotations.

    An item is up to so many expressions of one image, each of another annotation.

    Args:
        root, split, seed, images: see :class:`OwnCoco`.
        annotations: see there; an annotation's expressions are a text or a list of texts under one
            of the keys expression(s), caption(s), description(s).
        expressions_per_item: at most.
    """

    name = "coco-expressions"
    title = "Your own photos: a COCO instances file with a description of each annotation"
    obtain = "export your annotations as COCO instances JSON, with an expression for each"

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        *,
        annotations: str = ANNOTATIONS,
        images: str = "",
        expressions_per_item: int = 3,
    ) -> None:
        super().__init__(root, split, seed)
        check_at_least_one(self.name, expressions_per_item=expressions_per_item)
        self.annotations, self.images = own_files(self.root, split, annotations, images)
        self.require(self.annotations, self.images)
        self.coco = CocoFile(self.annotations, by_texts=True)
        self.bad_rows = (*self.coco.bad_rows, *self.coco.bad_texts)
        self._expressions = _expressions_by_image(self.coco)
        if not len(self._expressions):
            raise UnusableDataError(
                f"{self.annotations} has no annotation with an expression; put one under "
                "'expression', or read the file as the set coco.",
                self.bad_rows,
            )
        self._groups = _group(self._expressions, expressions_per_item)
        self.num_items = len(self._groups)

    def row(self, item: int) -> Group:
        """A group of expressions."""
        return Group(item, self._groups[item])

    def where(self, item: int) -> tuple[Path, str]:
        """The annotation file, and which of its images."""
        image = self._expressions[self._groups[item][0], 0]
        return self.annotations, f"image {self.coco.image_indices[image]}"

    def compose(self, row: Group, rng: random.Random) -> tuple[Sample, ...]:
        """The dialogues about a group of expressions."""
        expressions = self._expressions[row.members].tolist()
        rng.shuffle(asked := [self._named(*one) for one in expressions])
        return tuple(
            self._sample(expressions[0][0], turns, f"{row.item}-{number}")
            for number, turns in enumerate(compose_dialogues(rng, asked))
        )

    def evaluation_samples(self) -> Lazy[Sample]:
        """One question for each expression, as the benchmarks of expressions ask."""

        def build(number: int) -> Sample:
            image, text_round, row = self._expressions[number].tolist()
            turn = benchmark_turn([as_benchmark_asks(self._named(image, text_round, row))])
            return self._sample(image, (turn,), f"{row}-{text_round}")

        return Lazy(range(len(self._expressions)), build)

    def counts(self) -> dict[str, int]:
        """Images with expressions, questions when each is asked alone, and targets."""
        images, questions = len(np.unique(self._expressions[:, 0])), len(self._expressions)
        return {"images": images, "questions": questions, "targets": questions}

    def _named(self, image: int, text_round: int, row: int) -> NamedMasks:
        try:
            mask = self.coco.mask(row, size_of(self.coco.image(image)))
        except (KeyError, TypeError, ValueError) as error:
            bad = BadRow(self.annotations, f"annotation {row}", str(error))
            raise BadRowError(bad) from None
        text = expressions_of(self.coco.annotation(row))[text_round]
        name = category_name(self.coco.categories[int(self.coco.category_of[row])])
        return NamedMasks(text, (Target(name, mask),))

    def _sample(self, image: int, turns: tuple[Turn, ...], label: str) -> Sample:
        entry = self.coco.image(image)
        name = f"{self.name}-{self.split}-{entry['id']}-{label}"
        return Sample(self.images / file_of(entry), size_of(entry), turns, name)


def _expressions_by_image(coco: CocoFile) -> Integers:
    """(num expressions, 3): image, round, annotation; of each image all first expressions first."""
    rows = coco.sorted_rows
    texts = np.where(coco.is_faulty[rows], 0, coco.num_texts[rows])
    position = np.repeat(np.arange(len(rows)), texts)
    text_round = np.arange(len(position)) - np.repeat(np.cumsum(texts) - texts, texts)
    image = coco.items_of_sorted_rows[position]
    order = np.lexsort((position, text_round, image))
    return np.stack((image, text_round, rows[position]), axis=1)[order]


def _group(expressions: Integers, most: int) -> Groups:
    """The expressions of each item: of one image, in one round, at most so many."""
    starts = [0]
    changes = (np.diff(expressions[:, :2], axis=0) != 0).any(axis=1)
    for number, other in enumerate(changes.tolist(), start=1):
        if other or number - starts[-1] >= most:
            starts.append(number)
    return Groups(np.arange(len(expressions)), np.array([*starts, len(expressions)]))


def coco_questions(
    root: Path, split: str, *, annotations: str = ANNOTATIONS, images: Path | str = ""
) -> Lazy[Sample]:
    """The ``coco`` benchmark: "segment the {category}", for every category that an image shows.

    Images come in the order of the file. All instances of the category are the targets, each its
    own mask. Regions marked as crowds hold objects of their category that are not told apart; their
    pixels are left out of the category's scores. A category of which an image shows only a crowd is
    not asked for. Where files are, :func:`~pixellm.data.coco.own_files` says; the questions'
    ``bad_rows`` are what of the file can't be used.
    """
    path, folder = _find_files(root, split, annotations, str(images))
    coco = CocoFile(path)
    told_apart = ~coco.is_crowd[coco.sorted_rows]
    items, rows = coco.items_of_sorted_rows[told_apart], coco.sorted_rows[told_apart]
    pairs = np.unique(np.stack((items, coco.category_of[rows]), axis=1), axis=0)
    if coco.bad_rows and not len(pairs):
        raise UnusableDataError(f"No annotation of {path} can be used.", coco.bad_rows)

    def build(number: int) -> Sample:
        item, category = pairs[number].tolist()
        try:
            return _ask_for_category(coco, folder, item, category)
        except (KeyError, ValueError) as error:
            where = f"{path}: image {coco.image(item)['id']}, category {category}"
            raise ValueError(f"{where}: {error}") from error

    return Lazy(range(len(pairs)), build, coco.bad_rows)


def _ask_for_category(coco: CocoFile, folder: Path, item: int, category: int) -> Sample:
    entry, name = coco.image(item), str(coco.categories[category]["name"])
    size = size_of(entry)
    masks: list[RLE] = []
    ignored: list[RLE] = []
    for row in coco.rows_of(item).tolist():
        if coco.category_of[row] == category:
            mask = segmentation_to_rle(coco.annotation(row)["segmentation"], size)
            (ignored if coco.is_crowd[row] else masks).append(mask)
    ignore = union_of(ignored) if ignored else None
    listed = mark_phrases([f"the {name}"] * len(masks))
    answer = listed[0].upper() + listed[1:] + "."
    targets = tuple(Target(name, mask, ignore) for mask in masks)
    turn = Turn(f"segment the {name}", answer, targets, name)
    path, label = folder / file_of(entry), f"{entry['id']}-{name}"
    return Sample(path, size, (turn,), label, source=source_of(entry))


def _find_files(root: Path, split: str, annotations: str, images: str) -> tuple[Path, Path]:
    """The annotation file and the folder of images, or what is missing of them."""
    path, folder = own_files(root, split, annotations, images)
    if path.is_file() and folder.is_dir():
        return path, folder
    missing = folder if path.is_file() else path
    wanted = f"its images, {folder}, are" if path.is_file() else f"{path} is"
    advice = advice_on_coco(root, missing) or (
        "give another --data or --split, or name the file with --with annotations=FILE and its "
        "images with --images"
    )
    raise FileNotFoundError(f"{root} holds no COCO split {split!r}: {wanted} missing; {advice}.")
