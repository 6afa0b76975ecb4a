"""Masks for photos that nobody annotated: a model's answers, with a detector's boxes or without.

A model is asked for every instance of each category. Where boxes are proposed, only what they
propose is asked for, and a mask counts that agrees with a box; what finds no mask in the whole
photo is asked for once more in a cut around its box. Confident masks become labels; what stays in
doubt becomes a crowd region, of which a data set claims neither presence of one nor absence.

Frames: boxes are (x, y, width, height), masks (H, W), in pixels of the photo.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pixellm.data.coco import category_name, photo_name
from pixellm.files import read_json
from pixellm.masks import encode_mask, mask_iou, mask_to_box
from pixellm.scenes.photo_knowledge import load_photo_knowledge
from pixellm.types import BoolMask, Request

if TYPE_CHECKING:
    from pixellm.engine.dialogues import Predictor

Box = tuple[float, float, float, float]

CUT_MARGIN = 0.4
"""A cut reaches beyond its box by this share of the box's longer side."""

SAME_OBJECT = 0.7
"""IoU from which on two masks are taken for one object; the surer one stays."""

LEAST_SHARE = 0.0005
"""A mask that covers less of its photo stays in doubt."""


@dataclass(frozen=True, slots=True)
class LabelRules:
    """Which masks become labels.

    Attributes:
        min_score: confidence from which on a mask is kept. With boxes it is the geometric mean of
            the mask's and the box's scores.
        doubt: confidence from which on what is not kept leaves its kind in doubt.
        min_overlap: IoU of a mask's box with a proposed one, at least.

    Raises:
        ValueError: a number outside of 0..1, or more doubt than confidence.
    """

    min_score: float = 0.6
    doubt: float = 0.3
    min_overlap: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.doubt <= self.min_score <= 1 or not 0 < self.min_overlap <= 1:
            raise ValueError(
                f"Scores lie between 0 and 1, doubt ({self.doubt}) not above the least score of a "
                f"label ({self.min_score}); the overlap ({self.min_overlap}) is above 0."
            )


@dataclass(frozen=True, slots=True)
class Proposal:
    """A box of a detector: its category's name, position and confidence."""

    name: str
    box: Box
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Proposals:
    """The boxes of a COCO file.

    Attributes:
        categories: name -> id, in the order of the file.
        boxes: file name of each photo -> its boxes; a photo without an entry is not listed.
    """

    categories: Mapping[str, int]
    boxes: Mapping[str, tuple[Proposal, ...]]


PseudoLabel = dict[str, Any]
"""A mask of a photo as COCO writes it, less its ids, with ``name`` and ``score``; what is in doubt
is a crowd."""


@dataclass(eq=False, slots=True)
class _Found:
    """A mask of an answer, before it is judged."""

    name: str
    mask: BoolMask
    score: float
    box: Box = field(init=False)

    def __post_init__(self) -> None:
        self.box = mask_to_box(self.mask)


class PseudoLabeler:
    """Labels photos with a model's answers, so many questions at a time."""

    def __init__(self, predictor: Predictor, rules: LabelRules, batch_size: int = 16) -> None:
        self._predictor = predictor
        self._rules = rules
        self._batch_size = batch_size

    def label_all(self, image: NDArray[np.uint8], names: Sequence[str]) -> list[PseudoLabel]:
        """Labels of a photo for which nothing is proposed."""
        found = self._ask([(image, name) for name in names])
        masks = [one for per_name in found for one in per_name]
        return self._judge([(one, one.score) for one in masks])

    def label_boxes(
        self, image: NDArray[np.uint8], proposals: Sequence[Proposal]
    ) -> list[PseudoLabel]:
        """Labels of a photo, (H, W, 3) RGB, for its proposed boxes that reach the doubt."""
        wanted = [one for one in proposals if one.score >= self._rules.doubt]
        names = list(dict.fromkeys(one.name for one in wanted))
        answers = dict(zip(names, self._ask([(image, name) for name in names]), strict=True))
        pairs, open_ones = self._pair(wanted, answers)
        pairs += self._fill_cuts(image, open_ones)
        filled = [(mask, math.sqrt(mask.score * one.score)) for one, mask in pairs]
        labels = self._judge(filled)
        done = {id(one) for one, _ in pairs}
        size = image.shape[:2]
        return labels + [_doubt(one, size) for one in wanted if id(one) not in done]

    def _ask(self, asked: Sequence[tuple[NDArray[np.uint8], str]]) -> list[list[_Found]]:
        """The masks of each question's answer; empty masks are none."""
        requests = [Request(image, every_question(name)) for image, name in asked]
        found = []
        for start in range(0, len(requests), self._batch_size):
            some = slice(start, start + self._batch_size)
            predictions = self._predictor.predict_batch(requests[some])
            for (_, name), prediction in zip(asked[some], predictions, strict=True):
                masks = [one for one in prediction.segments if one.mask.any()]
                found.append([_Found(name, one.mask, one.score) for one in masks])
        return found

    def _pair(
        self, wanted: Sequence[Proposal], answers: Mapping[str, Sequence[_Found]]
    ) -> tuple[list[tuple[Proposal, _Found]], list[Proposal]]:
        """Boxes with the masks that agree with them best, each used once; and boxes left over."""
        overlaps = [
            (box_iou(one.box, mask.box), i, j)
            for i, one in enumerate(wanted)
            for j, mask in enumerate(answers[one.name])
        ]
        taken: dict[int, _Found] = {}
        used: set[tuple[str, int]] = set()
        for overlap, i, j in sorted(overlaps, reverse=True):
            name = wanted[i].name
            if overlap >= self._rules.min_overlap and i not in taken and (name, j) not in used:
                taken[i] = answers[name][j]
                used.add((name, j))
        pairs = [(wanted[i], mask) for i, mask in taken.items()]
        return pairs, [one for i, one in enumerate(wanted) if i not in taken]

    def _fill_cuts(
        self, image: NDArray[np.uint8], proposals: Sequence[Proposal]
    ) -> list[tuple[Proposal, _Found]]:
        """Boxes with masks found in a cut around each."""
        windows = [_window(one.box, image.shape[:2]) for one in proposals]
        cuts = [np.ascontiguousarray(image[window]) for window in windows]
        asked = [(cut, one.name) for cut, one in zip(cuts, proposals, strict=True)]
        pairs = []
        for one, window, answer in zip(proposals, windows, self._ask(asked), strict=True):
            whole = []
            for found in answer:
                mask = np.zeros(image.shape[:2], dtype=np.bool_)
                mask[window] = found.mask
                whole.append(_Found(found.name, mask, found.score))
            best = max(whole, key=lambda mask: box_iou(one.box, mask.box), default=None)
            if best is not None and box_iou(one.box, best.box) >= self._rules.min_overlap:
                pairs.append((one, best))
        return pairs

    def _judge(self, found: Sequence[tuple[_Found, float]]) -> list[PseudoLabel]:
        """Labels and doubts among masks with their confidence; of one object, the surest."""
        labels: list[PseudoLabel] = []
        kept: list[BoolMask] = []
        for one, score in sorted(found, key=lambda pair: -pair[1]):
            if any(mask_iou(one.mask, mask) >= SAME_OBJECT for mask in kept):
                continue
            kept.append(one.mask)
            passes_threshold = score >= self._rules.min_score and bool(
                one.mask.mean() >= LEAST_SHARE
            )
            if passes_threshold or score >= self._rules.doubt:
                labels.append(_label(one.name, one.mask, score, passes_threshold=passes_threshold))
        return labels


def every_question(name: str) -> str:
    """The question for every instance of a category."""
    known = load_photo_knowledge()
    concept = known.concepts.get(known.concept_by_phrase.get(name.lower(), ""))
    if concept is not None and concept.grammar not in ("a", "an"):
        return f"Segment the {concept.name}."
    return f"Segment every {name if concept is None else concept.name}."


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes; 0 where both are empty."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    common = max(width, 0.0) * max(height, 0.0)
    union = first[2] * first[3] + second[2] * second[3] - common
    return common / union if union > 0 else 0.0


def read_proposals(path: Path) -> Proposals:
    """Read the boxes of a COCO file, or ValueError; annotations without a ``score`` are certain."""
    values = read_json(path)
    try:
        names = {one["id"]: category_name(one) for one in values["categories"]}
        photos = {one["id"]: photo_name(one) for one in values["images"]}
        boxes: dict[str, list[Proposal]] = defaultdict(list, {name: [] for name in photos.values()})
        for one in values["annotations"]:
            x, y, width, height = (float(side) for side in one["bbox"])
            if width > 0 and height > 0 and not one.get("iscrowd"):
                proposal = Proposal(
                    names[one["category_id"]], (x, y, width, height), float(one.get("score", 1))
                )
                boxes[photos[one["image_id"]]].append(proposal)
        categories = {name: int(number) for number, name in names.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no COCO file with boxes ({error!r}).") from error
    return Proposals(categories, {name: tuple(found) for name, found in boxes.items()})


def _label(name: str, mask: BoolMask, score: float, *, passes_threshold: bool) -> PseudoLabel:
    return {
        "name": name,
        "segmentation": dict(encode_mask(mask)),
        "bbox": list(mask_to_box(mask)),
        "area": int(mask.sum()),
        "iscrowd": int(not passes_threshold),
        "score": round(float(score), 4),
    }


def _doubt(proposal: Proposal, size: tuple[int, int]) -> PseudoLabel:
    """A box that found no mask, as a region."""
    mask = np.zeros(size, dtype=np.bool_)
    mask[_window(proposal.box, size, margin=0.0)] = True
    return _label(proposal.name, mask, proposal.score, passes_threshold=False)


def _window(box: Box, size: tuple[int, int], margin: float = CUT_MARGIN) -> tuple[slice, slice]:
    """Rows and columns of a box and its surroundings, inside of a photo; at least one pixel."""
    x, y, width, height = box
    more = margin * max(width, height)
    spans = []
    for low, side, end in ((y, height, size[0]), (x, width, size[1])):
        first = min(max(math.floor(low - more), 0), end - 1)
        spans.append(slice(first, max(min(math.ceil(low + side + more), end), first + 1)))
    return spans[0], spans[1]
