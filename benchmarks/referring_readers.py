"""What the referring and MUSE readers cost at the size of the real data sets, without those sets.

Writes files of refCOCO's size (20,000 images, 200,000 annotations, 50,000 refs with three
expressions each; no images) and of a quarter of MUSE's, then opens and reads them in processes of
their own:

    python benchmarks/referring_readers.py --scale 1.0 --items 500

`open s` and `items/s` are processor time; `holds MiB` is what opening adds to a process, `peak MiB`
the most while opening; `worker MiB` what a forked worker then has for itself after reading the
items. The last row holds the same refCOCO files as Python objects, for comparison.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import pickle
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

WORDS = ("left", "right", "man", "woman", "guy", "blue", "red", "shirt", "the", "of", "with")


def write_refcoco(root: Path, scale: float) -> None:
    """refCOCO's two files, with polygons of 40 points."""
    draw = random.Random(0)
    images, annotations, refs = range(int(20_000 * scale)), int(200_000 * scale), []
    content = {
        "images": [
            {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "height": 480, "width": 640}
            for i in images
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i % len(images),
                "category_id": 1,
                "bbox": [0, 0, 9, 9],
                "segmentation": [[round(draw.uniform(0, 480), 2) for _ in range(80)]],
            }
            for i in range(annotations)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    for number in range(int(50_000 * scale)):
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 7))) for _ in range(3)]
        sentences = [{"sent": t, "raw": t, "tokens": t.split(), "sent_id": number} for t in texts]
        ref = {"ref_id": number, "ann_id": number, "image_id": number % len(images)}
        refs.append({**ref, "category_id": 1, "split": "train", "sentences": sentences})
    folder = root / "refer_seg/refcoco"
    folder.mkdir(parents=True)
    (root / "coco/train2014").mkdir(parents=True)
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))


def write_muse(root: Path, scale: float) -> None:
    """15,000 photos with four questions each, four targets in an answer."""
    draw = random.Random(0)
    entries = []
    for number in range(int(15_000 * scale)):
        instances = [
            {
                "category_id": k,
                "category_name": "cup",
                "rephrased_name": "the cup at the edge",
                "segmentation": [[round(draw.uniform(0, 480), 2) for _ in range(80)]],
            }
            for k in range(4)
        ]
        entry = {"file_name": f"{number}.jpg", "height": 480, "width": 640, "ann_list": instances}
        entry["questions"] = ["Which of these could hold a hot drink, and which could not?"] * 4
        entry["answers"] = [instances] * 4
        entries.append(entry)
    (root / "muse").mkdir()
    (root / "muse/muse_train.json").write_text(json.dumps(entries))


def private_mib() -> float:
    """Memory that this process has written to: pages of a mapped file are not in it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def resident_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def highest_mib() -> float:
    """The most memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def open_set(name: str, root: Path) -> Any:
    """A reader, or for "objects" refCOCO's two files as Python objects."""
    from pixellm.data.registry import open_reader

    if name != "objects":
        return open_reader(name, root, "train")
    folder = root / "refer_seg/refcoco"
    content = json.loads((folder / "instances.json").read_bytes())
    by_id = {one["id"]: one for one in content["annotations"]}
    return list(
        zip(pickle.loads((folder / "refs(unc).p").read_bytes()), by_id.values(), strict=False)
    )


def measure(name: str, root: Path, items: int) -> list[float]:
    """One row of the table; runs in a process of its own."""
    import pixellm.data.muse
    import pixellm.data.refer  # noqa: F401  (code is no part of the data's memory)

    before, start = resident_mib(), time.process_time()
    data = open_set(name, root)
    gc.collect()
    spent, held = time.process_time() - start, resident_mib() - before
    peak = highest_mib() - before
    receiving, sending = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=read, args=(data, items, sending))
    worker.start()
    rate, own = receiving.recv()
    worker.join()
    return [spent, held, peak, rate, own]


def read(data: Any, items: int, sending: Any) -> None:
    """What a worker does."""
    before, start = private_mib(), time.process_time()
    stride = max(1, len(data) // items)
    for index in range(0, len(data), stride):
        data[index]
    sending.send(
        (len(range(0, len(data), stride)) / (time.process_time() - start), private_mib() - before)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the real number of rows")
    parser.add_argument("--items", type=int, default=500, help="items that a worker reads")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_refcoco(root, arguments.scale)
        write_muse(root, arguments.scale)
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            print(f"{path.relative_to(root)}: {path.stat().st_size / 2**20:.1f} MiB")
        print("| set | open s | holds MiB | peak MiB | items/s | worker MiB |")
        print("| --- | --: | --: | --: | --: | --: |")
        for name in ("refcoco", "muse", "objects"):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(measure, name, root, arguments.items).result()
            print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in row) + " |")


if __name__ == "__main__":
    main()
