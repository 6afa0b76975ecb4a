"""Backgrounds: what a scene is painted on, from flat colour to crops of photos.

Everything is drawn here or cut from images that scikit-image carries in its wheel (public
domain or CC0, see THIRD_PARTY.md). Images that show an object somebody could ask about are
used only blurred beyond recognition.

Frames: sizes are (height, width) in pixels, images (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pixellm.masks import Size

Pixels = NDArray[np.uint8]
Colour = NDArray[np.float64]
Field = NDArray[np.float32]

PLAIN_PHOTOS = {
    "brick.png": None,
    "grass.png": None,
    "gravel.png": None,
    "ihc.png": None,
    "retina.jpg": (350, 350, 1060, 1060),
    "hubble_deep_field.jpg": None,
    "coffee.png": (0, 0, 150, 150),
}
"""Images without any everyday object, with the box (left, top, right, bottom) that is used."""

BLURRED_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
"""Images that show objects: used only after a blur that leaves nothing but soft colour."""

_KINDS = ("gradient", "flat", "stripes", "checks", "dots", "wood", "clouds", "photo", "blurred")
_WEIGHTS = (0.16, 0.10, 0.08, 0.06, 0.06, 0.08, 0.14, 0.20, 0.12)
_POOL_SIDE = 384


def draw_background(rng: Generator, size: Size) -> Pixels:
    """One background of a random kind.

    Its contrast is held below that of the stickers, so that every sticker stays visible.
    """
    kind = _KINDS[int(rng.choice(len(_KINDS), p=_WEIGHTS))]
    if kind in ("photo", "blurred"):
        return _crop_photo(rng, size, _pool(kind))
    if kind == "gradient":
        return _blend(_slope(rng, size), _colour(rng), _colour(rng))
    if kind == "clouds":
        return _clouds(rng, size)
    if kind == "wood":
        return _blend(_wood_field(rng, size), *_close_pair(rng))
    if kind == "flat":
        return _grainy(rng, size)
    return _blend(_pattern(rng, size, kind), *_close_pair(rng))


def _colour(rng: Generator) -> Colour:
    """A colour that is neither black nor fully saturated, (3,) in 0..255."""
    value, grey = rng.uniform(80, 250), rng.uniform(0, 1)
    return value * (grey + (1 - grey) * rng.uniform(0.45, 1.0, 3))


def _close_pair(rng: Generator) -> tuple[Colour, Colour]:
    """Two colours of one pattern, 15 to 45 steps apart."""
    first = _colour(rng)
    away = rng.normal(size=3)
    away *= rng.uniform(15, 45) / max(float(np.abs(away).max()), 1e-6)
    return first, np.clip(first + away, 40, 255)


def _grid(size: Size) -> tuple[Field, Field]:
    """Rows (H, 1) and columns (1, W) in units of the short side."""
    rows, columns = (np.arange(side, dtype=np.float32) / np.float32(min(size)) for side in size)
    return rows[:, None], columns[None, :]


def _blend(field: Field, first: Colour, second: Colour) -> Pixels:
    """Colours between two, by a field in 0..1, in 256 steps."""
    steps = np.linspace(first, second, 256).astype(np.uint8)
    index = (field * 255).astype(np.uint8)
    return _look_up(np.broadcast_to(index[..., None], (*field.shape, 3)), steps)


def _look_up(index: NDArray[np.uint8], table: NDArray[np.uint8]) -> Pixels:
    """Replace every channel's values, (H, W, 3), by its column of the table, (256, 3)."""
    image = np.empty(index.shape, dtype=np.uint8)
    for channel in range(3):
        image[..., channel] = table[:, channel][index[..., channel]]
    return image


def _slanted(rng: Generator, size: Size) -> Field:
    """Distance along a random direction, (H, W), in units of the short side."""
    rows, columns = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    return np.float32(np.cos(angle)) * columns + np.float32(np.sin(angle)) * rows


def _slope(rng: Generator, size: Size) -> Field:
    """A ramp in a random direction, or rings around a random point, in 0..1."""
    if rng.random() < 0.5:
        field = _slanted(rng, size)
    else:
        rows, columns = _grid(size)
        middle = rng.uniform(0, 1, 2).astype(np.float32)
        field = np.hypot(rows - middle[0], columns - middle[1])
    field -= field.min()
    field /= max(float(field.max()), 1e-6)
    return field


def _pattern(rng: Generator, size: Size, kind: str) -> Field:
    """Stripes, checks or dots as a field of 0 and 1."""
    period = np.float32(rng.uniform(0.06, 0.25))
    if kind == "stripes":
        return (_slanted(rng, size) / period % 1 < rng.uniform(0.3, 0.7)).astype(np.float32)
    rows, columns = _grid(size)
    if kind == "checks":
        return (rows // period + columns // period) % 2
    radius = rng.uniform(0.15, 0.4)
    inside = np.hypot(rows / period % 1 - 0.5, columns / period % 1 - 0.5) < radius
    return inside.astype(np.float32)


def _wood_field(rng: Generator, size: Size) -> Field:
    """Wavy lines, as planed wood shows them, in 0..1."""
    along, across = _grid(size)
    if rng.random() < 0.5:
        along, across = across, along
    bend, rate, shift = rng.uniform((0.02, 1, 0), (0.12, 4, 6)).astype(np.float32)
    knots = Image.fromarray(rng.random((3, 3), dtype=np.float32))
    noise: Field = np.asarray(knots.resize(size[::-1], Image.Resampling.BILINEAR))
    bent = along + bend * np.sin(across * rate + shift) + noise * np.float32(0.12)
    phase = bent * np.float32(rng.uniform(30, 90))
    return np.float32(0.5) + np.float32(0.5) * np.sin(phase)


def _clouds(rng: Generator, size: Size) -> Pixels:
    cells = int(rng.integers(3, 12))
    spread = rng.uniform(20, 60)
    knots = _colour(rng) + rng.uniform(-spread, spread, (cells, cells, 3))
    small = Image.fromarray(np.clip(knots, 40, 255).astype(np.uint8))
    return np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC))


def _grainy(rng: Generator, size: Size) -> Pixels:
    """One colour with grey noise, cut from a fixed sheet."""
    sheet = _grain_sheet()
    rows, columns = (
        (np.arange(side) + int(rng.integers(edge))) % edge
        for side, edge in zip(size, sheet.shape, strict=True)
    )
    noise = sheet.take(rows, axis=0).take(columns, axis=1) * np.float32(rng.uniform(1, 10))
    values = noise[..., None] + _colour(rng).astype(np.float32)
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


@cache
def _grain_sheet() -> Field:
    return np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)


def _crop_photo(rng: Generator, size: Size, pool: tuple[Image.Image, ...]) -> Pixels:
    """A random part of a random photo, mirrored half the time, in lighter or darker tones."""
    photo = pool[int(rng.integers(len(pool)))]
    height, width = size
    scale = rng.uniform(0.45, 1.0) * min(photo.width / width, photo.height / height)
    left = rng.uniform(0, photo.width - scale * width)
    top = rng.uniform(0, photo.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    crop = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR, box=box))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    gain = rng.uniform(0.5, 0.9, 3) if rng.random() < 0.5 else np.full(3, rng.uniform(0.5, 0.9))
    tones = np.arange(256)[:, None] * gain + rng.uniform(30, 90)
    return _look_up(crop, np.clip(tones, 0, 255).astype(np.uint8))


@cache
def _pool(kind: str) -> tuple[Image.Image, ...]:
    if kind == "photo":
        return tuple(_load_photo(name, box) for name, box in PLAIN_PHOTOS.items())
    blur = ImageFilter.GaussianBlur(_POOL_SIDE / 14)
    return tuple(_load_photo(name, None).filter(blur) for name in BLURRED_PHOTOS)


def _load_photo(name: str, box: tuple[int, int, int, int] | None) -> Image.Image:
    """An image of scikit-image's wheel, RGB, short side :data:`_POOL_SIDE`."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ImportError(
            "Drawing scenes needs the package scikit-image: pip install 'pixellm[scenes]'."
        )
    with Image.open(Path(spec.origin).parent / "data" / name) as image:
        photo = image.convert("RGB").crop(box or (0, 0, *image.size))
    scale = _POOL_SIDE / min(photo.size)
    size = (round(photo.width * scale), round(photo.height * scale))
    return photo.resize(size, Image.Resampling.LANCZOS)
