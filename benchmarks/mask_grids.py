"""How good masks are by the size of things, and how good a grid of so many cells would let them be.

    pixellm eval scenes --split val --num 250 --out val
    python benchmarks/mask_grids.py val --grids 24 48 96

For each true object of the answers, the best mask that its answer shows: a mask of IoU above 0.3
counts as found. A grid's ceiling is the IoU of the true mask averaged over the cells of a square
canvas and drawn up again from their logits. No model is asked.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from pixellm.evaluation.records import AnswerRecord, read_run
from pixellm.masks import decode_mask, mask_iou
from pixellm.types import BoolMask

SIZES = (0, 15, 20, 25, 30, 40, 60, 192)
"""Sides of squares of a thing's area on a canvas of 192 pixels, between which rows are made."""

CANVAS = 192
FOUND = 0.3
SOFTEST = 0.02


@dataclass(frozen=True, slots=True)
class Found:
    """One true object: the side of a square of its area, its best IoU, and each grid's ceiling."""

    side: float
    iou: float
    ceilings: tuple[float, ...]


def ceiling(mask: BoolMask, cells: int) -> float:
    """IoU of a mask with itself after a passage through a grid of cells x cells."""
    height, width = mask.shape
    side = max(height, width)
    canvas = torch.from_numpy(mask).float()
    canvas = F.pad(canvas, (0, side - width, 0, side - height))[None, None]
    shares = F.interpolate(canvas, size=(cells, cells), mode="area")
    logits = torch.logit(shares.clamp(SOFTEST, 1 - SOFTEST))
    drawn = F.interpolate(logits, size=(side, side), mode="bilinear")[0, 0] > 0
    return mask_iou(drawn[:height, :width].numpy(), mask)


def measure(record: AnswerRecord, grids: list[int]) -> list[Found]:
    """Every true object of an answer."""
    shown = [decode_mask(one.mask) for one in record.shown]
    found = []
    for target in record.targets:
        mask = decode_mask(target.mask)
        iou = max((mask_iou(one, mask) for one in shown), default=0.0)
        side = float(np.sqrt(mask.sum())) * CANVAS / max(mask.shape)
        found.append(Found(side, iou, tuple(ceiling(mask, cells) for cells in grids)))
    return found


def main() -> None:
    """Print one row of a table for each size, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--grids", type=int, nargs="+", default=[24, 48, 96])
    options = parser.parse_args()
    things = [one for r in read_run(options.folder).records for one in measure(r, options.grids)]
    ceilings = " | ".join(f"ceiling at {cells}" for cells in options.grids)
    print(f"| side on {CANVAS} px | things | found | IoU where found | {ceilings} |")
    print("|---|---|---|---|" + "---|" * len(options.grids))
    for low, high in [*pairwise(SIZES), (0, CANVAS)]:
        here = [one for one in things if low <= one.side < high]
        found = [one.iou for one in here if one.iou > FOUND]
        if not found:
            continue
        limits = np.mean([one.ceilings for one in here], axis=0)
        print(
            f"| {low} to {high} | {len(here)} | {len(found) / len(here):.3f} | "
            f"{np.mean(found):.3f} | " + " | ".join(f"{limit:.3f}" for limit in limits) + " |"
        )


if __name__ == "__main__":
    main()
