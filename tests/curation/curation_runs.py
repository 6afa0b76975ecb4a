"""Small annotated photo sets and whole runs over them, for the tests of the generator."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from pixellm.curation.ledger import Ledger
from pixellm.curation.photos import Photo, photo_encoder
from pixellm.curation.pipeline import Source, select, work_all
from pixellm.curation.write import WriteSettings, write_set
from pixellm.llm.client import Client, OpenAIClient
from pixellm.llm.prices import Price
from pixellm.llm.run import RequestRunner, RunLimits

CATEGORIES = ("cup", "bowl", "spoon", "dog", "chair", "laptop")
KEY = "sk-test-3f9a71c05be24d"
QUICK = RunLimits(workers=4, wait=0.01)


def make_photos(folder: Path, num: int, **changes: Any) -> tuple[Path, Path]:
    """Draw photos with four rectangles each; returns (annotations, images)."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    entries, annotations = [], []
    for number in range(num):
        name = f"{number:04d}.jpg"
        image = Image.new("RGB", (96, 64), (200, 210, 220))
        draw = ImageDraw.Draw(image)
        for place in range(4):
            left, top = 4 + 23 * place, 8 + 3 * ((number + place) % 5)
            right, bottom = left + 16, top + 20 + 4 * place
            draw.rectangle((left, top, right - 1, bottom - 1), fill=(40 * place, 90, 200))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": (number + place) % len(CATEGORIES) + 1,
                    "bbox": [left, top, 16, bottom - top],
                    "area": 16 * (bottom - top),
                    "iscrowd": 0,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                }
            )
        image.save(images / name)
        entries.append({"id": number, "file_name": name, "height": 64, "width": 96, "license": 4})
    data = {
        "licenses": [{"id": 4, "name": "Attribution License", "url": "http://example.org/by"}],
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(CATEGORIES)],
        "images": entries,
        "annotations": annotations,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps({**data, **changes}))
    return path, images


def source_of(folder: Path, **options: Any) -> Source:
    """The source that :func:`make_photos` drew into a folder."""
    values = {"model": "test", "questions": 1, "text_only": True, **options}
    return Source(folder / "instances.json", folder / "images", **values)


def run_all(
    source: Source,
    out: Path,
    clients: Mapping[str, Client] | str,
    limits: RunLimits = QUICK,
    prices: Mapping[str, Price] | None = None,
    max_images: int | None = None,
    styles_for: Callable[[Photo, Sequence[str]], Sequence[str]] | None = None,
) -> tuple[dict[str, Any], str]:
    """All stages, as `pixellm curate run` does them; returns (summary, why it stopped)."""
    if isinstance(clients, str):
        clients = {"": client_of(source, clients)}
    ledger = Ledger(out, create=True)
    try:
        writing = select(ledger, source, max_images, styles_for)
        runner = RequestRunner(ledger, clients, prices or {}, limits)
        stopped = work_all(ledger, writing, runner, lambda *_: None)
        layout = WriteSettings(train=0.6, val=0.2, shard_photos=8)
        return write_set(ledger, out, layout), stopped
    finally:
        ledger.close()


def client_of(source: Source, url: str, timeout: float = 60.0) -> OpenAIClient:
    return OpenAIClient(source.model, url, timeout, encode=photo_encoder(source.images))


def files_of(out: Path) -> dict[str, bytes]:
    """The content of every file of a set, without the ledger's own."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.startswith(("ledger", "writer"))
    }
