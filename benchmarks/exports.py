"""A folder of photos labelled by one command, and every export read by the programs it is for.

    python benchmarks/exports.py PHOTOS --classes "person,chair,car,cup" --out out/labels

Prints, for each format, how many images and objects its reader finds and how their masks agree with
the answers: the least and the mean IoU, and how many lie below 0.97.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from measuring.export_readers import READERS, Objects, read_coco_with_supervision
from pixellm.answer_files import read_answers
from pixellm.cli.main import app
from pixellm.masks import decode_mask, mask_iou

Truth = dict[str, Objects]


def answered(answers: Path) -> Truth:
    """The masks of a file of answers, by the stem of their image; empty ones are nowhere kept."""
    found: Truth = {}
    for answer in read_answers(answers):
        if answer is None:
            continue
        objects = found.setdefault(Path(answer.image).stem, [])
        for one in answer.segments:
            mask = decode_mask(one.mask)
            if mask.any():
                objects.append((one.label, mask))
    return found


def agreement(truth: Truth, found: Truth) -> list[float]:
    """IoU of each object with what was read; where counts differ, of the unions of an image."""
    scores = []
    for name, objects in truth.items():
        read = [mask for _, mask in found.get(name, [])]
        masks = [mask for _, mask in objects]
        if len(read) != len(masks):  # YOLO: parts of an object as objects
            masks, read = [np.any(masks, axis=0)], [np.any(read, axis=0)]
        scores += [mask_iou(one, other) for one, other in zip(masks, read, strict=True)]
    return scores


def main() -> None:
    """Label, read and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--classes", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    answers = options.out / "photos.jsonl"
    formats = [word for name in [*READERS, "overlay"] for word in ("--export", name)]
    asked = ["--classes", options.classes, "--model", options.model, "--out", str(answers)]
    app(["predict", str(options.photos), *asked, *formats], standalone_mode=False)
    truth = answered(answers)
    folders = {name: options.out / f"photos_{name}" for name in READERS}
    readers: dict[str, Callable[[], Truth]] = {
        name: lambda name=name: READERS[name](folders[name]) for name in READERS
    }
    readers["coco (supervision)"] = lambda: read_coco_with_supervision(
        folders["coco"], options.photos
    )
    print("| format | images | objects | least IoU | mean IoU | below 0.97 |\n" + "|---" * 6 + "|")
    for name, read in readers.items():
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells what it does
            found = {Path(image).stem: objects for image, objects in read().items()}
        scores = agreement(truth, found)
        count = sum(map(len, found.values()))
        low = sum(score < 0.97 for score in scores)
        print(
            f"| {name} | {len(found)} | {count} | {min(scores):.4f} | "
            f"{np.mean(scores):.4f} | {low} |"
        )


if __name__ == "__main__":
    main()
