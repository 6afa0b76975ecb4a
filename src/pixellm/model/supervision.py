"""What a batch is scored against: its targets found in the text, its masks compared.

Brings predictions and truth together; the losses themselves are pure functions next door. Knows
tensors and ids only. Shape legend: B rows, T tokens, M targets, H W the canvas, h w a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pixellm.model.codebook import find_groups
from pixellm.model.losses import dice_loss_sum, target_refinement_loss_sum


@dataclass(frozen=True)
class Truth:
    """What a batch is scored against.

    Attributes:
        labels: (B, T) ids to predict, -100 elsewhere, not shifted.
        masks: (M, h, w) 0/1 in the canvas frame, in the order of the groups; None for none.
        rows: (M,) row of each target; None where targets do not matter.
        answers: (M,) id of the answer that each target belongs to; its row where None.
        num_label_tokens: divisor of the text loss; the batch's own count where None.
        num_targets: divisor of the mask losses; the batch's own count where None.
    """

    labels: Tensor
    masks: Tensor | None
    rows: Tensor | None
    answers: Tensor | None
    num_label_tokens: Tensor | int | None
    num_targets: Tensor | int | None


def find_targets(
    input_ids: Tensor, truth: Truth, codebook_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Rows and starts (M,) of the codebook groups in (B, T) ids.

    Raises:
        ValueError: a group is none of the batch's targets, or a target lacks its group.
    """
    assert truth.rows is not None
    rows, starts = find_groups(input_ids, torch.tensor(codebook_ids, device=input_ids.device))
    count = len(truth.rows if truth.masks is None else truth.masks)
    if len(rows) != count or not torch.equal(rows, truth.rows):
        raise ValueError(
            f"The text holds {len(rows)} codebook groups, the batch {count} "
            "target masks; each group needs its mask, in order."
        )
    return rows, starts


def mask_losses(
    mask_logits: Tensor, truth: Truth, rows: Tensor, pixel_mask: Tensor | None, alpha: float
) -> tuple[Tensor, Tensor]:
    """Refinement and DICE losses at the resolution of the true masks.

    Args:
        mask_logits: (M, h', w') in the canvas frame, any size.
        truth: with masks.
        rows: (M,) row of each target.
        pixel_mask: (B, H, W) bool, false in the canvas's padding; None where there is none.
        alpha: weight of contested pixels.

    Returns:
        Both losses, over the number of targets.
    """
    assert truth.masks is not None
    size = truth.masks.shape[-2:]
    logits = mask_logits.float()
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits[:, None], size=size, mode="bilinear")[:, 0]
    logits, targets = logits.flatten(1), truth.masks.flatten(1).float()
    if pixel_mask is None:
        valid = torch.ones_like(targets)
    else:
        shown = F.interpolate(pixel_mask[:, None].float(), size=size, mode="nearest")
        valid = shown.flatten(1)[rows]
    count = truth.num_targets if truth.num_targets is not None else len(targets)
    answers = truth.answers if truth.answers is not None else rows
    refinement = target_refinement_loss_sum(logits, targets, answers, valid, alpha)
    return refinement / count, dice_loss_sum(logits, targets, valid) / count
