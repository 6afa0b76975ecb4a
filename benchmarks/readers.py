"""How fast the data readers are on one core, and how much memory a worker needs.

Lays a folder of COCO photos out as each data set lies on disk, then reads it, every reader in a
process of its own:

    python benchmarks/readers.py --photos photos --seconds 2

`items/s` counts calls for an item (all questions about one image) without its pixels, `decoded/s`
with the image decoded as well, `questions/s` the questions in them. `MiB` is what opening the set
adds to a process; workers that are forked share it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SPLIT = "val"


def lay_out(photos: Path, root: Path) -> None:
    """Write every layout below `root`; images are links."""
    content = json.loads((photos / "annotations" / f"instances_{SPLIT}.json").read_bytes())
    source = photos / SPLIT / "images"
    for folder in (
        root / "ade20k/images/training",
        root / "coco/train2017",
        root / "mapillary/training/images",
        root / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages",
        root / "train",
    ):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(source.resolve())
    lay_out_labels(content, root)
    lay_out_parts(content, root)
    lay_out_dialogues(content, root)


def lay_out_labels(content: dict, root: Path) -> None:
    """ADE20K, COCO-Stuff and Mapillary: instances painted into label images."""
    from pixellm.masks import decode_mask, segmentation_to_rle

    numbers = {one["id"]: place for place, one in enumerate(content["categories"])}
    names = [{"name": f"object--{n}", "readable": f"Thing {n}"} for n in numbers]
    write(root / "mapillary/config_v2.0.json", {"labels": names})
    folders = {
        1: root / "ade20k/annotations/training",
        0: root / "cocostuff/train2017",
    }
    mapillary = root / "mapillary/training/v2.0/labels"
    for folder in (*folders.values(), mapillary):
        folder.mkdir(parents=True)
    for image in content["images"]:
        size = (image["height"], image["width"])
        stem = Path(image["file_name"]).stem
        for first, folder in folders.items():
            labels = np.full(size, 0 if first else 255, dtype=np.uint8)
            for one in content["annotations"]:
                if one["image_id"] == image["id"]:
                    mask = decode_mask(segmentation_to_rle(one["segmentation"], size))
                    labels[mask] = numbers[one["category_id"]] + first
            Image.fromarray(labels).save(folder / f"{stem}.png")
        labels[labels == 255] = 0
        Image.fromarray(labels).save(mapillary / f"{stem}.png")


def lay_out_parts(content: dict, root: Path) -> None:
    """PACO, Pascal-Part and one's own COCO file, with an expression for each annotation."""
    categories = [{**one, "name": f"{one['name']}:part"} for one in content["categories"]]
    parts = {**content, "categories": categories}
    write(root / "vlpart/pascal_part/train.json", parts)
    images = [{**i, "file_name": f"train2017/{i['file_name']}"} for i in content["images"]]
    write(root / "vlpart/paco/annotations/paco_lvis_v1_train.json", {**parts, "images": images})
    rows = [{**a, "expression": f"object number {a['id']}"} for a in content["annotations"]]
    write(root / "annotations/instances_train.json", {**content, "annotations": rows})


def lay_out_dialogues(content: dict, root: Path) -> None:
    """LLaVA, one's own JSONL, and LabelMe: dialogues and shapes about every photo."""
    said = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A photo."},
    ]
    rows = [
        {"id": i["id"], "image": i["file_name"], "conversations": said} for i in content["images"]
    ]
    write(root / "llava_dataset/llava_instruct_150k.json", rows)
    lines = []
    for image in content["images"]:
        targets = [
            {"name": f"thing {one['category_id']}", "segmentation": one["segmentation"]}
            for one in content["annotations"]
            if one["image_id"] == image["id"]
        ]
        answer = " ".join(["thing {seg}"] * len(targets)) or "Nothing."
        turn = {"question": "What is there?", "answer": answer, "targets": targets}
        lines.append(json.dumps({"image": f"train/{image['file_name']}", "turns": [turn]}))
        shapes = [
            {"label": one["name"], "points": np.reshape(ring, (-1, 2)).tolist(), "group_id": number}
            for number, one in enumerate(targets)
            if isinstance(one["segmentation"], list)
            for ring in one["segmentation"]
        ]
        path = f"../train/{image['file_name']}"
        write(
            root / "shapes" / f"{Path(image['file_name']).stem}.json",
            {"shapes": shapes, "imagePath": path, "imageData": None},
        )
    (root / "train.jsonl").write_text("\n".join(lines))


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(name: str, root: Path, options: dict, seconds: float) -> dict[str, float]:
    """Read one set for a while; runs in a process of its own."""
    from pixellm.data.registry import open_reader, reader_class

    reader_class(name)  # its modules are no part of its memory
    before = resident_mib()
    reader = open_reader(name, root, "train", **options)
    memory = resident_mib() - before
    questions = 0

    def compose(index: int) -> None:
        nonlocal questions
        item = reader[index % len(reader)]
        questions += sum(len(sample.turns) for sample in item)

    items, spent = repeat(compose, seconds)
    decoded, _ = repeat(lambda i: decode(reader[i % len(reader)][0].image), seconds)
    return {
        "items/s": items,
        "questions/s": questions / spent,
        "decoded/s": decoded,
        "MiB": memory,
    }


def decode(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def repeat(call: Callable[[int], object], seconds: float) -> tuple[float, float]:
    """Calls per second of processor time, and the seconds spent."""
    start, number = time.process_time(), 0
    while time.process_time() - start < seconds:
        call(number)
        number += 1
    spent = time.process_time() - start
    return number / spent, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="COCO photos by split")
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time a measurement")
    parser.add_argument("--only", nargs="*", default=[], help="names of data sets")
    arguments = parser.parse_args()
    sets: dict[str, dict] = {
        "ade20k": {},
        "cocostuff": {},
        "mapillary": {},
        "paco": {},
        "pascal-part": {},
        "llava": {},
        "coco": {},
        "coco-expressions": {},
        "jsonl": {},
        "labelme": {"folder": "shapes"},
    }
    root = Path(tempfile.mkdtemp())
    try:
        lay_out(arguments.photos, root)
        print("| set | items/s | questions/s | decoded/s | MiB |\n| --- | --: | --: | --: | --: |")
        context = multiprocessing.get_context("spawn")
        for name, options in sets.items():
            if arguments.only and name not in arguments.only:
                continue
            with context.Pool(1) as pool:
                row = pool.apply(measure, (name, root, options, arguments.seconds))
            print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in row.values()) + " |")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
