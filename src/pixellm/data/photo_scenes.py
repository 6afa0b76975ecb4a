"""Photo scenes as an endless data set: image number n of a split and seed is always the same one.

Objects of an instances file, cut out of their photos, are pasted on drawn backgrounds, blurred or
empty parts of photos, and whole other photos; the questions are those of photos. Images of a
block share some photos, so that few have to be decoded. This module chooses what is pasted on what.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from pixellm.data.coco import ANNOTATIONS
from pixellm.data.dataset import check_at_least_one
from pixellm.data.photos import MAX_TARGETS, PhotoSet
from pixellm.data.table import Integers
from pixellm.image_files import load_annotated
from pixellm.masks import Size, decode_mask
from pixellm.scenes.backgrounds import draw_background
from pixellm.scenes.cutouts import Background, Cutout, cut_out, paste_scene
from pixellm.scenes.dataset import EndlessScenes
from pixellm.scenes.draw import choose_size
from pixellm.scenes.knowledge import Knowledge
from pixellm.scenes.photo_view import PhotoView
from pixellm.scenes.questions import check_weights
from pixellm.scenes.questions_photos import PHOTO_WEIGHTS, compose_photo_dialogues
from pixellm.scenes.scene import Scene
from pixellm.types import RLE, BoolMask, Turn

BLOCK = 1024
"""So many images in a row share photos."""

PHOTOS_PER_BLOCK = 128
"""So many photos, and as many are kept in memory."""

LEAST_SIDE = 20
"""The long side of a cut-out in its photo is at least so many pixels."""

LEAST_SHARE = 0.003
"""A cut-out covers at least this share of its photo."""

LEAST_FILLED = 0.2
"""A cut-out fills at least this share of its box: less are scraps that others left of it."""

WHOLE_SHARE = 0.8
"""Share of the cut-outs that are chosen among those that no border of a photo cuts, if any."""

MAX_OBJECTS_BELOW = 8
"""A photo with more objects is not pasted on as a whole."""

_GROUNDS = ("photo", "drawn", "empty", "blurred")
_GROUND_SHARES = (0.5, 0.15, 0.25, 0.1)
_CELLS = 12
_LEAST_EMPTY = 0.12
_TRIES = 6

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class _Photo:
    """A decoded photo.

    Attributes:
        image: the photo.
        cutouts: objects that are large enough, by concept; each with whether it is whole.
        objects: concept and mask of all objects.
        crowds: concept and mask of the regions whose objects are not told apart.
        uncertain: concepts of which it shows more.
        empty: (left, top, right, bottom) of its largest part without objects; None where small.
    """

    image: Image.Image
    cutouts: Mapping[str, tuple[tuple[Cutout, bool], ...]]
    objects: tuple[tuple[str, RLE], ...]
    crowds: tuple[tuple[str, RLE], ...]
    uncertain: frozenset[str]
    empty: Box | None


class PhotoScenes(EndlessScenes):
    """Cut-outs of photos on backgrounds; about a hundred decoded photos are kept, some 100 MB.

    Args:
        root, split: see :class:`~pixellm.data.coco_sets.OwnCoco`; no photos of other splits are
            used.
        seed: another seed gives other scenes.
        length: how many images the set pretends to hold.
        annotations, images: as of ``root``.
        dialogues_per_image: dialogues about each image, at most.
        kinds: weight of each kind of question, as for photos; the default weights where None.
        long_side: of the images, in pixels.
        max_targets: no question has more.
        together: see :class:`~pixellm.data.photos.Photos`.
    """

    stream = "photo scenes/"
    attempts = 20

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        length: int = 100_000,
        *,
        annotations: str = ANNOTATIONS,
        images: str = "",
        dialogues_per_image: int = 2,
        kinds: Mapping[str, float] | None = None,
        long_side: int = 416,
        max_targets: int = MAX_TARGETS,
        together: bool = False,
    ) -> None:
        if long_side < 64:
            raise ValueError(f"Photo scenes of {long_side} pixels show nothing; take 64 or more.")
        check_at_least_one(
            "photo scenes",
            length=length,
            dialogues_per_image=dialogues_per_image,
            max_targets=max_targets,
        )
        if kinds is not None:
            check_weights(kinds, tuple(PHOTO_WEIGHTS))
        self.source = PhotoSet(root, split, annotations=annotations, images=images)
        self.split = split
        self.seed = seed
        self.length = length
        self.dialogues_per_image = dialogues_per_image
        self.kinds = kinds
        self.long_side = long_side
        self.max_targets = max_targets
        self.together = together
        self._photos_with = self._index_concepts()
        self._block: tuple[int, dict[str, list[int]]] = (-1, {})
        self._kept: OrderedDict[int, _Photo] = OrderedDict()

    @property
    def knowledge(self) -> Knowledge:
        """What is known of the objects that the file annotates."""
        return self.source.knowledge

    def __getstate__(self) -> dict[str, Any]:
        """Without the decoded photos, which another process decodes for itself."""
        return {**self.__dict__, "_kept": OrderedDict(), "_block": (-1, {})}

    def compose(self, scene: Scene, index: int, attempt: int) -> list[tuple[Turn, ...]]:
        """The dialogues about a scene; of any kind at the last attempt."""
        view = PhotoView(scene, self.knowledge, self.max_targets, together=self.together)
        return compose_photo_dialogues(
            view,
            random.Random(self.entropy(index, attempt)),
            self.dialogues_per_image,
            kinds=self.kinds if attempt < self.attempts - 1 else None,
        )

    def scene(self, index: int, attempt: int = 0) -> Scene:
        """Image ``index``."""
        rng = np.random.default_rng(self.entropy(index, attempt))
        concepts = self._concepts_of_block(index // BLOCK)
        size = choose_size(rng, self.long_side)
        background = self._background(rng, size, concepts)
        least = 0 if background.objects else 2
        wanted = self._choose_concepts(rng, list(concepts), int(rng.integers(least, 7)) or 1)
        cutouts = [self._cutout(rng, key, concepts[key]) for key in wanted]
        return paste_scene(rng, background, [one for one in cutouts if one is not None])

    def _index_concepts(self) -> dict[str, Integers]:
        """Numbers of the photos that show each concept otherwise than as a crowd."""
        coco = self.source.coco
        usable = ~(coco.is_crowd | coco.is_faulty)[coco.sorted_rows]
        categories = coco.category_of[coco.sorted_rows][usable]
        items = coco.items_of_sorted_rows[usable]
        found: dict[str, Integers] = {}
        for number in np.unique(categories).tolist():
            key = self.source.keys[self.source.names_of(coco.categories[number])[0]]
            shown = (found.get(key, items[:0]), np.unique(items[categories == number]))
            found[key] = np.sort(np.concatenate(shown))
        return dict(sorted(found.items()))

    def _concepts_of_block(self, block: int) -> dict[str, list[int]]:
        """Concept to the photos of a block that show it; rare ones are as common as others."""
        if self._block[0] != block:
            rng = np.random.default_rng(self.entropy(-1 - block, 0))
            keys = list(self._photos_with)
            chosen: dict[str, list[int]] = {}
            for _ in range(PHOTOS_PER_BLOCK):
                key = keys[int(rng.integers(len(keys)))]
                chosen.setdefault(key, []).append(int(rng.choice(self._photos_with[key])))
            self._block = (block, {key: sorted(set(items)) for key, items in chosen.items()})
        return self._block[1]

    def _choose_concepts(self, rng: Generator, keys: list[str], number: int) -> list[str]:
        """What is pasted, back to front; often several of one kind."""
        chosen = [keys[int(rng.integers(len(keys)))] for _ in range(number)]
        if number > 1 and rng.random() < 0.5:
            again = int(rng.integers(2, number + 1))
            chosen[:again] = [chosen[0]] * again
        return [chosen[int(i)] for i in rng.permutation(number)]

    def _cutout(self, rng: Generator, concept: str, items: list[int]) -> Cutout | None:
        """One cut-out of a concept; None where its photos show none that is large enough."""
        for _ in range(_TRIES):
            photo = self._photo(items[int(rng.integers(len(items)))])
            found = photo.cutouts.get(concept, ())
            whole = [one for one in found if one[1]]
            if whole and rng.random() < WHOLE_SHARE:
                return whole[int(rng.integers(len(whole)))][0]
            if found:
                return found[int(rng.integers(len(found)))][0]
        return None

    def _background(self, rng: Generator, size: Size, concepts: dict[str, list[int]]) -> Background:
        ground = str(rng.choice(_GROUNDS, p=_GROUND_SHARES))
        keys = list(concepts)
        for _ in range(_TRIES if ground != "drawn" else 0):
            items = concepts[keys[int(rng.integers(len(keys)))]]
            photo = self._photo(items[int(rng.integers(len(items)))])
            if ground == "blurred":
                return Background(_blurred(rng, photo.image, size))
            if ground == "empty" and photo.empty is not None:
                return Background(_shown(rng, photo.image, photo.empty, size))
            if ground == "photo" and len(photo.objects) <= MAX_OBJECTS_BELOW:
                return _photo_below(rng, photo, size)
        return Background(draw_background(rng, size))

    def _photo(self, item: int) -> _Photo:
        if item in self._kept:
            self._kept.move_to_end(item)
            return self._kept[item]
        photo = self._kept[item] = self._load(item)
        if len(self._kept) > PHOTOS_PER_BLOCK:
            self._kept.popitem(last=False)
        return photo

    def _load(self, item: int) -> _Photo:
        shown = self.source.row(item)
        image = load_annotated(shown.image, shown.size, shown.id)
        pixels = np.asarray(image)
        objects = [
            (self.source.keys[one.name], mask) for one in shown.classes for mask in one.masks
        ]
        cutouts: dict[str, list[tuple[Cutout, bool]]] = {}
        covered = np.zeros(shown.size, dtype=np.bool_)
        for concept, rle in objects:
            mask = decode_mask(rle)
            covered |= mask
            if _is_worth_cutting(mask):
                is_whole = not (mask[[0, -1]].any() or mask[:, [0, -1]].any())
                cutout = cut_out(concept, pixels, mask)
                cutouts.setdefault(concept, []).append((cutout, is_whole))
        crowds = [
            (self.source.keys[one.name], mask) for one in shown.classes for mask in one.crowds
        ]
        for _, rle in crowds:
            covered |= decode_mask(rle)
        return _Photo(
            image,
            {key: tuple(found) for key, found in cutouts.items()},
            tuple(objects),
            tuple(crowds),
            self.source.uncertain(shown),
            _largest_empty_part(covered),
        )


def _is_worth_cutting(mask: BoolMask) -> bool:
    """Whether an object is large enough to be told what it is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    sides = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    area = np.count_nonzero(mask)
    is_large = max(sides) >= LEAST_SIDE and area >= LEAST_SHARE * mask.size
    return bool(is_large and area >= LEAST_FILLED * sides[0] * sides[1])


def _largest_empty_part(covered: BoolMask) -> Box | None:
    """The largest box, (left, top, right, bottom), of a coarse grid's cells where nothing is.

    None where it is less than :data:`_LEAST_EMPTY` of the photo.
    """
    height, width = covered.shape
    rows, columns = (np.linspace(0, side, _CELLS + 1).astype(int) for side in covered.shape)
    sums = np.zeros((_CELLS + 1, _CELLS + 1), dtype=np.int64)
    per_cell = np.add.reduceat(np.add.reduceat(covered, rows[:-1], 0, np.int64), columns[:-1], 1)
    sums[1:, 1:] = per_cell.cumsum(axis=0).cumsum(axis=1)
    best, most = None, _LEAST_EMPTY * height * width
    for top in range(_CELLS):
        for bottom in range(top + 1, _CELLS + 1):
            filled = np.diff(sums[bottom] - sums[top]) > 0
            edges = np.flatnonzero(np.concatenate(([True], filled, [True])))
            start = int(np.argmax(np.diff(edges)))
            left, right = int(columns[edges[start]]), int(columns[edges[start + 1] - 1])
            area = (right - left) * (rows[bottom] - rows[top])
            if area > most:
                best, most = (left, int(rows[top]), right, int(rows[bottom])), area
    return best


def _shown(rng: Generator, image: Image.Image, box: Box, size: Size) -> NDArray[np.uint8]:
    """A random part of a part of a photo, as an image of a size, mirrored half the time."""
    cut = _random_cut(rng, box, size)
    pixels = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, box=cut))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _random_cut(rng: Generator, box: Box, size: Size) -> tuple[float, float, float, float]:
    """A part of a box with the format of a size, of at least 0.7 of the largest there is."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(width / size[1], height / size[0]) * rng.uniform(0.7, 1.0)
    left = box[0] + rng.uniform(0, width - scale * size[1])
    top = box[1] + rng.uniform(0, height - scale * size[0])
    return left, top, left + scale * size[1], top + scale * size[0]


def _blurred(rng: Generator, image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """A photo of which nothing but soft colours is left."""
    cells = int(rng.integers(4, 9))
    small = image.resize((cells, cells), Image.Resampling.BOX)
    return np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC))


def _photo_below(rng: Generator, photo: _Photo, size: Size) -> Background:
    """A whole photo, or most of it, with its own objects."""
    cut = _random_cut(rng, (0, 0, photo.image.width, photo.image.height), size)
    mirrored = rng.random() < 0.5
    pixels = np.asarray(photo.image.resize(size[::-1], Image.Resampling.BILINEAR, box=cut))
    objects, crowds, uncertain = [], [], set(photo.uncertain)

    def cut_mask(mask: BoolMask) -> BoolMask:
        image = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
        seen = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, box=cut)) >= 128
        return seen[:, ::-1] if mirrored else seen

    for concept, rle in photo.crowds:
        if (seen := cut_mask(decode_mask(rle))).any():
            crowds.append((concept, seen))
    for concept, rle in photo.objects:
        mask = decode_mask(rle)
        seen = cut_mask(mask)
        share = seen.sum() * (cut[2] - cut[0]) * (cut[3] - cut[1]) / (size[0] * size[1])
        if share >= mask.sum() / 3:
            objects.append((concept, seen))
        elif seen.any():
            uncertain.add(concept)
    if mirrored:
        pixels = pixels[:, ::-1]
    return Background(pixels, tuple(objects), frozenset(uncertain), tuple(crowds))
