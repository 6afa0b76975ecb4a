"""Data sets in the folders that their readers expect, one file of each damaged."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import stated
from benchmark_layouts import REFS_FILES, SIZE, write_benchmark
from damaged_files import check, shifted
from file_damage import mutate_bytes, mutate_values, to_json
from PIL import Image


def layout(folder: Path, rng: random.Random, *, name: str) -> str:
    """A data set with a damaged annotation, label image or table."""
    WRITERS.get(name, partial(write_benchmark, name))(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    annotations = [path for path in files if path.suffix not in (".jpg", ".jpeg")]
    path = rng.choice(annotations if rng.random() < 0.9 else files)
    data = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(to_json(mutate_values(json.loads(data), rng), rng))
    elif path.suffix == ".p" and rng.random() < 0.7:
        path.write_bytes(pickle.dumps(mutate_values(pickle.loads(data), rng)))
    else:
        path.write_bytes(mutate_bytes(data, rng))
    split = "train" if name in WRITERS else "val"
    return check(folder, "--set", name, "--split", split, reading=partial(_stated, name, folder))


def _stated(name: str, root: Path) -> stated.Statement:
    """What the files of a data set state, wherever its layout has them."""
    if name in _LABEL_NAMES:
        (path,) = root.rglob("*.png")
        (photo,) = root.rglob("*.jpg")
        return stated.labels(path, _LABEL_NAMES[name], photo.name)
    if name == "mapillary":
        names = stated.mapillary_names(root / "mapillary/config_v2.0.json")
        return stated.labels(root / "mapillary/training/v2.0/labels/x.png", names, "x.jpg")
    if name == "png-masks":
        return stated.png_masks(root / "train")
    folder = root / "refer_seg" / name.removeprefix("multi-")
    if folder.is_dir():
        refs_file = folder / REFS_FILES[folder.name]
        return stated.refer(folder / "instances.json", refs_file)
    (path,) = root.rglob("*.json")
    return stated.coco(path)


def _draw(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def _photo(path: Path) -> None:
    _draw(path, np.full((*SIZE, 3), 90, np.uint8))


def _labels(*numbers: int) -> np.ndarray:
    """A label map of equal columns."""
    return np.repeat(np.array(numbers, np.uint8), SIZE[1] // len(numbers))[None].repeat(SIZE[0], 0)


def _write_json(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def _ade20k(root: Path) -> None:
    _photo(root / "ade20k/images/training/a.jpg")
    _draw(root / "ade20k/annotations/training/a.png", _labels(0, 1, 3, 3))


def _cocostuff(root: Path) -> None:
    _photo(root / "coco/train2017/000000000009.jpg")
    _draw(root / "cocostuff/train2017/000000000009.png", _labels(0, 181, 95, 255))


def _mapillary(root: Path) -> None:
    names = {"animal--bird": "Bird", "construction--flat--road": "Road"}
    labels = [{"name": name, "readable": readable} for name, readable in names.items()]
    _write_json(root / "mapillary/config_v2.0.json", {"labels": labels})
    _photo(root / "mapillary/training/images/x.jpg")
    _draw(root / "mapillary/training/v2.0/labels/x.png", _labels(0, 0, 1, 1))


def _parts(file_name: str, names: tuple[str, ...]) -> dict[str, object]:
    image = {"id": 5, "height": SIZE[0], "width": SIZE[1], "file_name": file_name}
    return {
        "images": [{**image, "not_exhaustive_category_ids": []}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)],
        "annotations": [
            {"id": n, "image_id": 5, "category_id": n, "segmentation": [shifted(10 * n)]}
            for n in range(1, len(names) + 1)
        ],
    }


def _paco(root: Path) -> None:
    _photo(root / "coco/train2017/1.jpg")
    names = ("car_(automobile)", "car_(automobile):wheel", "trash_can")
    place = root / "vlpart/paco/annotations/paco_lvis_v1_train.json"
    _write_json(place, _parts("train2017/1.jpg", names))


def _pascal_part(root: Path) -> None:
    folder = root / "vlpart/pascal_part"
    _photo(folder / "VOCdevkit/VOC2010/JPEGImages/2008_1.jpg")
    _write_json(folder / "train.json", _parts("2008_1.jpg", ("dog:head", "cat:tail")))


def _png_masks(root: Path) -> None:
    _photo(root / "train/images/a.jpg")
    _draw(root / "train/masks/a/cup.png", _labels(0, 255, 0, 0))
    table = "image,object,sentence\na.jpg,cup,the cup\na.jpg,cup,what to drink from\n"
    (root / "train/sentences.csv").write_text(table, encoding="utf-8")


_LABEL_NAMES = {"ade20k": {1: "wall", 3: "sky"}, "cocostuff": {0: "person", 181: "wood"}}
"""What some numbers of label images stand for."""

WRITERS: dict[str, Callable[[Path], None]] = {
    "ade20k": _ade20k,
    "cocostuff": _cocostuff,
    "mapillary": _mapillary,
    "paco": _paco,
    "pascal-part": _pascal_part,
    "png-masks": _png_masks,
}
_BENCHMARKS = (
    "refcoco+",
    "refcocog",
    "grefcoco",
    "multi-refcoco",
    "multi-refcocog",
    "coco-expressions",
    "photos",
)

LAYOUTS: dict[str, Callable[..., str]] = {
    name: partial(layout, name=name) for name in (*WRITERS, *_BENCHMARKS)
}
"""The data sets of the registry that no other kind writes."""
