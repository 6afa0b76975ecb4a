"""Drawing: concepts and a sticker style in, a picture with exact visible masks out.

A sticker is scaled, turned, mirrored and tinted, then laid on the background where it hides too
little of what lies below to matter. A pixel belongs to the topmost sticker whose alpha is at
least one half there. This module knows nothing of names, questions or data sets.

Frames: sizes are (height, width), boxes (x, y, width, height), in pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixellm.data.scenes.artwork import STICKER_SIDE, StickerStyle, load_style
from pixellm.data.scenes.backgrounds import draw_background
from pixellm.data.scenes.scene import Scene, SceneObject
from pixellm.masks import encode_mask

if TYPE_CHECKING:
    from pixellm.data.scenes.knowledge import Concept

OBJECT_COUNTS: Mapping[int, float] = {2: 0.15, 3: 0.25, 4: 0.25, 5: 0.20, 6: 0.15}
"""How often a scene has how many objects."""

MIN_VISIBLE = 0.65
"""Share of an object's pixels that stays uncovered, at least."""

REPEAT_SHARE = 0.3
"""Share of scenes with two or three objects of one concept."""

LONG_SIDE = (0.18, 0.42)
"""Range of a sticker's long side, in short sides of the picture."""

_TRIES = 14
_MIN_CONTRAST = 24.0


@dataclass(frozen=True, slots=True)
class _Placed:
    """A sticker ready to be laid: premultiplied colours (h, w, 3), alpha (h, w) in 0..1."""

    colours: NDArray[np.float32]
    alpha: NDArray[np.float32]

    @property
    def solid(self) -> NDArray[np.bool_]:
        return self.alpha >= 0.5


class _Canvas:
    """The picture in the making, with the owner of every pixel: -1 or an object's number."""

    def __init__(self, background: NDArray[np.uint8]) -> None:
        self.pixels = background.astype(np.float32)
        self.owner = np.full(background.shape[:2], -1, dtype=np.int8)
        self.full: list[int] = []
        self.visible: list[int] = []

    def fits(self, sticker: _Placed, top: int, left: int, min_visible: float) -> bool:
        """Whether every object below keeps ``min_visible`` of itself, and contrast is enough."""
        solid = sticker.solid
        window = self._window(solid.shape, top, left)
        below = self.owner[window][solid]
        hidden = np.bincount(below[below >= 0], minlength=len(self.full))
        kept = np.array(self.visible) - hidden
        if (kept < min_visible * np.array(self.full)).any():
            return False
        change = np.abs(sticker.colours - self.pixels[window])[solid].max(axis=-1)
        return float(np.median(change)) >= _MIN_CONTRAST

    def lay(self, sticker: _Placed, top: int, left: int) -> None:
        """Paint the sticker with its top left corner at (left, top)."""
        solid = sticker.solid
        window = self._window(solid.shape, top, left)
        below = self.owner[window][solid]
        hidden = np.bincount(below[below >= 0], minlength=len(self.full))
        self.visible = [before - int(now) for before, now in zip(self.visible, hidden, strict=True)]
        self.pixels[window] *= 1 - sticker.alpha[..., None]
        self.pixels[window] += sticker.colours
        self.owner[window][solid] = len(self.full)
        self.full.append(int(solid.sum()))
        self.visible.append(self.full[-1])

    @staticmethod
    def _window(shape: tuple[int, ...], top: int, left: int) -> tuple[slice, slice]:
        return slice(top, top + shape[0]), slice(left, left + shape[1])


def draw_scene(
    rng: np.random.Generator,
    concepts: Sequence[Concept],
    style: StickerStyle,
    *,
    size: tuple[int, int] = (256, 256),
) -> Scene:
    """Draw one scene with one sticker per entry of ``concepts``, back to front.

    Args:
        rng: the only source of chance.
        concepts: what to draw, repeats allowed; the style must cover each.
        style: the artwork.
        size: (height, width) of the picture in pixels.

    Returns:
        The picture and its objects. Every object lies wholly inside and stays visible to at
        least :data:`MIN_VISIBLE` of its pixels.

    Raises:
        FileNotFoundError: the style lacks one of the concepts.
        ValueError: a picture too small, or too many objects, for every sticker to find a place.
    """
    canvas = _Canvas(draw_background(rng, size))
    crowded = rng.random() < 0.4
    for concept in concepts:
        if not _place(rng, canvas, style, concept.openmoji, crowded):
            raise ValueError(
                f"{len(concepts)} stickers find no room in a picture of {size[0]} x {size[1]} "
                "pixels; ask for fewer objects or a larger picture."
            )
    image = np.clip(np.rint(canvas.pixels), 0, 255).astype(np.uint8)
    objects = [
        _describe(concept.key, canvas.owner == number) for number, concept in enumerate(concepts)
    ]
    return Scene(image=image, objects=tuple(objects))


def choose_concepts(
    rng: np.random.Generator, concepts: Sequence[Concept], num_objects: int
) -> list[Concept]:
    """Pick what a scene shows: distinct concepts, in some scenes one of them two or three times."""
    repeats = 0
    if num_objects > 2 and rng.random() < REPEAT_SHARE * 1.18:
        repeats = min(int(rng.choice([1, 1, 2])), num_objects - 1)
    picked = rng.choice(
        len(concepts), size=min(num_objects - repeats, len(concepts)), replace=False
    )
    chosen = [concepts[int(i)] for i in picked]
    chosen += [chosen[0]] * (num_objects - len(chosen))
    order = rng.permutation(len(chosen))
    return [chosen[int(i)] for i in order]


def choose_object_count(rng: np.random.Generator) -> int:
    """How many objects a scene has, as :data:`OBJECT_COUNTS` weighs it."""
    return int(rng.choice(list(OBJECT_COUNTS), p=list(OBJECT_COUNTS.values())))


def choose_size(rng: np.random.Generator, long_side: int) -> tuple[int, int]:
    """(height, width): square in 70 % of cases, else a usual photo format; both multiples of 2."""
    if rng.random() < 0.7:
        return long_side, long_side
    ratio = float(rng.choice([4 / 3, 3 / 2, 16 / 9, 5 / 4]))
    short = 2 * round(long_side / ratio / 2)
    return (short, long_side) if rng.random() < 0.6 else (long_side, short)


def _place(
    rng: np.random.Generator, canvas: _Canvas, style: StickerStyle, code: str, crowded: bool
) -> bool:
    """Lay one sticker; tries many places, then smaller sizes. False where none was found."""
    height, width = canvas.owner.shape
    long_side = rng.uniform(*LONG_SIDE) * min(height, width)
    for attempt in range(5 * _TRIES):
        if attempt % _TRIES == 0:
            smallest = LONG_SIDE[0] * min(height, width)
            sticker = _prepare(
                rng, style, code, max(long_side * 0.85 ** (attempt // _TRIES), smallest)
            )
        rows, columns = height - sticker.alpha.shape[0], width - sticker.alpha.shape[1]
        top, left = int(rng.integers(rows + 1)), int(rng.integers(columns + 1))
        alone = not crowded and attempt < 3 * _TRIES
        if canvas.fits(sticker, top, left, 0.98 if alone else MIN_VISIBLE):
            canvas.lay(sticker, top, left)
            return True
    return False


def _prepare(rng: np.random.Generator, style: StickerStyle, code: str, long_side: float) -> _Placed:
    """Scale, turn, mirror and tint one sticker; cropped to its solid part."""
    limit = 40 if rng.random() < 0.15 else 15
    angle = np.deg2rad(rng.uniform(-limit, limit))
    levels = _sticker_levels(style.name, code)
    level = next((one for one in levels if max(one.size) < 2 * long_side), levels[-1])
    scale = long_side / max(level.size)
    turned = _turn(level, scale, angle, mirror=rng.random() < 0.15)
    values = np.asarray(turned, dtype=np.float32) / 255
    alpha, colours = values[..., 3], _tint(rng, values)
    rows, columns = np.flatnonzero((alpha >= 0.5).any(1)), np.flatnonzero((alpha >= 0.5).any(0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return _Placed(colours[window], alpha[window])


def _turn(level: Image.Image, scale: float, angle: float, *, mirror: bool) -> Image.Image:
    """Scale and rotate about the centre in one resampling; the result holds all of it."""
    cos, sin = abs(np.cos(angle)) * scale, abs(np.sin(angle)) * scale
    width = int(np.ceil(level.width * cos + level.height * sin)) + 1
    height = int(np.ceil(level.width * sin + level.height * cos)) + 1
    a, b = np.cos(angle) / scale, np.sin(angle) / scale
    flip = -1 if mirror else 1
    x0 = level.width / 2 - flip * (a * width / 2 + b * height / 2)
    y0 = level.height / 2 + b * width / 2 - a * height / 2
    matrix = (flip * a, flip * b, x0, -b, a, y0)
    return level.transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


def _tint(rng: np.random.Generator, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Jitter saturation and brightness; (h, w, 4) premultiplied in 0..1 to (h, w, 3) in 0..255."""
    alpha, colours = values[..., 3:], values[..., :3]
    grey = colours.mean(axis=-1, keepdims=True)
    saturation, brightness = rng.uniform(0.8, 1.15), rng.uniform(0.85, 1.1)
    mixed = np.float32(brightness) * (grey + np.float32(saturation) * (colours - grey))
    return 255 * np.clip(mixed, 0, alpha)


@lru_cache(maxsize=1024)
def _sticker_levels(style: str, code: str) -> tuple[Image.Image, ...]:
    """A sticker with premultiplied alpha at full, half, quarter size: at most 0.14 MB each."""
    full = load_style(style).render(code).convert("RGBa")
    levels = [full]
    while max(levels[-1].size) > STICKER_SIDE // 4 and min(levels[-1].size) > 8:
        levels.append(levels[-1].reduce(2))
    return tuple(levels)


def _describe(key: str, mask: NDArray[np.bool_]) -> SceneObject:
    """Mask, box, area and centroid of an object's visible part."""
    rows, columns = np.nonzero(mask)
    left, top = int(columns.min()), int(rows.min())
    return SceneObject(
        concept=key,
        mask=encode_mask(mask),
        box=(left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top),
        area=len(rows),
        center=(float(columns.mean()), float(rows.mean())),
    )
