"""Data sets of label images: ADE20K, COCO-Stuff, Mapillary Vistas v2.0.

A label image gives every pixel of its photo a class number, so that a class is one region. Each
set knows its folders and the names of its numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pixellm.data.annotated import AnnotatedClass, AnnotatedImage
from pixellm.data.classes import ClassDataset
from pixellm.data.dataset import BadRow
from pixellm.files import parse_json
from pixellm.image_files import load_stored, size_mismatch
from pixellm.masks import encode_mask, label_map_to_rles
from pixellm.types import RLE

_LABEL_MODES = ("L", "P", "I;16", "I")
_MASK_MODES = (*_LABEL_MODES, "1", "RGB")


class LabelImages(ClassDataset):
    """A data set of label images. An item is one of them that has its photo.

    Args:
        root, split, seed: see :class:`~pixellm.data.dataset.Dataset`.
        options: see :class:`~pixellm.data.classes.ClassDataset`; ``targets`` can't be
            ``instances``, which label images do not tell apart.
    """

    splits = ("train", "val")
    exhaustive = True
    parts: ClassVar[Mapping[str, str]] = {"train": "training", "val": "validation"}
    """What the folders call a split."""
    photos_at: ClassVar[str]
    """Below the root, with ``{}`` for the part: the folder of photos (jpg)."""
    labels_at: ClassVar[str]
    """The folder of label images (png) of the same names."""

    def __init__(
        self, root: Path | str, split: str = "train", seed: int = 0, **options: Any
    ) -> None:
        super().__init__(root, split, seed, **options)
        if self.targets != "regions":
            raise ValueError(f"{self.name} does not tell instances apart; use targets: regions.")
        self.require(*self.files(self.root, split))
        *_, self.labels, self.images = self.files(self.root, split)
        stems = sorted(path.stem for path in self.labels.glob("*.png"))
        photos = {path.stem for path in self.images.glob("*.jpg")}
        self.bad_rows = tuple(
            BadRow(self.labels / f"{stem}.png", "", f"Its photo {stem}.jpg is missing.")
            for stem in stems
            if stem not in photos
        )
        self._stems: NDArray[np.str_] = np.array([stem for stem in stems if stem in photos], str)
        self.num_items = len(self._stems)
        if not self.num_items:
            raise ValueError(f"{self.labels} holds no png that has its photo in {self.images}.")
        self._names, self._nothing = self.class_table()

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The folders of label images and photos."""
        part = cls.parts[split]
        return root / cls.labels_at.format(part), root / cls.photos_at.format(part)

    @abstractmethod
    def class_table(self) -> tuple[dict[int, str], frozenset[int]]:
        """The class name of each number that pixels may have, and the numbers of no class."""

    @staticmethod
    def is_asked(name: str) -> bool:
        """Whether a class of that name is ever asked for."""
        return bool(name)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that are asked for, in the order of their numbers."""
        return tuple(name for name in self._names.values() if self.is_asked(name))

    def where(self, item: int) -> tuple[Path, str]:
        """The label image."""
        return self.labels / f"{self._stems[item]}.png", ""

    def row(self, item: int) -> AnnotatedImage:
        """A photo with the classes of its label image, in the order of their numbers."""
        stem = self._stems[item]
        path, _ = self.where(item)
        labels = read_label_map(path)
        classes, faults = [], []
        for number, mask in label_map_to_rles(labels).items():
            if number in self._names:
                name = self._names[number]
                classes.append(AnnotatedClass(name, (mask,), askable=self.is_asked(name)))
            elif number not in self._nothing:
                faults.append(BadRow(path, "", f"Pixels have the number {number}, no class has."))
        size = (labels.shape[0], labels.shape[1])
        label = f"{self.name}-{self.split}-{stem}"
        photo = self.images / f"{stem}.jpg"
        return AnnotatedImage(photo, size, label, tuple(classes), tuple(faults))


class Ade20k(LabelImages):
    """ADE20K as in its scene parsing benchmark: number 0 is nothing, class n is n + 1."""

    name = "ade20k"
    title = "ADE20K: 150 classes of scenes"
    obtain = (
        "download ADEChallengeData2016.zip from the MIT scene parsing benchmark "
        "(sceneparsing.csail.mit.edu) and name its folder ade20k"
    )

    photos_at, labels_at = "ade20k/images/{}", "ade20k/annotations/{}"

    def class_table(self) -> tuple[dict[int, str], frozenset[int]]:
        """Numbers 1 to 150; 0 is nothing."""
        return dict(enumerate(_listed_names("ade20k"), start=1)), frozenset({0})


class CocoStuff(LabelImages):
    """COCO-Stuff's pixel maps: number n is category n + 1 of COCO-Stuff, 255 is nothing.

    Names with a hyphen ("wall-other", "floor-tile") are no words; as in the
    release they are not asked for.
    """

    name = "cocostuff"
    title = "COCO-Stuff: 171 classes of things and stuff"
    obtain = (
        "download stuffthingmaps_trainval2017.zip from github.com/nightrome/cocostuff into "
        "cocostuff, and the photos from cocodataset.org into coco"
    )

    parts: ClassVar = {"train": "train2017", "val": "val2017"}
    photos_at, labels_at = "coco/{}", "cocostuff/{}"

    def class_table(self) -> tuple[dict[int, str], frozenset[int]]:
        """Numbers 0 to 181, eleven of which occur in no image; 255 is nothing."""
        return dict(enumerate(_listed_names("cocostuff"))), frozenset({255})

    @staticmethod
    def is_asked(name: str) -> bool:
        """Whether the name is made of words."""
        return "-" not in name


class Mapillary(LabelImages):
    """Mapillary Vistas v2.0; names are the ``readable`` ones of its list, in lower case.

    What its list calls void ("unlabeled", "ego vehicle", "ground") is never asked for.
    """

    name = "mapillary"
    title = "Mapillary Vistas v2.0: 124 classes of streets"
    obtain = "download Mapillary Vistas v2.0 from mapillary.com/dataset/vistas into mapillary"

    photos_at, labels_at = "mapillary/{}/images", "mapillary/{}/v2.0/labels"

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The list of classes, and the folders of label images and photos."""
        return root / "mapillary" / "config_v2.0.json", *super().files(root, split)

    def class_table(self) -> tuple[dict[int, str], frozenset[int]]:
        """Numbers are indices of the list; void entries are nothing."""
        path = self.files(self.root, self.split)[0]
        try:
            entries = parse_json(path.read_bytes())["labels"]
            names = {number: entry["readable"].lower() for number, entry in enumerate(entries)}
            void = frozenset(n for n in names if entries[n]["name"].startswith("void--"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not the list of classes of Mapillary Vistas v2.0 ({error}); copy it "
                "again from the download."
            ) from None
        return {number: name for number, name in names.items() if number not in void}, void


def read_label_map(path: Path) -> NDArray[Any]:
    """The class number, (H, W) of an integer type, of every pixel of a grey or palette PNG.

    Of a palette image the indices count, not the colours.
    """
    image = load_stored(path)
    if image.mode not in _LABEL_MODES:
        raise ValueError(
            f"{path} can't be read as a label image: its mode is {image.mode}, but class numbers "
            "are grey or palette values."
        )
    return np.asarray(image)


def read_mask(path: Path, size: tuple[int, int]) -> RLE:
    """The mask of one object, of an image of (height, width) whose pixels that are not 0 are it.

    A grey, palette, black and white or RGB image. OSError or ValueError where there is none, it is
    damaged, of another size or transparent, or no pixel of it is the object.
    """
    image = load_stored(path)
    if image.mode not in _MASK_MODES:
        raise ValueError(f"{path} can't be read as a mask: its mode is {image.mode}; use grey.")
    pixels = np.asarray(image)
    mask = (np.atleast_3d(pixels) != 0).any(axis=2)
    if fault := size_mismatch(size, (mask.shape[0], mask.shape[1])):
        raise ValueError(f"{path} does not fit. {fault}")
    if not mask.any():
        raise ValueError(f"{path} is a mask without a pixel that is not 0.")
    return encode_mask(mask)


@cache
def _listed_names(name: str) -> tuple[str, ...]:
    """The class names of a set in the order of their numbers, one a line of its file."""
    path = Path(__file__).parent / "class_names" / f"{name}.txt"
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1])
