"""Images and annotations that tests write: drawn, or cut from a set of photos where present."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

PHOTOS = Path(os.environ.get("PIXELLM_TEST_PHOTOS", os.devnull))
"""A small COCO set: train/images, annotations/instances_train.json; most tests do without."""


def draw_photo(path: Path, size: tuple[int, int], seed: int = 0, **save: Any) -> Path:
    """An image of noise and shapes, (height, width) in pixels."""
    draw = np.random.default_rng(seed)
    image = Image.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8).astype(np.uint8))
    canvas = ImageDraw.Draw(image)
    canvas.ellipse((2, 2, size[1] // 2, size[0] // 2), fill=(200, 40, 40))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **save)
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def coco_values(
    size: tuple[int, int],
    names: Sequence[str],
    *shapes: Mapping[str, Any],
    images: Sequence[int] = (1,),
    suffix: str = ".jpg",
) -> dict[str, Any]:
    """An instances file: shapes have a name of ``names`` and may have any key of an annotation."""
    height, width = size
    annotations = [
        {"id": number, "image_id": images[0], "category_id": names.index(one["name"]) + 1, **one}
        for number, one in enumerate(shapes)
    ]
    return {
        "images": [
            {"id": n, "file_name": f"{n}{suffix}", "height": height, "width": width} for n in images
        ],
        "annotations": annotations,
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
    }


def fill_polygon(points: list[float], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, for corners on pixel borders of rectangles: independent of any mask code."""
    xs, ys = points[0::2], points[1::2]
    mask = np.zeros(size, dtype=bool)
    mask[int(min(ys)) : int(max(ys)), int(min(xs)) : int(max(xs))] = True
    return mask


def rectangle(left: int, top: int, right: int, bottom: int) -> list[float]:
    """The corners of pixels [left, right) x [top, bottom)."""
    return [left, top, right, top, right, bottom, left, bottom]


def expand_runs(rle: dict[str, Any]) -> np.ndarray:
    """Uncompressed COCO run lengths as (H, W) bool, run by run."""
    height, width = rle["size"]
    flat = np.zeros(height * width, dtype=bool)
    at, value = 0, False
    for count in rle["counts"]:
        flat[at : at + count] = value
        at, value = at + count, not value
    return flat.reshape(width, height).T
