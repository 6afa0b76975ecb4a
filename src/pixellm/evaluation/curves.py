"""Scores of the masks' own scores: average precision, its curve, and calibration.

Average precision is COCO's, computed by pycocotools: each question is an image, each predicted
mask a detection with the model's score, over IoU 0.50 to 0.95. Regions to ignore are crowds there:
a mask that lies in one is neither right nor wrong. It knows nothing of tables.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pixellm.evaluation.metrics import MaskMatch
from pixellm.evaluation.records import AnswerRecord, ignored_pixels
from pixellm.masks import encode_mask

NUM_CALIBRATION_BINS = 10
_MOST_MASKS = 1000
"""Predictions per question that take part, best first; COCO's own limit of 100 is too low for
questions with 100 targets."""


@dataclass(frozen=True, slots=True)
class PrecisionCurve:
    """Average precision of scored masks.

    Attributes:
        ap: mean over IoU thresholds 0.50, 0.55 .. 0.95; None without targets.
        recalls: 101 recalls, 0 to 1.
        precisions: IoU threshold ("0.50", "0.75") -> best precision at each recall or above.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    recalls: tuple[float, ...]
    precisions: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Masks whose own scores lie in [low, high), 1 in the last bin; spurious ones have IoU 0."""

    low: float
    high: float
    count: int
    mean_score: float
    mean_iou: float


def compute_precision(
    records: Sequence[AnswerRecord], class_of: Callable[[AnswerRecord], str] | None = None
) -> PrecisionCurve:
    """COCO's average precision over the scores of masks.

    Every question asks for its own class alone: a class is only asked for where the data say so,
    and masks of other classes that an image shows are never among the detections. What targets mark
    as ignored is a crowd region. Precision is the mean over the classes that ``class_of`` tells;
    all questions are of one where None.
    """
    classes: dict[str, int] = {}
    truths, detections = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, record in enumerate(records, start=1):
        name = "" if class_of is None else class_of(record)
        ids = {"image_id": number, "category_id": classes.setdefault(name, len(classes) + 1)}
        truths += [_annotation(target.mask, ids) for target in record.targets]
        ignored = ignored_pixels(record.targets, record.size)
        if ignored.any():
            truths.append(_annotation(encode_mask(ignored), ids) | {"iscrowd": 1})
        detections += [_annotation(m.mask, ids) | {"score": m.score} for m in record.shown]
    if not truths:
        return PrecisionCurve(None, None, None, (), {})
    images = [
        {"id": number, "height": record.size[0], "width": record.size[1]}
        for number, record in enumerate(records, start=1)
    ]
    evaluation = _evaluate(_dataset(images, classes, truths), _dataset(images, classes, detections))
    return _to_curve(evaluation)


def compute_calibration(matches: Sequence[MaskMatch]) -> list[CalibrationBin]:
    """Bins of equal width over the scores of all predictions; empty bins are left out."""
    pairs = np.array([(s.score, s.iou) for s in matches if s.score is not None], dtype=float)
    if not len(pairs):
        return []
    edges = np.linspace(0, 1, NUM_CALIBRATION_BINS + 1)
    bin_of = np.clip(np.digitize(pairs[:, 0], edges) - 1, 0, NUM_CALIBRATION_BINS - 1)
    bins = []
    for number in np.unique(bin_of):
        inside = pairs[bin_of == number]
        score, iou = inside.mean(axis=0)
        low, high = float(edges[number]), float(edges[number + 1])
        bins.append(CalibrationBin(low, high, len(inside), float(score), float(iou)))
    return bins


def calibration_error(bins: Sequence[CalibrationBin]) -> float | None:
    """Mean distance of score and IoU over bins, weighted by masks; None without masks."""
    count = sum(one.count for one in bins)
    if not count:
        return None
    return sum(one.count * abs(one.mean_score - one.mean_iou) for one in bins) / count


def _annotation(rle: Any, ids: dict[str, int]) -> dict[str, Any]:
    area = float(coco_mask.area({"size": rle["size"], "counts": rle["counts"].encode("ascii")}))
    return {**ids, "segmentation": rle, "area": area, "iscrowd": 0}


def _dataset(images: list[Any], classes: dict[str, int], annotations: list[Any]) -> COCO:
    dataset = COCO()
    dataset.dataset = {
        "images": images,
        "categories": [{"id": number, "name": name} for name, number in classes.items()],
        "annotations": [{**one, "id": i} for i, one in enumerate(annotations, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
    return dataset


def _evaluate(truths: COCO, detections: COCO) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        evaluation = COCOeval(truths, detections, "segm")
        evaluation.params.maxDets = [_MOST_MASKS]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _to_curve(evaluation: COCOeval) -> PrecisionCurve:
    """Means over the classes that have targets; pycocotools marks the others with -1."""
    precision = evaluation.eval["precision"][:, :, :, 0, 0]  # (thresholds, recalls, classes)
    seen = precision[:, :, (precision > -1).all(axis=(0, 1))].mean(axis=2)
    levels = [round(float(level), 2) for level in evaluation.params.iouThrs]
    rows = {level: seen[levels.index(level)] for level in (0.5, 0.75)}
    return PrecisionCurve(
        ap=float(seen.mean()),
        ap50=float(rows[0.5].mean()),
        ap75=float(rows[0.75].mean()),
        recalls=tuple(float(recall) for recall in evaluation.params.recThrs),
        precisions={f"{k:.2f}": tuple(float(v) for v in row) for k, row in rows.items()},
    )
