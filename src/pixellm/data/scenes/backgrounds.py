"""Backgrounds: what a scene is painted on, from flat colour to crops of photos.

Everything is drawn here or cut from pictures that scikit-image carries in its wheel (public
domain or CC0, see THIRD_PARTY.md). Pictures that show a thing somebody could ask about are
used only blurred beyond recognition. This module knows nothing of stickers or concepts.

Frames: sizes are (height, width) in pixels, pictures (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Picture = NDArray[np.uint8]
Colour = NDArray[np.float32]

PLAIN_PHOTOS = {
    "brick.png": None,
    "grass.png": None,
    "gravel.png": None,
    "moon.png": None,
    "ihc.png": None,
    "retina.jpg": (350, 350, 1060, 1060),
    "hubble_deep_field.jpg": None,
    "coffee.png": (0, 0, 150, 150),
    "rocket.jpg": (110, 0, 300, 190),
}
"""Pictures without any everyday object, with the box (left, top, right, bottom) that is used."""

BLURRED_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
"""Pictures that show objects: used only after a blur that leaves nothing but soft colour."""

_KINDS = ("gradient", "flat", "stripes", "checks", "dots", "wood", "clouds", "photo", "blurred")
_WEIGHTS = (0.16, 0.10, 0.08, 0.06, 0.06, 0.08, 0.14, 0.20, 0.12)
_POOL_SIDE = 384


def draw_background(rng: np.random.Generator, size: tuple[int, int]) -> Picture:
    """One background of a random kind.

    Its contrast is held below that of the stickers, so that every sticker stays visible.

    Raises:
        ImportError: the packages of the ``scenes`` extra are missing.
    """
    kind = _KINDS[int(rng.choice(len(_KINDS), p=_WEIGHTS))]
    if kind == "photo":
        return _crop_photo(rng, size, _plain_pool())
    if kind == "blurred":
        return _crop_photo(rng, size, _blurred_pool())
    if kind == "gradient":
        return _to_picture(_gradient(rng, size))
    if kind == "clouds":
        return _clouds(rng, size)
    if kind == "wood":
        return _to_picture(_blend(_wood_field(rng, size), *_close_pair(rng)))
    if kind == "flat":
        return _to_picture(_colour(rng) + _grain(rng, size, float(rng.uniform(1, 10))))
    return _to_picture(_blend(_pattern(rng, size, kind), *_close_pair(rng)))


def _colour(rng: np.random.Generator) -> Colour:
    """A colour that is neither black nor fully saturated."""
    value = rng.uniform(80, 250)
    tint = rng.uniform(0.45, 1.0, 3)
    grey = rng.uniform(0, 1)
    return (value * (grey + (1 - grey) * tint)).astype(np.float32)


def _close_pair(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Two colours of one pattern, 15 to 45 steps apart."""
    first = _colour(rng)
    away = rng.normal(size=3)
    away *= rng.uniform(15, 45) / max(float(np.abs(away).max()), 1e-6)
    return first, np.clip(first + away, 40, 255).astype(np.float32)


def _grid(size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows (H, 1) and columns (1, W) in units of the short side."""
    short = min(size)
    rows = (np.arange(size[0], dtype=np.float32) / short)[:, None]
    return rows, (np.arange(size[1], dtype=np.float32) / short)[None, :]


def _slanted(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """Distance along a random direction, (H, W), in units of the short side."""
    rows, columns = _grid(size)
    angle = np.float32(rng.uniform(0, 2 * np.pi))
    return np.cos(angle) * columns + np.sin(angle) * rows


def _blend(field: NDArray[np.float32], first: Colour, second: Colour) -> NDArray[np.float32]:
    return first + field[..., None] * (second - first)


def _gradient(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    if rng.random() < 0.5:
        field = _slanted(rng, size)
    else:
        rows, columns = _grid(size)
        field = np.hypot(rows - rng.uniform(0, 1), columns - rng.uniform(0, 1)).astype(np.float32)
    field = field - field.min()
    return _blend(field / max(float(field.max()), 1e-6), _colour(rng), _colour(rng))


def _pattern(rng: np.random.Generator, size: tuple[int, int], kind: str) -> NDArray[np.float32]:
    """Stripes, checks or dots as a field of 0 and 1."""
    period = float(rng.uniform(0.06, 0.25))
    along = _slanted(rng, size) / period
    if kind == "stripes":
        return (along % 1 < rng.uniform(0.3, 0.7)).astype(np.float32)
    rows, columns = _grid(size)
    if kind == "checks":
        return ((rows // period + columns // period) % 2).astype(np.float32)
    radius = rng.uniform(0.15, 0.4)
    inside = np.hypot(rows / period % 1 - 0.5, columns / period % 1 - 0.5) < radius
    return inside.astype(np.float32)


def _wood_field(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """Wavy lines, as planed wood shows them, in 0..1."""
    rows, columns = _grid(size)
    if rng.random() < 0.5:
        rows, columns = columns, rows
    waves = rng.uniform(0.02, 0.12) * np.sin(columns * rng.uniform(1, 4) + rng.uniform(0, 6))
    phase = (rows + waves + _smooth_noise(rng, size, 3, 1)[..., 0] * 0.12) * rng.uniform(30, 90)
    return (0.5 + 0.5 * np.sin(phase)).astype(np.float32)


def _smooth_noise(
    rng: np.random.Generator, size: tuple[int, int], cells: int, channels: int
) -> NDArray[np.float32]:
    """Noise in 0..1 with ``cells`` knots a side, (H, W, channels)."""
    knots = rng.integers(0, 256, (cells, cells, channels), dtype=np.uint8)
    layers = [
        np.asarray(Image.fromarray(knots[..., c]).resize(size[::-1], Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(layers, axis=-1).astype(np.float32) / 255


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> Picture:
    """Low-frequency colour noise."""
    cells = int(rng.integers(3, 12))
    spread = rng.uniform(20, 80)
    knots = _colour(rng) + rng.uniform(-spread, spread, (cells, cells, 3))
    small = Image.fromarray(np.clip(knots, 40, 255).astype(np.uint8))
    return np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC))


def _grain(rng: np.random.Generator, size: tuple[int, int], strength: float) -> NDArray[np.float32]:
    """Noise of one grey channel, cut from a fixed sheet, (H, W, 1)."""
    sheet = _grain_sheet()
    top, left = rng.integers(0, 256, 2)
    rows = (np.arange(size[0]) + top) % sheet.shape[0]
    columns = (np.arange(size[1]) + left) % sheet.shape[1]
    return np.float32(strength) * sheet[rows[:, None], columns[None, :], None]


@lru_cache(maxsize=1)
def _grain_sheet() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)


def _to_picture(values: NDArray[np.float32]) -> Picture:
    return np.clip(values, 0, 255).astype(np.uint8)


def _crop_photo(
    rng: np.random.Generator, size: tuple[int, int], pool: tuple[Image.Image, ...]
) -> Picture:
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
    lift = rng.uniform(30, 90)
    table = np.clip(np.arange(256)[:, None] * gain + lift, 0, 255).astype(np.uint8)
    return np.stack([table[:, c][crop[..., c]] for c in range(3)], axis=-1)


@lru_cache(maxsize=1)
def _plain_pool() -> tuple[Image.Image, ...]:
    return tuple(_load_photo(name, box) for name, box in PLAIN_PHOTOS.items())


@lru_cache(maxsize=1)
def _blurred_pool() -> tuple[Image.Image, ...]:
    blur = ImageFilter.GaussianBlur(_POOL_SIDE / 14)
    return tuple(_load_photo(name, None).filter(blur) for name in BLURRED_PHOTOS)


def _load_photo(name: str, box: tuple[int, int, int, int] | None) -> Image.Image:
    """A picture of scikit-image's wheel, RGB, short side :data:`_POOL_SIDE`."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ImportError(
            "Drawing scenes needs the package scikit-image: pip install 'pixellm[scenes]'."
        )
    with Image.open(Path(spec.origin).parent / "data" / name) as picture:
        photo = picture.convert("RGB").crop(box or (0, 0, *picture.size))
    scale = _POOL_SIDE / min(photo.size)
    return photo.resize(
        (round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS
    )
