"""What a detecting encoder found in an image: its strongest cells, one entry an instance.

The cells of the encoder's evidence maps are thinned out to a few entries that the language model
reads and the decoder draws. It knows tensors only. Shape legend: B rows, N cells, K entries,
c classes, s channels of a cell's state; boxes are left, top, right, bottom in shares of the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

CANDIDATES = 64
"""Strongest cells, for each evidence map, among which repeated findings are looked for.

A further reading shows large instances once more, and must not take the place of small ones.
"""

LEAST_STRENGTH = 0.03
"""Cells that are less sure than this are no evidence."""

SAME_CLASS_OVERLAP = 0.6
"""Two boxes of one class that overlap more (intersection over union) are one instance."""

SAME_INSTANCE = 0.5
"""An entry shows an object when their boxes overlap at least so much (intersection over union)."""

ANY_CLASS_OVERLAP = 0.9
"""Two boxes that overlap more are one instance, whatever their classes."""


@dataclass(frozen=True)
class Evidence:
    """The instances that an encoder found, from left to right; empty entries come last.

    Attributes:
        scores: (B, K, c) probability that an instance of this class is there; 0 in empty entries.
        boxes: (B, K, 4).
        states: (B, K, s) what the encoder's head knew of the cell.
        found: (B, K) bool, false in empty entries.
    """

    scores: Tensor
    boxes: Tensor
    states: Tensor
    found: Tensor

    @property
    def strength(self) -> Tensor:
        """(B, K) probability of the likeliest class."""
        return self.scores.amax(-1)


@torch.no_grad()
def find_evidence(maps: list[Tensor], num_classes: int, count: int) -> Evidence:
    """Thin out evidence maps to their strongest entries.

    Of two cells that show one instance the stronger is kept. The entries go from left to right, so
    that "the next one" is the next entry.

    Args:
        maps: per level (B, c + 5 + s, h, w) as :class:`~pixellm.model.yolox.YoloxHead` gives them.
        num_classes: c.
        count: K.
    """
    cells = torch.cat([one.flatten(2) for one in maps], 2).transpose(1, 2).float()
    logits, others = cells[..., :num_classes], cells[..., num_classes:]
    scores = logits.sigmoid() * others[..., :1].sigmoid()
    strength = scores.amax(-1)
    candidates = min(CANDIDATES * len(maps), strength.shape[1])
    if count > candidates:
        raise ValueError(
            f"evidence_tokens is {count}, but the {strength.shape[1]} cells of an image give at "
            f"most {candidates} candidates."
        )
    strength, places = strength.topk(candidates, dim=1)
    scores, others = _pick(scores, places), _pick(others, places)
    boxes = _corners(others[..., 1:5])
    strength = strength.masked_fill(_repeated(boxes, scores.argmax(-1)), 0)
    strength, places = strength.topk(count, dim=1)
    found = strength >= LEAST_STRENGTH
    # From left to right by the middle; what is empty stands behind all of the canvas.
    boxes = _pick(boxes, places)
    middle = (boxes[..., 0] + boxes[..., 2]).masked_fill(~found, torch.inf)
    order = middle.argsort(dim=1, stable=True)
    found = found.gather(1, order)
    scores, states = (_pick(_pick(one, places), order) for one in (scores, others[..., 5:]))
    boxes = _pick(boxes, order)
    shown = found[..., None]
    return Evidence(scores * shown, boxes * shown, states * shown, found)


def rename(evidence: Evidence, class_order: Tensor) -> Evidence:
    """Evidence under other names.

    Where any name is another, states are left out: they tell classes by their own.

    Args:
        evidence: what was found.
        class_order: (B, c) for each class, which class goes by its name.
    """
    own = torch.arange(class_order.shape[1], device=class_order.device)
    kept = (class_order == own).all(1)[:, None, None]
    order = class_order[:, None].expand(-1, evidence.scores.shape[1], -1)
    return replace(evidence, scores=evidence.scores.gather(2, order), states=evidence.states * kept)


def _pick(values: Tensor, places: Tensor) -> Tensor:
    """(B, N, ...) entries at (B, K) places."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def _corners(boxes: Tensor) -> Tensor:
    """Middle, width and height to corners on the canvas."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([middle - half, middle + half], -1).clamp(0, 1)


def _repeated(boxes: Tensor, classes: Tensor) -> Tensor:
    """(B, N) bool: entries, strongest first, that a stronger one already stands for."""
    overlap = box_overlap(boxes, boxes)
    same = classes[:, :, None] == classes[:, None, :]
    limit = torch.where(same, SAME_CLASS_OVERLAP, ANY_CLASS_OVERLAP)
    return (overlap > limit).triu(diagonal=1).any(1)


def box_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union (..., P, Q) of (..., P, 4) with (..., Q, 4) boxes."""
    low = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    high = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    areas = [(one[..., 2:] - one[..., :2]).clamp_min(0).prod(-1) for one in (first, second)]
    union = areas[0][..., :, None] + areas[1][..., None, :] - shared
    return shared / union.clamp_min(1e-9)


_WAVES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Periods over the canvas, or halves of them, in which sides of boxes are coded."""

_NUM_SIDES = 8
"""Numbers that place a box: its four sides, its middle, its width and height."""

_STANDINGS = 7
"""An entry's places among its kind: from every side, by size from both ends, and their number."""

_MOST_COUNTED = 8
"""Places and numbers from 0 to one less are told apart."""

BOX_CHANNELS = 5
"""Of a packed entry: the box, and whether there is an instance."""


def description_size(num_classes: int, state_size: int) -> int:
    """Width of :func:`describe`."""
    sides = _NUM_SIDES * (1 + 2 * len(_WAVES))
    return 2 * num_classes + 2 + sides + _STANDINGS * _MOST_COUNTED + state_size


def describe(evidence: Evidence) -> Tensor:
    """What an entry is, as numbers that a linear layer can read.

    Class probabilities, the same as shares of the likeliest, how sure the likeliest and how large
    the box is, the sides of the box plain and as waves, where it stands among its kind, and the
    normalised state.

    Returns:
        (B, K, D), zeros in empty entries.
    """
    strength = evidence.strength[..., None]
    boxes = evidence.boxes
    size = boxes[..., 2:] - boxes[..., :2]
    sides = torch.cat([boxes, (boxes[..., :2] + boxes[..., 2:]) / 2, size], -1)
    waves = (2 * torch.pi * sides[..., None] * sides.new_tensor(_WAVES)).flatten(-2)
    parts = [
        evidence.scores,
        evidence.scores / strength.clamp_min(1e-6),
        strength,
        size.prod(-1, keepdim=True).sqrt(),
        sides,
        waves.sin(),
        waves.cos(),
        _standings(evidence),
        F.layer_norm(evidence.states, evidence.states.shape[-1:]),
    ]
    return torch.cat(parts, -1) * evidence.found[..., None]


def _standings(evidence: Evidence) -> Tensor:
    """Where an entry stands among the entries of its class: the first from the left, the largest.

    Every other entry counts as much as it is likely to be of that class, so that places and numbers
    are expectations; each is told as (nearly) one hot.

    Returns:
        (B, K, 7 * 8): instances of its kind to the left, right, above, below, smaller, larger, all
        of them.
    """
    boxes = evidence.boxes
    size = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    measures = torch.stack([boxes[..., 0] + boxes[..., 2], boxes[..., 1] + boxes[..., 3], size], -1)
    own, other = measures[:, :, None], measures[:, None]
    kind = evidence.scores.argmax(-1)
    likely = evidence.scores.transpose(1, 2).gather(
        1, kind[..., None].expand(-1, -1, boxes.shape[1])
    )
    lower = torch.einsum("bij,bijm->bim", likely, (other < own).to(likely.dtype))
    higher = torch.einsum("bij,bijm->bim", likely, (other > own).to(likely.dtype))
    number = likely.sum(-1, keepdim=True)
    standings = torch.cat([lower, higher, number], -1)[..., None]
    counts = torch.arange(_MOST_COUNTED, device=boxes.device, dtype=boxes.dtype)
    return torch.exp(-2 * (standings.clamp(max=_MOST_COUNTED - 1) - counts).square()).flatten(-2)


def familiarity(entries: Tensor, num_classes: int) -> Tensor:
    """How likely an image shows anything that its encoder knows; low for what is far from photos.

    Args:
        entries: (B, K, 5 + D) as :func:`pack` gives them.
        num_classes: c.

    Returns:
        (B,) in 0..1: the probability that at least one entry is no mistake.
    """
    scores = entries[..., BOX_CHANNELS : BOX_CHANNELS + num_classes]
    return 1 - (1 - scores.amax(-1)).prod(-1)


def pack(evidence: Evidence) -> Tensor:
    """(B, K, 5 + D) box, found (0 or 1) and description of each entry: what the decoder reads."""
    found = evidence.found[..., None].to(evidence.boxes.dtype)
    return torch.cat([evidence.boxes, found, describe(evidence)], -1)
