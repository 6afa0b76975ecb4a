"""Boundary IoU: how well the outline of a mask is met, whatever its size.

Source: Cheng et al., "Boundary IoU", CVPR 2021: the IoU of the two masks' inner
boundary bands, whose width is 2 % of the image's diagonal.
Used by: ``mask_match``.
"""

from __future__ import annotations

import math

import numpy as np

from pixellm.masks import mask_to_box
from pixellm.types import BoolMask

RIM_SHARE = 0.02
"""Width of the boundary band, as a share of the image's diagonal."""


def boundary_iou(prediction: BoolMask, truth: BoolMask) -> float:
    """IoU of the boundary bands of two (H, W) masks; two empty masks agree, which is 1.

    Raises:
        ValueError: the masks differ in size.
        ImportError: scipy is missing.
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f"Masks of {prediction.shape} and {truth.shape} can't be compared; "
            "bring both to the size of the image."
        )
    first, second = boundary_band(prediction), boundary_band(truth)
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 1.0


def boundary_band(mask: BoolMask) -> BoolMask:
    """Pixels of a (H, W) mask within the band's width of its outline or the image's edge.

    Raises:
        ImportError: scipy is missing.
    """
    x, y, width, height = mask_to_box(mask)
    if width == 0:
        return mask
    reach = max(1, round(RIM_SHARE * math.hypot(*mask.shape)))
    part = (slice(y, y + height), slice(x, x + width))
    band = np.zeros_like(mask)
    band[part] = mask[part] & ~_erode(mask[part], reach)
    return band


def _erode(mask: BoolMask, reach: int) -> BoolMask:
    """Pixels whose (2 reach + 1) x (2 reach + 1) neighbourhood lies in the mask."""
    try:
        from scipy.ndimage import minimum_filter1d
    except ImportError as error:
        raise ImportError(
            "Boundary IoU needs scipy; install it with `pip install 'pixellm[eval]'`."
        ) from error
    inner = mask.astype(np.uint8)
    for axis in (0, 1):  # a square's erosion is one along each axis
        inner = minimum_filter1d(inner, 2 * reach + 1, axis=axis, mode="constant", cval=0)
    return inner.astype(np.bool_)
