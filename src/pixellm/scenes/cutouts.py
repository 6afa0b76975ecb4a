"""Photo scenes: annotated objects cut out of photos and pasted on backgrounds and other photos.

A cut-out is a sticker with soft edges; it is laid as the drawn stickers are, so that every mask is
exact, what is hidden included. This module knows arrays and names of concepts; where photos come
from, and what is asked about them, is decided elsewhere.

Frames: sizes are (height, width), in pixels; images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pixellm.masks import encode_mask
from pixellm.scenes.draw import (
    Canvas,
    Sticker,
    describe_object,
    halved_levels,
    place_sticker,
    recolour,
    turn_sticker,
)
from pixellm.scenes.scene import Scene, SceneObject, measure_object
from pixellm.types import BoolMask

LONG_SIDES = (0.1, 0.9)
"""Range of a cut-out's long side, in short sides of the image; small ones are as common."""

MOST_ENLARGED = 1.5
"""A cut-out is not shown larger than this many times its size in the photo."""

GONE = 0.03
"""Share of an object of the background up to which what is left of it counts as nothing."""

CLEAR = 0.5
"""Share of an object of the background from which on it is still called by its name."""

_SMALLEST_LEVEL = 48
_TURN_DEGREES = 12
_MARGIN = 3


@dataclass(frozen=True, slots=True, eq=False)
class Cutout:
    """One object of a photo; its levels have premultiplied soft alpha, from full size by halves."""

    concept: str
    levels: tuple[Image.Image, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """What cut-outs are pasted on.

    Attributes:
        pixels: the image.
        objects: concept and mask of each object that it shows itself.
        uncertain: concepts of which it shows more than that.
        crowds: concept and mask of each region whose objects are not told apart.
    """

    pixels: NDArray[np.uint8]
    objects: tuple[tuple[str, BoolMask], ...] = ()
    uncertain: frozenset[str] = frozenset()
    crowds: tuple[tuple[str, BoolMask], ...] = ()


def cut_out(concept: str, pixels: NDArray[np.uint8], mask: BoolMask) -> Cutout:
    """Cut an object, of a pixel at least, out of its photo; its edge fades over two pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    window = (
        slice(max(rows[0] - _MARGIN, 0), rows[-1] + 1 + _MARGIN),
        slice(max(columns[0] - _MARGIN, 0), columns[-1] + 1 + _MARGIN),
    )
    hard = Image.fromarray(mask[window].astype(np.uint8) * 255)
    soft = np.asarray(hard.filter(ImageFilter.GaussianBlur(1.0)), dtype=np.float32)
    # Outlines drawn by hand lie outside of the object rather than inside; half is reached later.
    alpha = np.clip((soft - 76) * (255 / 128), 0, 255).astype(np.uint8)
    rgba = Image.fromarray(np.dstack((pixels[window], alpha)), "RGBA")
    return Cutout(concept, halved_levels(rgba.convert("RGBa"), _SMALLEST_LEVEL))


def paste_scene(rng: Generator, background: Background, cutouts: Sequence[Cutout]) -> Scene:
    """Paste cut-outs, back to front, one after the other; one that finds no room is left out.

    The scene has every object with its visible mask, those of the background first. One of the
    background that is hidden in part, but not clear any more, makes its concept uncertain.
    """
    canvas = Canvas(background.pixels)
    crowded = rng.random() < 0.7
    laid = []
    for cutout in cutouts:
        short = min(background.pixels.shape[:2])
        most = min(MOST_ENLARGED * max(cutout.levels[0].size) / short, LONG_SIDES[1])
        low, high = np.log(LONG_SIDES[0]), np.log(max(most, LONG_SIDES[0]))
        prepare = partial(_prepare, rng, cutout)
        long_side = float(np.exp(rng.uniform(low, high)))
        if place_sticker(
            rng, canvas, prepare, long_side, smallest=LONG_SIDES[0] / 2, crowded=crowded
        ):
            laid.append(cutout.concept)
    image = (canvas.pixels + np.float32(0.5)).astype(np.uint8)
    pasted = [describe_object(concept, canvas, number) for number, concept in enumerate(laid)]
    bare = canvas.owner < 0
    kept, hidden = _left_of(background, bare)
    seen = [(concept, mask & bare) for concept, mask in background.crowds]
    crowds = tuple((concept, encode_mask(mask)) for concept, mask in seen if mask.any())
    return Scene(image, (*kept, *pasted), background.uncertain | hidden, crowds)


def _prepare(rng: Generator, cutout: Cutout, long_side: float) -> Sticker:
    angle = float(np.deg2rad(rng.normal() * _TURN_DEGREES / 2))
    values = turn_sticker(cutout.levels, long_side, angle, mirror=rng.random() < 0.5)
    saturation, gain = rng.uniform(0.6, 1.3), rng.uniform(0.75, 1.2) * rng.uniform(0.94, 1.06, 3)
    return recolour(values, (saturation * np.eye(3) + (1 - saturation) / 3) * gain)


def _left_of(background: Background, bare: BoolMask) -> tuple[list[SceneObject], frozenset[str]]:
    """Objects of the background still clear where it is bare, concepts of those that are not."""
    kept, hidden = [], set()
    for concept, mask in background.objects:
        visible = mask & bare
        share = np.count_nonzero(visible) / np.count_nonzero(mask)
        if share >= CLEAR:
            kept.append(measure_object(concept, visible, encode_mask(visible)))
        elif share > GONE:
            hidden.add(concept)
    return kept, frozenset(hidden)
