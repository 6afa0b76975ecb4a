"""Small data sets in the layouts of the refer family, over photos where present, else drawn ones.

Every expression is unique and names the annotation it stands for, so that a test can read back
from any question what was asked.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

from drawn_photos import PHOTOS, draw_photo, rectangle, write_json
from pycocotools import mask as coco_mask

from pixellm.data.dataset import Dataset
from pixellm.types import Turn

SPLITS = ("train", "train", "val", "testA")
"""Of the images, in order."""

_EXPRESSION = re.compile(r"object number (\d+) version (\d+)", re.IGNORECASE)


def expression(annotation: int, version: int) -> str:
    return f"object number {annotation} version {version}"


def asked(turn: Turn) -> list[tuple[int, int]]:
    """(annotation, version) of the expressions in a question, in order."""
    return [(int(a), int(v)) for a, v in _EXPRESSION.findall(turn.question)]


def coco_set(images: Path, count: int = 4) -> dict[str, Any]:
    """An instances file's content, and its images in a folder."""
    if PHOTOS.is_dir():
        return _cut_from_photos(images, count)
    return _draw(images, count)


def _cut_from_photos(images: Path, count: int) -> dict[str, Any]:
    values = json.loads((PHOTOS / "annotations" / "instances_val.json").read_text())
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in values["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    crowded = sorted(values["images"], key=lambda one: -len(by_image.get(one["id"], ())))[:count]
    images.mkdir(parents=True)
    for entry in crowded:
        shutil.copy(PHOTOS / "val" / "images" / entry["file_name"], images)
    kept = [one for entry in crowded for one in by_image[entry["id"]]]
    return {**values, "images": crowded, "annotations": kept}


def _draw(folder: Path, count: int) -> dict[str, Any]:
    images, annotations = [], []
    for number in range(count):
        name, height, width = f"COCO_train2014_{number:012d}.jpg", 40 + number, 60
        draw_photo(folder / name, (height, width), seed=number)
        images.append({"id": 500 - number, "file_name": name, "height": height, "width": width})
        shapes: list[Any] = [
            [rectangle(3 * n, 2, 3 * n + 9, 20), [30, 5, 50, 9, 35, 30 - n]] for n in range(3)
        ]
        shapes.append({"size": [height, width], "counts": [7, 30, height * width - 37]})
        for n, shape in enumerate(shapes):
            one = {"id": 10 * number + n + 1, "image_id": 500 - number, "category_id": 1 + n % 2}
            annotations.append(one | {"segmentation": shape})
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "cup"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def with_lists_of_runs(instances: dict[str, Any]) -> dict[str, Any]:
    """The same masks as refCLEF's file holds them: lists of compressed run lengths, one a part."""
    sizes = {one["id"]: (one["height"], one["width"]) for one in instances["images"]}
    annotations = []
    for one in instances["annotations"]:
        shape = one["segmentation"]
        parts = shape if isinstance(shape, list) else [shape]
        runs = coco_mask.frPyObjects(parts, *sizes[one["image_id"]])
        texts = [{**run, "counts": run["counts"].decode("ascii")} for run in runs]
        annotations.append({**one, "segmentation": texts})
    return {**instances, "annotations": annotations}


def refs_of(instances: dict[str, Any], things: int = 4, versions: int = 2) -> list[dict[str, Any]]:
    """Refs of the first things of each image, as the refer family holds them."""
    refs: list[dict[str, Any]] = []
    for image, split in zip(instances["images"], SPLITS, strict=True):
        own = [one for one in instances["annotations"] if one["image_id"] == image["id"]]
        for annotation in own[:things]:
            texts = [expression(annotation["id"], version) for version in range(versions)]
            number = len(refs)
            one = {key: annotation[key] for key in ("image_id", "category_id")}
            one |= {"ref_id": number, "ann_id": annotation["id"], "split": split}
            one["file_name"] = f"{Path(image['file_name']).stem}_{number}.jpg"
            one["sentences"] = [
                {
                    "sent": t,
                    "raw": t.capitalize(),
                    "tokens": t.split(),
                    "sent_id": versions * number + n,
                }
                for n, t in enumerate(texts)
            ]
            refs.append(one)
    return refs


def write_refer(
    root: Path, name: str, refs_file: str, instances: dict[str, Any], refs: Any
) -> Path:
    """The two files of a data set; the instances file is returned."""
    folder = root / "refer_seg" / name
    path = write_json(folder / "instances.json", instances)
    if refs_file.endswith(".json"):
        write_json(folder / refs_file, refs)
    else:
        (folder / refs_file).write_bytes(pickle.dumps(refs, protocol=2))
    return path


def all_turns(reader: Dataset, epoch: int = 0) -> list[list[Turn]]:
    """The turns of every item of an epoch."""
    return [
        [turn for sample in reader.dialogues(index, epoch) for turn in sample.turns]
        for index in range(len(reader))
    ]
