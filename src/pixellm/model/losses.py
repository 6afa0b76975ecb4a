"""The training objective of PixelLM, section 3: text, target refinement and DICE.

Pure functions over tensors, without means over targets or tokens: callers divide by the global
numbers of both. Shape legend: M targets, P pixels of the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def text_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy of (T, V) logits with (T,) labels, all of them counted."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def count_claims(mask_logits: Tensor, answers: Tensor, num_answers: int) -> Tensor:
    """How many targets of each answer claim each pixel; a logit of exactly 0 claims nothing.

    Args:
        mask_logits: (M, P).
        answers: (M,) the answer of each target, in 0..A-1.
        num_answers: A.

    Returns:
        (A, P) int16, without gradient.
    """
    claims = torch.zeros(
        num_answers, mask_logits.shape[1], dtype=torch.int16, device=mask_logits.device
    )
    return claims.index_add_(0, answers, (mask_logits.detach() > 0).to(claims.dtype))


def target_refinement_loss(
    mask_logits: Tensor, targets: Tensor, contested: Tensor | None, alpha: float
) -> Tensor:
    """``L_ref`` of each target: the mean over pixels of its binary cross-entropy, weighted.

    The map ``A`` is alpha where at least two of the predicted binary masks of one answer claim the
    pixel, else 1. Neither the truth nor other answers take part.

    Args:
        mask_logits: (M, P).
        targets: (M, P) in [0, 1].
        contested: (M, P) bool, where :func:`count_claims` gives the target's answer at least 2;
            None for nowhere.
        alpha: weight of contested pixels, >= 1.

    Returns:
        (M,).
    """
    bce = F.binary_cross_entropy_with_logits(mask_logits, targets, reduction="none")
    if contested is not None:
        bce = torch.where(contested, alpha * bce, bce)
    return bce.mean(1)


def dice_loss(mask_logits: Tensor, targets: Tensor) -> Tensor:
    """DICE of each target.

    ``1 - (2 sum(p t) / scale + eps) / (sum(p) / scale + sum(t) / scale + eps)``; scale and eps
    are the release's, their effect is limited to nearly empty masks.

    Args:
        mask_logits: (M, P).
        targets: (M, P) in [0, 1].

    Returns:
        (M,).
    """
    scale, eps = 1000.0, 1e-6
    probabilities = mask_logits.sigmoid()
    overlap = 2 * (probabilities / scale * targets).sum(1)
    total = (probabilities / scale).sum(1) + (targets / scale).sum(1)
    return 1 - (overlap + eps) / (total + eps)
