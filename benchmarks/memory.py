"""What images and a long-lived engine take in memory.

    python benchmarks/memory.py --out benchmarks/results/memory.json

Images: the most that reading one adds to a process, in its pixels at three bytes each; and what
a batch of large images adds while an engine takes them in. Engine: what a process holds after each
hundred of many predictions about different images. Bytes are the resident set's; no time is
measured. Each figure comes from a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 6000
"""Pixels of a measured image's sides."""

FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("RGB", "JPEG", {}),
    "JPEG turned": ("RGB", "JPEG", {"turned": True}),
    "JPEG CMYK": ("CMYK", "JPEG", {}),
    "PNG RGBA": ("RGBA", "PNG", {}),
    "PNG palette": ("P", "PNG", {"transparency": 0}),
    "PNG 16 bit": ("I;16", "PNG", {}),
    "JPEG progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "WebP": ("RGB", "WEBP", {}),
    "JPEG 2000": ("RGB", "JPEG2000", {}),
    "AVIF": ("RGB", "AVIF", {"speed": 10}),
    "TIFF": ("RGB", "TIFF", {}),
    "GIF": ("P", "GIF", {}),
}
"""Name -> mode, format and options of saving."""


def write_image(path: Path, form: str, side: int) -> None:
    """A plain image: its file is small, its pixels are not."""
    mode, kind, options = FORMS[form]
    image = Image.new(mode, (side, side), 0)
    if options.get("turned"):
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif.tobytes()}
    image.save(path, kind, **options)


def resident() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def most_added(work: Callable[[], object]) -> int:
    """The most bytes that this process holds during work, beyond those before it (Linux)."""
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    work()
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return peak * 1024 - before


def image_memory(side: int = SIDE, forms: Iterable[str] = FORMS) -> dict[str, float]:
    """Form -> the most that reading an image adds, in its pixels at three bytes."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for form in forms:
            paths[form] = Path(folder) / form
            _alone(write_image, paths[form], form, side)
        return {form: _alone(_read_one, path) / (3 * side**2) for form, path in paths.items()}


def batch_memory(side: int = SIDE, count: int = 32) -> float:
    """What as many images at once add while an engine takes them in, in one image's pixels."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.png" for number in range(count)]
        for path in paths:
            _alone(write_image, path, "PNG RGBA", side)
        return _alone(_read_batch, paths) / (3 * side**2)


def engine_memory(predictions: int) -> list[int]:
    """Bytes held before the first prediction and after each hundred, in nano-scenes."""
    return _alone(_predict, predictions)


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def _read_one(path: Path) -> int:
    from pixellm.image_files import load_image

    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    load_image(small.getvalue())
    return most_added(lambda: load_image(path))


def _read_batch(paths: list[Path]) -> int:
    import pixellm

    engine = pixellm.load("nano-scenes", device="cpu")
    engine.predict(np.zeros((64, 64, 3), np.uint8), "What is it?")
    reader = engine.image_reader()
    return most_added(lambda: reader.prepare(paths))


def _predict(predictions: int) -> list[int]:
    import pixellm
    from pixellm.scenes.dataset import ScenesDataset

    engine = pixellm.load("nano-scenes", device="cpu")
    scenes = ScenesDataset("test", 0, predictions)
    held = [resident()]
    for number in range(predictions):
        sample = scenes[number][0]
        engine.predict(sample.image, sample.turns[0].question)
        if (number + 1) % 100 == 0:
            held.append(resident())
            print(f"{number + 1} predictions: {held[-1]:,} bytes", file=sys.stderr, flush=True)
    return held


def main() -> None:
    """Measure, print and write."""
    import torch

    from measuring.machine import describe_machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/memory.json"))
    parser.add_argument("--predictions", type=int, default=2000)
    parser.add_argument("--side", type=int, default=SIDE)
    options = parser.parse_args()
    measured = {
        "machine": describe_machine(torch.device("cpu")),
        "side": options.side,
        "image_in_its_pixels": image_memory(options.side),
        "batch_of_32_in_one_image": batch_memory(options.side),
        "engine_bytes_by_hundreds": engine_memory(options.predictions),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
