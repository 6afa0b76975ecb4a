"""What a detector alone would answer to `eval coco`: its boxes as masks, and GrabCut inside them.

    python benchmarks/photo_baselines.py --data coco --split val --out baselines
    pixellm score baselines/boxes.jsonl --benchmark coco --data coco --split val
    pixellm score baselines/grabcut.jsonl --benchmark coco --data coco --split val

The detector is the encoder of the embedded model, at its own size. Of the category that a question
asks for it shows every finding that is as likely as ``--least``. Needs opencv-python-headless.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

import pixellm
from pixellm.evaluation.benchmarks import open_questions
from pixellm.files import write_files
from pixellm.image_files import load_image
from pixellm.masks import encode_mask
from pixellm.model.evidence import BOX_CHANNELS

ROUNDS = 5
"""Of GrabCut."""


def fill_box(size: tuple[int, int], box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """The box itself as a mask."""
    mask = np.zeros(size, dtype=np.bool_)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = True
    return mask


def cut_out(image: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """What GrabCut takes for the object inside a box; the box itself where it finds none."""
    left, top, right, bottom = box
    height, width = image.shape[:2]
    whole = fill_box((height, width), box)
    if whole.all() or right - left < 2 or bottom - top < 2:
        return whole
    labels = np.zeros((height, width), np.uint8)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    rectangle = (left, top, right - left, bottom - top)
    try:
        cv2.grabCut(image, labels, rectangle, *models, ROUNDS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:  # too few pixels for its colour models
        return whole
    found: NDArray[np.bool_] = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    return found if found.any() else whole


@torch.inference_mode()
def find(model: Any, processor: Any, image: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Class probabilities (K, c) and boxes (K, 4) in pixels, of everything found in an image."""
    inputs = processor.image_processor([image])
    encoded = model.model.encode_images(inputs["pixel_values"], inputs["pixel_mask"])[0]
    entries = encoded.features[-1][0].float()
    entries = entries[entries[:, BOX_CHANNELS - 1] > 0]
    scores = model.model.pixel_decoder.class_scores(entries[None])[0]
    (height, width), (high, wide) = (inputs[f"{n}_sizes"][0] for n in ("original", "resized"))
    side = processor.image_processor.image_size
    scale = torch.stack([width / wide, height / high, width / wide, height / high]) * side
    most = torch.stack([width, height, width, height])
    boxes = torch.minimum((entries[:, :4] * scale).clamp_min(0), most)
    boxes = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], 1).int()
    return scores.numpy(), boxes.numpy()


def main() -> None:
    """Write both files of predictions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--least", type=float, default=0.25, help="probability of what is shown")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    engine = pixellm.load("nano")
    names = list(engine.model.config.vision_config.class_names)
    asked = open_questions("coco", options.split, options.data)
    lines: dict[str, list[dict[str, Any]]] = {"boxes": [], "grabcut": []}
    samples = (asked[index] for index in range(len(asked)))
    for path, group in groupby(samples, key=lambda sample: sample.image):
        image = load_image(path)
        pixels = np.ascontiguousarray(np.asarray(image)[..., ::-1])
        scores, boxes = find(engine.model, engine.processor, image)
        for sample in group:
            kind = names.index(sample.turns[0].targets[0].name)
            likely = np.flatnonzero(scores[:, kind] >= options.least)
            shown = [tuple(map(int, boxes[place])) for place in likely]
            sure = [float(scores[place, kind]) for place in likely]
            filled = [fill_box(pixels.shape[:2], box) for box in shown]
            cut = [cut_out(pixels, box) for box in shown]
            for name, masks in (("boxes", filled), ("grabcut", cut)):
                rles = [encode_mask(mask) for mask in masks]
                lines[name].append({"id": f"{sample.id}/0", "masks": rles, "scores": sure})
        print(f"{len(lines['boxes'])}/{len(asked)} questions", flush=True)
    texts = {name: "\n".join(map(json.dumps, rows)) + "\n" for name, rows in lines.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    write_files({options.out / f"{name}.jsonl": text.encode() for name, text in texts.items()})


if __name__ == "__main__":
    main()
