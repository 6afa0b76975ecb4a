"""A set that the generator writes without a model: the same rows in the same files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

pytest.importorskip("pyarrow", reason="writing a set needs the extra `curate`")

CATEGORIES = ("cup", "bowl", "spoon", "dog", "chair", "laptop")
WIDTH, HEIGHT = 96, 64


def draw_photos(folder: Path, num: int) -> None:
    """Photos with four rectangles each, annotated as COCO instances."""
    images, annotations = [], []
    (folder / "images").mkdir()
    for number in range(num):
        photo = Image.new("RGB", (WIDTH, HEIGHT), (200, 210, 220))
        draw = ImageDraw.Draw(photo)
        for column in range(4):
            left, top = 4 + 23 * column, 8 + 3 * ((number + column) % 5)
            right, bottom = left + 16, top + 20 + 4 * column
            draw.rectangle((left, top, right - 1, bottom - 1), fill=(40 * column, 90, 200))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": (number + column) % len(CATEGORIES) + 1,
                    "bbox": [left, top, 16, bottom - top],
                    "area": 16 * (bottom - top),
                    "iscrowd": 0,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                }
            )
        name = f"{number:04d}.png"
        photo.save(folder / "images" / name)
        size = {"height": HEIGHT, "width": WIDTH}
        images.append({"id": number, "file_name": name, **size, "license": 4})
    values = {
        "licenses": [{"id": 4, "name": "Attribution License", "url": "http://example.org/by"}],
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(CATEGORIES)],
        "images": images,
        "annotations": annotations,
    }
    (folder / "instances.json").write_text(json.dumps(values), "utf-8")


def test_a_set_written_from_templates_has_the_same_rows(
    tmp_path: Path, command_line: Callable[..., str], pinned: Callable[..., None]
) -> None:
    draw_photos(tmp_path, 10)
    places = ("--annotations", tmp_path / "instances.json", "--images", tmp_path / "images")
    options = ("--model", "template", "--questions", 6, "--split", "0.5,0.2")
    command_line("curate", "run", *places, "--out", tmp_path / "set", *options)
    written = {}
    for path in sorted((tmp_path / "set").glob("muse*.json")):
        rows = json.loads(path.read_text("utf-8"))
        pairs = [pair for e in rows for pair in zip(e["questions"], e["text_answers"], strict=True)]
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        written[path.name] = {"sha256": digest, "rows": [list(pair) for pair in pairs]}
    assert sum(len(one["rows"]) for one in written.values()) > 20
    pinned("template_set", written)
