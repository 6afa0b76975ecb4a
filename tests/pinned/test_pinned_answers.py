"""What nano answers, and how its answers score: texts to the letter, masks to the pixel or nearly.

A hundredth of a mask's pixels may differ between machines, whose sums have other orders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

import pixellm


def row_of(prediction: pixellm.Prediction) -> dict[str, Any]:
    return {
        "question": prediction.question,
        "answer": prediction.text,
        "segments": [
            {
                "label": segment.label,
                "span": list(segment.span),
                "score": round(float(segment.score), 5),
                "mask": run_lengths(segment.mask),
            }
            for segment in prediction.segments
        ],
    }


def run_lengths(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode("ascii")


def overlap(one: str, other: str, size: tuple[int, int]) -> float:
    masks = [{"size": list(size), "counts": counts.encode("ascii")} for counts in (one, other)]
    return float(coco.iou(masks[:1], masks[1:], [False])[0, 0])


def test_nano_answers_fifty_scenes_as_before(
    scenes: Path, pinned: Callable[..., None], recorded: Callable[[str, Any], Any]
) -> None:
    entries = json.loads(scenes.read_text("utf-8"))
    requests = [
        pixellm.Request(
            scenes.parent / entry["file_name"], entry["questions"][index % len(entry["questions"])]
        )
        for index, entry in enumerate(entries)
    ]
    predictions = pixellm.load("nano-scenes", device="cpu").predict_batch(requests)
    rows = [row_of(prediction) for prediction in predictions]
    masks = [segment.pop("mask") for row in rows for segment in row["segments"]]
    pinned("nano_answers", rows, abs=1e-3)
    sizes = [prediction.size for prediction in predictions for _ in prediction.segments]
    before = recorded("nano_masks", masks)
    assert len(masks) == len(before) > 50
    for now, then, size in zip(masks, before, sizes, strict=True):
        assert overlap(now, then, size) > 0.99


@pytest.mark.parametrize("mode", ["free", "forced"])
def test_reports_hold_the_same_scores(
    mode: str,
    scenes: Path,
    tmp_path: Path,
    command_line: Callable[..., str],
    pinned: Callable[..., None],
) -> None:
    out = tmp_path / mode
    options = ("--data", scenes, "--split", "test_less", "--mode", mode, "--limit", 12)
    command_line(
        "eval", "muse", "--model", "nano-scenes", *options, "--device", "cpu", "--out", out
    )
    report = json.loads((out / "report.json").read_text("utf-8"))
    scores = report["groups"]["overall"]["scores"]
    kept = ("num_questions", "num_targets", "num_masks", "headline", "mode", "protocol")
    values = {name: report[name] for name in kept}
    values["scores"] = {name: one for name, one in scores.items() if name != "seconds"}
    pinned(f"report_{mode}", values, abs=5e-3)
