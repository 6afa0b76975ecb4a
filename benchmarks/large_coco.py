"""What opening a large COCO file costs: the first time, from the cache, and in memory.

    python benchmarks/large_coco.py --annotations 150000

Writes a file of so many annotations (one image for seven of them) to a temporary folder, opens it
as the set `coco` in processes of their own with an empty cache, and prints seconds of processor
time, the peak of resident memory, and what an image with its classes takes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path

OPENINGS = 5


def write_file(root: Path, count: int) -> Path:
    """A file of polygons with some 100 corners; no image is opened."""
    rng = random.Random(0)
    path = root / "annotations" / "instances_train.json"
    path.parent.mkdir(parents=True)
    (root / "train").mkdir()
    images = [
        {"id": n, "file_name": f"{n:012d}.jpg", "height": 480, "width": 640}
        for n in range(count // 7)
    ]
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "annotations": [')
        for number in range(count):
            x, y = rng.randint(0, 400), rng.randint(0, 300)
            corners = [round(rng.uniform(0, 100), 2) for _ in range(180)]
            polygon = [x + c if i % 2 == 0 else y + c for i, c in enumerate(corners)]
            entry = {
                "id": number,
                "image_id": rng.randrange(len(images)),
                "category_id": rng.randint(1, 80),
                "iscrowd": 0,
                "area": 5000.0,
                "bbox": [x, y, 100, 100],
                "segmentation": [[round(c, 2) for c in polygon]],
            }
            file.write((", " if number else "") + json.dumps(entry))
        categories = [{"id": n, "name": f"thing {n}"} for n in range(1, 81)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    return path


def open_once(root: Path) -> tuple[float, float, float]:
    """Processor seconds to open, MiB of resident memory that it adds, milliseconds an image."""
    from pixellm.data.registry import open_reader, reader_class

    reader_class("coco")
    import pyarrow.ipc  # noqa: F401  (code is no part of what the file costs)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = open_reader("coco", root, "train")
    opened = time.process_time() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    start = time.process_time()
    for item in range(200):
        found.row(item)
    return opened, peak, 1000 * (time.process_time() - start) / 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=int, default=150_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        path = write_file(root, arguments.annotations)
        rows = []
        for _ in range(1 + OPENINGS):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(open_once, (root,)))
        later = [statistics.median(column) for column in zip(*rows[1:], strict=True)]
        cache = sum(file.stat().st_size for file in root.glob("cache/**/*") if file.is_file())
        print(f"{path.stat().st_size / 1e6:.0f} MB of JSON, {cache / 1e6:.0f} MB in the cache")
        print("| opening | seconds | MiB at most | ms an image |\n| --- | --: | --: | --: |")
        for name, row in (("first", rows[0]), (f"later, median of {OPENINGS}", later)):
            print(f"| {name} | {row[0]:.3f} | {row[1]:.0f} | {row[2]:.1f} |")


if __name__ == "__main__":
    main()
