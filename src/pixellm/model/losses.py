"""The training objective of PixelLM, section 3: text, target refinement and DICE.

Pure functions over tensors; each returns a sum, so that callers divide by the global number of
tokens or targets. Shape legend: M targets, P pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def text_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy of (T, V) logits with (T,) labels, all of them counted."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def refinement_weights(mask_logits: Tensor, answers: Tensor, alpha: float) -> Tensor:
    """The map ``A``: alpha where at least two targets of one answer claim the pixel, else 1.

    ``sum_k m_k >= 2`` over the predicted **binary** masks ``m_k`` (section 3): a target claims a
    pixel where its logit is above 0. Neither the truth nor other answers take part.

    Args:
        mask_logits: (M, P) mask logits.
        answers: (M,) id of the answer each target belongs to, in 0..M-1 or any small ids.
        alpha: weight of contested pixels, >= 1.

    Returns:
        (M, P) weights, without gradient.
    """
    if alpha == 1 or len(answers) == 0:
        return torch.ones_like(mask_logits)
    _, answer_index = answers.unique(return_inverse=True)
    claims = answers.new_zeros(int(answer_index.max()) + 1, mask_logits.shape[1])
    claims.index_add_(0, answer_index, (mask_logits.detach() > 0).to(claims.dtype))
    contested = claims[answer_index] >= 2
    return torch.where(contested, alpha, 1.0).to(mask_logits.dtype)


def target_refinement_loss_sum(
    mask_logits: Tensor, targets: Tensor, answers: Tensor, valid: Tensor, alpha: float
) -> Tensor:
    """``L_ref`` summed over targets: per target, the mean weighted BCE over its valid pixels.

    Args:
        mask_logits: (M, P).
        targets: (M, P) in [0, 1].
        answers: (M,) see :func:`refinement_weights`.
        valid: (M, P) bool or 0/1, false in the padding of the canvas.
        alpha: weight of contested pixels.
    """
    weights = refinement_weights(mask_logits, answers, alpha) * valid
    bce = F.binary_cross_entropy_with_logits(mask_logits, targets, reduction="none")
    return ((bce * weights).sum(1) / valid.sum(1).clamp_min(1)).sum()


def dice_loss_sum(
    mask_logits: Tensor,
    targets: Tensor,
    valid: Tensor,
    *,
    scale: float = 1000.0,
    eps: float = 1e-6,
) -> Tensor:
    """DICE summed over targets.

    ``1 - (2 sum(p t) / scale + eps) / (sum(p) / scale + sum(t) / scale + eps)``; scale and eps
    are the release's, their effect is limited to nearly empty masks.

    Args:
        mask_logits: (M, P).
        targets: (M, P) in [0, 1].
        valid: (M, P) bool or 0/1.
        scale: divisor of the sums.
        eps: keeps empty masks defined.
    """
    probabilities = mask_logits.sigmoid() * valid
    targets = targets * valid
    overlap = 2 * (probabilities / scale * targets).sum(1)
    total = (probabilities / scale).sum(1) + (targets / scale).sum(1)
    return (1 - (overlap + eps) / (total + eps)).sum()
