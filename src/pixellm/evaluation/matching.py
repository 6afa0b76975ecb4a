"""Which predicted mask answers which true one: the two matchings of the MUSE score.

NumPy arrays of one question in, index pairs out. It knows nothing of scores or data sets.
All masks of a call have the size (H, W) of one image.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixellm.masks import pairwise_iou
from pixellm.types import BoolMask

Pairs = list[tuple[int, int]]
"""(prediction, truth) indices, ascending in the prediction; min(P, G) of them."""

HIT_IOU = 0.5
"""A truth counts as found from this IoU on."""

# Two matchings can have the same total IoU and yet differ in hits or in pooled intersection.
# These weights settle such ties, so that no score depends on the order of the masks; they are
# too small to outweigh a difference in IoU that any score would show.
_HIT_WEIGHT = 1e-9
_AREA_WEIGHT = 1e-12


def match_by_iou(predictions: BoolMask, truths: BoolMask) -> Pairs:
    """The one-to-one matching with the largest total IoU (strict protocol).

    Args:
        predictions: (P, H, W) bool.
        truths: (G, H, W) bool.

    Returns:
        min(P, G) pairs. A pair may have IoU 0. Of equal totals the one with more pairs at
        IoU >= 0.5 is taken, then the one with the larger total intersection.
    """
    if not (len(predictions) and len(truths)):
        return []
    iou = pairwise_iou(predictions, truths)
    areas = _areas(predictions)[:, None] + _areas(truths)[None]
    intersection = iou * areas / (1 + iou) / truths[0].size
    return assign(-(iou + _HIT_WEIGHT * (iou >= HIT_IOU) + _AREA_WEIGHT * intersection))


def match_by_released_cost(logits: NDArray[np.float32], truths: BoolMask) -> Pairs:
    """The matching of the released code: least binary cross-entropy plus DICE.

    The release evaluates both costs at 12,544 points drawn anew, without a seed, for every
    question. Here they are taken over all pixels, which is what those draws estimate.

    Args:
        logits: (P, H, W) finite mask logits.
        truths: (G, H, W) bool.

    Returns:
        min(P, G) pairs.
    """
    if not (len(logits) and len(truths)):
        return []
    flat_logits = logits.reshape(len(logits), -1)
    flat_truths = truths.reshape(len(truths), -1).astype(np.float32)
    # -log p = softplus(x) - x and -log(1 - p) = softplus(x), so one product gives both terms.
    softplus = np.logaddexp(0, flat_logits).sum(axis=1, dtype=np.float64)
    cross_entropy = (softplus[:, None] - flat_logits @ flat_truths.T) / flat_logits.shape[1]
    probabilities = np.exp(-np.logaddexp(0, -flat_logits))
    areas = probabilities.sum(axis=1)[:, None] + flat_truths.sum(axis=1)[None]
    dice = 1 - (2 * probabilities @ flat_truths.T + 1) / (areas + 1)
    return assign(cross_entropy + dice)


def _areas(masks: BoolMask) -> NDArray[np.int64]:
    return np.count_nonzero(masks.reshape(len(masks), -1), axis=1)


def assign(cost: NDArray[np.float64]) -> Pairs:
    """The one-to-one pairs of rows and columns with the least total cost."""
    rows, columns = import_scipy("optimize").linear_sum_assignment(cost)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def import_scipy(module: str) -> Any:
    """A module of scipy, which the extra ``eval`` installs."""
    try:
        return import_module(f"scipy.{module}")
    except ImportError as error:
        raise ImportError(
            "Scores of masks need scipy; install it with `pip install 'pixellm[eval]'`."
        ) from error
