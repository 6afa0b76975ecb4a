"""Every benchmark with files as a tiny data set in its true layout, over drawn images."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (48, 64)
NUM_IMAGES = 2
NUM_THINGS = 3

REFS_FILES = {
    "refcoco": "refs(unc).p",
    "refcoco+": "refs(unc).p",
    "refcocog": "refs(umd).p",
    "grefcoco": "grefs(unc).json",
}


def write_benchmark(name: str, root: Path) -> Path:
    """Write the files of a benchmark; returns what --data takes."""
    writers = {
        "reasonseg": _write_reasonseg,
        "muse": _write_muse,
        "coco": _write_coco,
        "photos": _write_coco,
        "coco-expressions": _write_expressions,
        "labelme": _write_labelme,
        "jsonl": _write_jsonl,
    }
    if name in writers:
        writers[name](root)
    else:
        _write_refer(name.removeprefix("multi-"), root)
    return root


def _box(thing: int) -> list[int]:
    """A polygon, apart from those of other things."""
    left, top = 4 + 20 * thing, 6 + 4 * thing
    return [left, top, left + 14, top, left + 14, top + 18, left, top + 18]


def _draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*SIZE, 3), 60 + 40 * seed, np.uint8)
    for thing in range(NUM_THINGS):
        x0, y0, _, _, x1, y1 = _box(thing)[:6]
        pixels[y0:y1, x0:x1] = (250 - 70 * thing, 90 * thing, 30)
    Image.fromarray(pixels).save(path)


def _write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def _instances(folder: Path) -> dict[str, Any]:
    """The content of an instances file, and its images in a folder."""
    images, annotations = [], []
    for number in range(NUM_IMAGES):
        name = f"COCO_train2014_{number:012d}.jpg"
        _draw(folder / name, number)
        images.append({"id": number + 1, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        annotations += [
            {
                "id": 10 * number + thing + 1,
                "image_id": number + 1,
                "category_id": 1 + thing // 2,
                "iscrowd": 0,
                "area": 14 * 18,
                "bbox": [0, 0, 1, 1],
                "segmentation": [_box(thing)],
            }
            for thing in range(NUM_THINGS)
        ]
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _write_coco(root: Path) -> None:
    _write_json(root / "annotations/instances_val.json", _instances(root / "val" / "images"))


def _write_expressions(root: Path) -> None:
    values = _instances(root / "val" / "images")
    for one in values["annotations"]:
        one["expression"] = f"the thing number {one['id']}"
    _write_json(root / "annotations/instances_val.json", values)


def _write_labelme(root: Path) -> None:
    for number in range(NUM_IMAGES):
        _draw(root / "val" / f"{number}.png", number)
        shapes = [
            {
                "label": ("cup", "cup", "dog")[thing],
                "shape_type": "polygon",
                "points": np.reshape(_box(thing), (4, 2)).tolist(),
            }
            for thing in range(NUM_THINGS)
        ]
        _write_json(
            root / "val" / f"{number}.json", {"imagePath": f"{number}.png", "shapes": shapes}
        )


def _write_jsonl(root: Path) -> None:
    targets = [
        {"name": "cup", "segmentation": [_box(0)]},
        {"name": "dog", "segmentation": [_box(1)]},
    ]
    lines = []
    for number in range(NUM_IMAGES):
        _draw(root / f"{number}.png", number)
        turns = [
            {
                "question": f"What is in picture {number}?",
                "answer": "The cup {seg} and the dog {seg}.",
                "targets": targets,
            },
            {"question": "Is there a hat?", "answer": "No.", "kind": "plain"},
        ]
        lines.append(json.dumps({"image": f"{number}.png", "turns": turns}))
    (root / "val.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _write_refer(name: str, root: Path) -> None:
    instances = _instances(root / "refer_seg/images/mscoco/images/train2014")
    _write_json(root / "refer_seg" / name / "instances.json", instances)
    refs = [
        {
            "ref_id": number,
            "ann_id": one["id"],
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "file_name": f"COCO_train2014_{one['image_id'] - 1:012d}_{number}.jpg",
            "split": "val",
            "sentences": [
                {
                    "sent": f"the thing number {one['id']}",
                    "raw": f"the thing number {one['id']}",
                    "tokens": ["the", "thing", "number", str(one["id"])],
                    "sent_id": number,
                }
            ],
        }
        for number, one in enumerate(instances["annotations"])
    ]
    path = root / "refer_seg" / name / REFS_FILES[name]
    if name != "grefcoco":
        path.write_bytes(pickle.dumps(refs, protocol=2))
        return
    for ref in refs:
        ref.update(ann_id=[ref["ann_id"]], category_id=[ref["category_id"]], no_target=False)
    refs[0].update(ann_id=[-1], category_id=[-1], no_target=True)
    refs[1]["ann_id"] += refs[2]["ann_id"]
    _write_json(path, refs)


def _write_reasonseg(root: Path) -> None:
    folder = root / "reason_seg" / "ReasonSeg" / "val"
    for number in range(NUM_IMAGES):
        _draw(folder / f"{number}.jpg", number)
        shapes = [
            {"label": label, "points": np.reshape(_box(thing), (4, 2)).tolist()}
            for thing, label in enumerate(("target", "ignore"))
        ]
        text = [f"What is number {number} good for?"]
        _write_json(
            folder / f"{number}.json", {"text": text, "is_sentence": True, "shapes": shapes}
        )


def _write_muse(root: Path) -> None:
    entries = []
    for number in range(NUM_IMAGES):
        name = f"COCO_train2014_{number:012d}.jpg"
        things = [
            {
                "category_id": thing,
                "category_name": ("cup", "dog", "hat")[thing],
                "rephrased_name": f"the {('cup', 'dog', 'hat')[thing]}",
                "bbox": [0, 0, 1, 1],
                "segmentation": [_box(thing)],
            }
            for thing in range(NUM_THINGS)
        ]
        entries.append(
            {
                "file_name": name,
                "height": SIZE[0],
                "width": SIZE[1],
                "ann_list": things,
                "questions": [f"What is in picture {number}?"],
                "answers": [things],
                "text_answers": ["The cup {seg}, the dog {seg} and the hat {seg}."],
            }
        )
        _draw(root / "coco/train2014" / name, number)
    _write_json(root / "muse" / "muse_val.json", entries)
