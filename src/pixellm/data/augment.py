"""Augmentation of an annotated image: mirrored, cut out and recoloured, with its masks.

A small set of images lasts longer when no image comes twice alike. Classes stay true to what
the cut shows, so questions have to be composed afterwards.

Frames: boxes are ``(left, top, right, bottom)`` in pixels of the original image.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import ImageEnhance

from pixellm.image_files import load_annotated
from pixellm.masks import decode_mask, encode_mask
from pixellm.types import RLE

if TYPE_CHECKING:
    from pixellm.data.annotated import AnnotatedClass, AnnotatedImage

SMALLEST_SIDE = 0.5
"""A cut keeps at least this share of each side."""

COLOR_RANGE = 0.3
"""Brightness, contrast and saturation change by at most this share."""

LEAST_KEPT = 0.25
"""A class of which a cut leaves a mask less than this share of its pixels is not asked for."""

Box = tuple[int, int, int, int]


def augment_image(annotated: AnnotatedImage, rng: random.Random) -> AnnotatedImage:
    """Mirror, cut and recolour an image at random; the result is as large as the cut.

    A class that lies outside of the cut is gone; one of which too little is left, or that could not
    be asked for before, stays known, but can't be asked for.
    """
    image = load_annotated(annotated.image, annotated.size, annotated.id)
    box, mirrored = _cut(rng, annotated.size), rng.random() < 0.5
    image = image.crop(box)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(1 - COLOR_RANGE, 1 + COLOR_RANGE))
    pixels = np.asarray(image)
    if mirrored:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    shown = []
    for one in annotated.classes:
        cut = _cut_class(one, box, mirrored)
        # What no mask can be had of may be in the cut all the same, and must not be denied.
        if cut.masks or cut.crowds or not one.askable:
            shown.append(cut)
    return replace(annotated, image=pixels, size=pixels.shape[:2], classes=tuple(shown))


def _cut(rng: random.Random, size: tuple[int, int]) -> Box:
    """A box of random sides at a random position."""
    height, width = (max(1, round(side * rng.uniform(SMALLEST_SIDE, 1))) for side in size)
    top, left = rng.randint(0, size[0] - height), rng.randint(0, size[1] - width)
    return left, top, left + width, top + height


def _cut_class(one: AnnotatedClass, box: Box, mirrored: bool) -> AnnotatedClass:
    """What a cut shows of a class; masks outside of it are gone."""
    masks, shares = _cut_masks(one.masks, box, mirrored)
    crowds, crowd_shares = _cut_masks(one.crowds, box, mirrored)
    whole_enough = all(share >= LEAST_KEPT for share in shares + crowd_shares)
    return replace(one, masks=masks, crowds=crowds, askable=one.askable and whole_enough)


def _cut_masks(
    rles: Sequence[RLE], box: Box, mirrored: bool
) -> tuple[tuple[RLE, ...], list[float]]:
    """The masks that a cut shows any of, and the share of its pixels that is left of each."""
    left, top, right, bottom = box
    kept: list[RLE] = []
    shares: list[float] = []
    for rle in rles:
        mask = decode_mask(rle)
        part = mask[top:bottom, left:right]
        if part.any():
            kept.append(encode_mask(part[:, ::-1] if mirrored else part))
            shares.append(float(part.sum() / mask.sum()))
    return tuple(kept), shares
