"""Drawing: concepts and a sticker style in, an image with exact visible masks out.

A sticker is scaled, turned, mirrored and tinted, then laid on the background where it hides too
little of what lies below to matter. A pixel belongs to the topmost sticker whose alpha is at
least one half there.

Frames: sizes are (height, width), boxes (x, y, width, height), in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from pixellm.masks import Size, encode_mask
from pixellm.scenes.artwork import STICKER_SIDE, StickerStyle
from pixellm.scenes.backgrounds import draw_background
from pixellm.scenes.scene import Scene, SceneObject
from pixellm.types import BoolMask

if TYPE_CHECKING:
    from pixellm.scenes.knowledge import Concept

OBJECT_COUNTS: Mapping[int, float] = {2: 0.15, 3: 0.25, 4: 0.25, 5: 0.20, 6: 0.15}
"""How often a scene has how many objects."""

MIN_VISIBLE = 0.65
"""Share of an object's pixels that stays uncovered, at least."""

REPEAT_SHARE = 0.3
"""Share of scenes with two or three objects of one concept."""

LONG_SIDE = (0.18, 0.42)
"""Range of a sticker's long side, in short sides of the image."""

Plane = NDArray[np.float32]
Window = tuple[slice, slice]

_REPEATS_WHERE_POSSIBLE = REPEAT_SHARE / (1 - OBJECT_COUNTS[2])
_SIZES = 6
_PLACES = 14
_ALONE = 0.98
_MIN_CONTRAST = 24.0


@dataclass(frozen=True, slots=True)
class Sticker:
    """A sticker ready to be laid.

    Attributes:
        colours: (h, w, 3) in 0..255, premultiplied with alpha.
        alpha: (h, w) in 0..1.
        solid: (h, w), where alpha is at least one half.
    """

    colours: Plane
    alpha: Plane
    solid: BoolMask


class Canvas:
    """The image in the making, with the owner of every pixel: -1 or an object's number."""

    def __init__(self, background: NDArray[np.uint8]) -> None:
        self.pixels: Plane = background.astype(np.float32)
        self.owner: NDArray[np.int8] = np.full(self.pixels.shape[:2], -1, dtype=np.int8)
        self.windows: list[Window] = []
        self.full: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.visible: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def fits(
        self, sticker: Sticker, window: Window, min_visible: float, min_contrast: float
    ) -> bool:
        """Whether a sticker may be laid there: what is below stays visible, and looks different.

        Of each object below the share ``min_visible`` stays uncovered; the sticker's pixels change
        by ``min_contrast`` in the median, the largest of the three channels in 0..255.
        """
        kept = self.visible - self._hidden_by(sticker, window)
        if (kept < min_visible * self.full).any():
            return False
        step = (slice(None, None, 3), slice(None, None, 3))
        change = np.abs(sticker.colours[step] - self.pixels[window][step])[sticker.solid[step]]
        return change.size > 0 and float(np.median(change.max(axis=-1))) >= min_contrast

    def lay(self, sticker: Sticker, window: Window) -> None:
        """Paint the sticker there and make its solid pixels its own."""
        self.visible -= self._hidden_by(sticker, window)
        self.pixels[window] *= 1 - sticker.alpha[..., None]
        self.pixels[window] += sticker.colours
        self.owner[window][sticker.solid] = len(self.windows)
        self.windows.append(window)
        self.full = np.append(self.full, np.count_nonzero(sticker.solid))
        self.visible = np.append(self.visible, self.full[-1])

    def _hidden_by(self, sticker: Sticker, window: Window) -> NDArray[np.int64]:
        """How many pixels of each object the sticker would hide."""
        below = self.owner[window][sticker.solid]
        return np.bincount(below[below >= 0], minlength=len(self.windows))


def draw_scene(
    rng: Generator, concepts: Sequence[Concept], style: StickerStyle, *, size: Size = (256, 256)
) -> Scene:
    """Draw one scene with one sticker per entry of ``concepts``, back to front, repeats allowed.

    Every object lies wholly inside and stays visible to at least :data:`MIN_VISIBLE` of its pixels.
    FileNotFoundError where the style lacks a concept, ValueError where stickers find no place.
    """
    canvas = Canvas(draw_background(rng, size))
    crowded = rng.random() < 0.4
    for concept in concepts:
        prepare = partial(_prepare, rng, style, concept.openmoji)
        if not place_sticker(rng, canvas, prepare, rng.uniform(*LONG_SIDE), crowded=crowded):
            raise ValueError(
                f"{len(concepts)} stickers find no room in an image of {size[0]} x {size[1]} "
                "pixels; ask for fewer objects or a larger image."
            )
    image = (canvas.pixels + np.float32(0.5)).astype(np.uint8)
    objects = (describe_object(concept.key, canvas, i) for i, concept in enumerate(concepts))
    return Scene(image=image, objects=tuple(objects))


def choose_concepts(
    rng: Generator, concepts: Sequence[Concept], num_objects: int, include: Sequence[Concept] = ()
) -> list[Concept]:
    """Pick what a scene shows: distinct concepts, in some scenes one of them two or three times.

    As many of ``include``, distinct ones too, as there is room for are shown in any case; the one
    repeated is of them, if any. In random order.
    """
    repeats = 0
    if num_objects > 2 and rng.random() < _REPEATS_WHERE_POSSIBLE:
        repeats = min(int(rng.choice([1, 1, 2])), num_objects - 2)
    chosen = list(include[: num_objects - repeats])
    taken = {concept.key for concept in chosen}
    for i in rng.choice(len(concepts), size=min(num_objects, len(concepts)), replace=False):
        if len(chosen) < num_objects - repeats and concepts[int(i)].key not in taken:
            chosen.append(concepts[int(i)])
    chosen += [chosen[0]] * (num_objects - len(chosen))
    return [chosen[int(i)] for i in rng.permutation(num_objects)]


def choose_object_count(rng: Generator) -> int:
    """How many objects a scene has, as :data:`OBJECT_COUNTS` weighs it."""
    return int(rng.choice(list(OBJECT_COUNTS), p=list(OBJECT_COUNTS.values())))


def choose_size(rng: Generator, long_side: int) -> Size:
    """(height, width): square in 70 % of cases, else a usual photo format; both multiples of 2."""
    if rng.random() < 0.7:
        return long_side, long_side
    ratio = float(rng.choice([4 / 3, 3 / 2, 16 / 9, 5 / 4]))
    short = 2 * round(long_side / ratio / 2)
    return (short, long_side) if rng.random() < 0.6 else (long_side, short)


def place_sticker(
    rng: Generator,
    canvas: Canvas,
    prepare: Callable[[float], Sticker],
    long_side: float,
    *,
    smallest: float = LONG_SIDE[0],
    crowded: bool,
) -> bool:
    """Lay one sticker; tries many places, then smaller sizes. Whether a place was found.

    The smaller, the less contrast is asked for: a grey object on a grey wall has no better place.

    ``prepare`` makes the sticker from its long side in pixels; ``long_side``, at first, and
    ``smallest`` are in short sides of the image. Where it is crowded, a sticker may hide much of
    what lies below from the start.
    """
    height, width = canvas.owner.shape
    for shrunk in range(_SIZES):
        sticker = prepare(min(height, width) * max(long_side * 0.85**shrunk, smallest))
        min_visible = MIN_VISIBLE if crowded or shrunk > 2 else _ALONE
        min_contrast = _MIN_CONTRAST * (1 - shrunk / (_SIZES - 1))
        for _ in range(_PLACES):
            high, wide = sticker.solid.shape
            top = int(rng.integers(height - high + 1))
            left = int(rng.integers(width - wide + 1))
            window = (slice(top, top + high), slice(left, left + wide))
            if canvas.fits(sticker, window, min_visible, min_contrast):
                canvas.lay(sticker, window)
                return True
    return False


def _prepare(rng: Generator, style: StickerStyle, code: str, long_side: float) -> Sticker:
    """Scale, turn, mirror and tint one sticker; cut to its solid part."""
    limit = 40 if rng.random() < 0.15 else 15
    angle = float(np.deg2rad(rng.uniform(-limit, limit)))
    levels = _sticker_levels(style, code)
    turned = turn_sticker(levels, long_side, angle, mirror=rng.random() < 0.15)
    saturation, brightness = rng.uniform(0.8, 1.15), rng.uniform(0.85, 1.1)
    return recolour(turned, brightness * (saturation * np.eye(3) + (1 - saturation) / 3))


def turn_sticker(
    levels: Sequence[Image.Image], long_side: float, angle: float, *, mirror: bool
) -> NDArray[np.uint8]:
    """Scale, turn and mirror a sticker, and cut it to its solid part: (h, w, 4) premultiplied RGBA.

    ``levels`` have it with premultiplied alpha, from full size down by halves; ``long_side`` is in
    pixels, before turning, ``angle`` in radians.
    """
    level = next((one for one in levels if max(one.size) < 2 * long_side), levels[-1])
    values = np.asarray(_turn(level, long_side / max(level.size), angle, mirror=mirror))
    solid = values[..., 3] >= 128
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _turn(level: Image.Image, scale: float, angle: float, *, mirror: bool) -> Image.Image:
    """Scale and rotate about the centre in one resampling; the result holds all of it."""
    cos, sin = abs(np.cos(angle)) * scale, abs(np.sin(angle)) * scale
    width = int(np.ceil(level.width * cos + level.height * sin)) + 1
    height = int(np.ceil(level.width * sin + level.height * cos)) + 1
    a, b = float(np.cos(angle)) / scale, float(np.sin(angle)) / scale
    flip = -1 if mirror else 1
    x0 = level.width / 2 - flip * (a * width / 2 + b * height / 2)
    y0 = level.height / 2 + b * width / 2 - a * height / 2
    matrix = (flip * a, flip * b, x0, -b, a, y0)
    return level.transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


def recolour(values: NDArray[np.uint8], mix: NDArray[np.float64]) -> Sticker:
    """A sticker of (h, w, 4) premultiplied RGBA whose colours a (3, 3) matrix mixes."""
    rgba = values.astype(np.float32)
    colours, alpha = rgba[..., :3] @ mix.astype(np.float32), rgba[..., 3]
    np.clip(colours, 0, alpha[..., None], out=colours)
    return Sticker(colours, alpha / np.float32(255), values[..., 3] >= 128)


@lru_cache(maxsize=1024)
def _sticker_levels(style: StickerStyle, code: str) -> tuple[Image.Image, ...]:
    """A sticker with premultiplied alpha at full, half, quarter size: at most 0.14 MB each."""
    return halved_levels(style.render(code).convert("RGBa"), STICKER_SIDE // 4)


def halved_levels(sticker: Image.Image, smallest: int) -> tuple[Image.Image, ...]:
    """A sticker at full size, half, quarter and so on, until its long side is small enough."""
    levels = [sticker]
    while max(levels[-1].size) > smallest and min(levels[-1].size) > 8:
        levels.append(levels[-1].reduce(2))
    return tuple(levels)


def describe_object(key: str, canvas: Canvas, number: int) -> SceneObject:
    """Mask, box, area and centroid of an object's visible part."""
    window = canvas.windows[number]
    mask = np.zeros(canvas.owner.shape, dtype=np.bool_)
    mask[window] = canvas.owner[window] == number
    rows, columns = np.nonzero(mask[window])
    top, left = rows.min() + window[0].start, columns.min() + window[1].start
    return SceneObject(
        concept=key,
        mask=encode_mask(mask),
        box=(int(left), int(top), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1),
        area=len(rows),
        center=(float(columns.mean()) + window[1].start, float(rows.mean()) + window[0].start),
    )
