"""Exported folders through the readers that others wrote: what masks they find, image by image.

Each gives, for the image of a name, the class and the mask (H, W) bool of every object, in the
order of the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import supervision
import yaml
from label_studio_converter import brush
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

Objects = list[tuple[str, NDArray[np.bool_]]]


def read_coco(folder: Path) -> dict[str, Objects]:
    """pycocotools."""
    coco = COCO(str(folder / "instances.json"))
    names = {number: one["name"] for number, one in coco.cats.items()}
    return {
        image["file_name"]: [
            (names[one["category_id"]], coco.annToMask(one).astype(bool))
            for one in coco.loadAnns(coco.getAnnIds(imgIds=number))
        ]
        for number, image in coco.imgs.items()
    }


def read_coco_with_supervision(folder: Path, images: Path) -> dict[str, Objects]:
    """supervision's reader of COCO."""
    return _of_supervision(
        supervision.DetectionDataset.from_coco(
            str(images), str(folder / "instances.json"), force_masks=True
        )
    )


def read_yolo(folder: Path) -> dict[str, Objects]:
    """supervision's reader of YOLO's folders; a line is an object."""
    return _of_supervision(
        supervision.DetectionDataset.from_yolo(
            str(folder / "images/train"),
            str(folder / "labels/train"),
            str(folder / "data.yaml"),
            force_masks=True,
        )
    )


def read_labelme(folder: Path) -> dict[str, Objects]:
    """As labelme fills polygons: Pillow's, outline and inside; shapes of a group are an object."""
    found = {}
    for path in sorted(folder.rglob("*.json")):
        if path.name.startswith("."):
            continue
        values = json.loads(path.read_text(encoding="utf-8"))
        size = (values["imageHeight"], values["imageWidth"])
        objects: dict[object, tuple[str, NDArray[np.bool_]]] = {}
        for number, shape in enumerate(values["shapes"]):
            key = ("alone", number) if shape["group_id"] is None else shape["group_id"]
            canvas = Image.new("1", size[::-1])
            points = [tuple(point) for point in shape["points"]]
            ImageDraw.Draw(canvas).polygon(points, outline=1, fill=1)
            _, before = objects.get(key, ("", np.zeros(size, dtype=np.bool_)))
            objects[key] = (shape["label"], before | np.array(canvas))
        image = path.with_name(values["imagePath"])
        found[image.relative_to(folder).as_posix()] = list(objects.values())
    return found


def read_label_studio(folder: Path) -> dict[str, Objects]:
    """label-studio-converter's reader of what a brush painted."""
    found = {}
    for task in json.loads((folder / "tasks.json").read_text(encoding="utf-8")):
        objects: Objects = []
        for result in task["predictions"][0]["result"]:
            pixels = brush.decode_rle(result["value"]["rle"])
            shape = (result["original_height"], result["original_width"], 4)
            (name,) = result["value"]["brushlabels"]
            objects.append((name, pixels.reshape(shape)[:, :, 3] > 0))
        found[task["data"]["name"]] = objects
    return found


def read_png(folder: Path) -> dict[str, Objects]:
    """Pillow; names are those of folders and files."""
    found: dict[str, Objects] = {}
    for path in sorted((folder / "index").rglob("*.png")):
        place = path.relative_to(folder / "index").with_suffix("")
        masks = sorted((folder / "objects" / place).glob("*.png"))
        found[place.as_posix()] = [
            (mask.stem.partition("_")[2], np.asarray(Image.open(mask)) > 127) for mask in masks
        ]
    return found


def yolo_names(folder: Path) -> Mapping[int, str]:
    """Names of classes in ``data.yaml``."""
    names: Mapping[int, str] = yaml.safe_load((folder / "data.yaml").read_text())["names"]
    return names


READERS: dict[str, Callable[[Path], dict[str, Objects]]] = {
    "coco": read_coco,
    "coco-polygons": read_coco,
    "yolo": read_yolo,
    "labelme": read_labelme,
    "label-studio": read_label_studio,
    "png": read_png,
}
"""Format -> a reader of it."""


def _of_supervision(dataset: supervision.DetectionDataset) -> dict[str, Objects]:
    found = {}
    for path, _, detections in dataset:
        masks = [] if detections.mask is None else list(np.asarray(detections.mask, dtype=bool))
        classes = detections.class_id if detections.class_id is not None else []
        names = [dataset.classes[number] for number in classes]
        found[Path(path).name] = list(zip(names, masks, strict=True))
    return found
