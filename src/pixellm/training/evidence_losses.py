"""What is learnt about the instances that an encoder finds: to draw each, and to choose among them.

Instances found and objects annotated are brought together by their boxes. Shape legend: B rows,
K entries, M targets, N objects, g the grid of the true masks, U windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pixellm.model.evidence import BOX_CHANNELS, SAME_INSTANCE, box_overlap
from pixellm.model.regions import cut_windows

NO_INSTANCE = 0.3
"""It shows none when it overlaps none more than so much; what lies between teaches no choice."""

OTHER_CLASS = 0.02
"""Where a class is less likely, an entry is of another class."""

RIVAL = 0.3
"""An entry of a target's class that is at least so likely, and does not belong to it, is a rival:
only one of its kind is meant."""

FOREIGN_WEIGHT = 8.0
"""All entries of other images together teach a target's choice as much as so many of its own."""

WINDOWS_PER_IMAGE = 12
"""Instances of an image that are drawn in one step, picked at random."""


def mask_boxes(masks: Tensor) -> Tensor:
    """(N, g, g) masks to (N, 4) boxes in shares of the canvas; 0 for empty ones."""
    count, size = len(masks), masks.shape[-1]
    sides = []
    for shown in (masks.bool().any(1), masks.bool().any(2)):  # columns, then rows
        index = torch.arange(size, device=masks.device).expand(count, -1)
        low = index.masked_fill(~shown, size).amin(1)
        high = (index + 1).masked_fill(~shown, 0).amax(1)
        sides.append((torch.minimum(low, high), high))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1) / size


def region_loss(decoder: Any, features: Sequence[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Mean loss of drawing the instances found that are annotated.

    Args:
        decoder: a :class:`~pixellm.model.regions.RegionDecoder`.
        features: as it reads them.
        batch: with ``object_shapes`` (N, g, g) and ``object_rows`` (N,).

    Returns:
        Scalar: cross-entropy and DICE, each over the pixels of a window.
    """
    entries, rows = features[-1], batch["object_rows"]
    boxes = mask_boxes(batch["object_shapes"])
    owners, positions, objects = [], [], []
    for row in rows.unique().tolist():
        own = (rows == row).nonzero()[:, 0]
        overlap = box_overlap(entries[row, :, :4], boxes[own])
        best, which = overlap.max(1)
        shown = ((best > SAME_INSTANCE) & (entries[row, :, BOX_CHANNELS - 1] > 0)).nonzero()[:, 0]
        picked = shown[torch.randperm(len(shown))[:WINDOWS_PER_IMAGE]]
        picked = picked[which[picked].argsort()]  # by object, so that both are in ascending order
        owners.append(torch.full_like(picked, row))
        positions.append(picked)
        objects.append(own[which[picked]])
    owner = torch.cat(owners) if owners else rows[:0]
    if not len(owner):
        return 0 * torch.stack([one.sum() for one in features[:-1]]).sum()
    position, which = torch.cat(positions), torch.cat(objects)
    windows, logits = decoder.draw_entries(features, entries[owner, position], owner)
    masks = batch["object_shapes"].to(logits.dtype)[:, None]
    truth = cut_windows(masks, windows, which, logits.shape[-1])[:, 0]
    return window_loss(logits.float().flatten(1), truth.flatten(1)).mean()


def window_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """(U,) mean cross-entropy plus DICE of (U, P) logits with (U, P) shares in 0..1."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
    shown = logits.sigmoid()
    shared = 2 * (shown * truth).sum(1) + 1
    return entropy + 1 - shared / (shown.sum(1) + truth.sum(1) + 1)


def choice_loss_sum(
    decoder: Any, target_embeddings: Tensor, entries: Tensor, batch: Mapping[str, Tensor]
) -> Tensor:
    """Sum over targets of the cross-entropy of which entries belong to them, and of their class.

    Where the decoder tells one instance from all of its kind (``masks_per_thing``), that is learnt
    of targets that differ in it, and a target of one object competes for the likeliest entry.

    The class of a target is the one that its name tells (``target_kinds``), or where that is
    unknown the likeliest one of the surest entry that belongs to it.

    Entries of the batch's other images are no part of a target either, as long as they are of
    another class; among those of its own image alone, a target that names what is not there would
    never be taught to choose nothing.

    Args:
        decoder: a :class:`~pixellm.model.regions.RegionDecoder`.
        target_embeddings: (M, L, C).
        entries: (B, K, 5 + D).
        batch: with ``target_shapes``, ``target_rows``, ``object_shapes`` and ``object_rows``, and
            where the encoder names its classes ``target_kinds``.
    """
    rows = batch["target_rows"]
    total = target_embeddings.new_zeros((), dtype=torch.float32)
    choice = decoder.choose_among_all(target_embeddings, entries).float()
    kinds = decoder.kinds(target_embeddings).float()
    found = entries[..., BOX_CHANNELS - 1] > 0
    boxes = mask_boxes(batch["object_shapes"])
    scores = decoder.class_scores(entries)
    ones = decoder.is_one(target_embeddings).float() if decoder.tells_one else None
    for row in rows.unique().tolist():
        asked, own = rows == row, batch["object_rows"] == row
        objects = batch["object_shapes"][own].flatten(1).float()
        belongs = objects_of_targets(batch["target_shapes"][asked].flatten(1).float(), objects)
        overlap = box_overlap(entries[row, :, :4], boxes[own])
        if not overlap.shape[1]:
            continue
        best, which = overlap.max(1)
        wanted = belongs[:, which] & (best > SAME_INSTANCE) & found[row]
        known = found[row] & ((best > SAME_INSTANCE) | (best < NO_INSTANCE))
        entropy = F.binary_cross_entropy_with_logits(
            choice[asked, row], wanted.float(), reduction="none"
        )
        total = total + (entropy * known).sum()
        chosen = wanted.any(1)
        if chosen.any():
            surest = (scores[row].amax(-1) * wanted[chosen]).argmax(1)
            kind = scores[row, surest].argmax(-1)
            if "target_kinds" in batch:
                named = batch["target_kinds"][asked][chosen]
                kind = torch.where(named >= 0, named, kind)
            told = kinds[asked][chosen]
            total = total + F.cross_entropy(told, kind, reduction="sum")
            if ones is not None:
                rivals = (scores[row][:, kind].T > RIVAL) & known & ~wanted[chosen]
                has_rivals = rivals.any(1)
                number = belongs[chosen].sum(1)
                total = total + _one_loss_sum(ones[asked][chosen], number, has_rivals)
                among = choice[asked, row][chosen].masked_fill(~known, -torch.inf)
                own = among.masked_fill(~wanted[chosen], -torch.inf)
                missed = among.logsumexp(1) - own.logsumexp(1)
                total = total + (missed * (number == 1)).sum()
        if len(entries) > 1 and chosen.any():
            elsewhere = choice[asked][chosen]
            foreign = (scores[..., kind].permute(2, 0, 1) < OTHER_CLASS) & found
            foreign[:, row] = False
            mistaken = F.softplus(elsewhere) * foreign
            count = foreign.flatten(1).sum(1).clamp_min(1)
            total = total + (mistaken.flatten(1).sum(1) * FOREIGN_WEIGHT / count).sum()
    return total


def _one_loss_sum(logits: Tensor, number: Tensor, has_rivals: Tensor) -> Tensor:
    """Cross-entropy of (M,) logits that a target is one; the only one of its kind tells nothing."""
    is_one = (number == 1) & has_rivals
    decided = is_one | ((number > 1) & ~has_rivals)
    entropy = F.binary_cross_entropy_with_logits(logits, is_one.float(), reduction="none")
    return (entropy * decided).sum()


def objects_of_targets(targets: Tensor, objects: Tensor) -> Tensor:
    """Which objects a target is made of.

    An object belongs to a target that covers most of it, unless it only lies upon a larger object
    that belongs to it too, as a tie upon a person.

    Args:
        targets: (M, P) 0 or 1.
        objects: (N, P) 0 or 1.

    Returns:
        (M, N) bool.
    """
    areas = objects.sum(1).clamp_min(1)
    covered = targets @ objects.T / areas > 0.5
    upon = (objects @ objects.T / areas[:, None] > 0.6) & (areas[None] > 1.5 * areas[:, None])
    return covered & ~((covered.float() @ upon.float().T) > 0)
