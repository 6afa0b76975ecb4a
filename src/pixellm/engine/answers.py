"""Finished answers to Predictions: text, phrases and masks in original pixels.

The masks of all answers given are decoded together, resized on the device and brought back in
one transfer. Knows nothing of how answers were written.
Shape legend: K targets of an answer, M of all, G tokens of a group, D text width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixellm.engine.images import PreparedImage
from pixellm.engine.memory import run_in_portions
from pixellm.engine.pending import PendingAnswer
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.model.outputs import EncodedImages
from pixellm.model.pixel_masks import restore_masks
from pixellm.processing.phrases import phrase_before
from pixellm.processing.processor import PixelLMProcessor
from pixellm.types import Prediction, Segment

TARGETS_AT_ONCE = 256
"""Most targets in one call of the pixel decoder."""

PIXELS_AT_ONCE = 1 << 25
"""Most logits at the size of the original picture, the largest tensors that there are."""

Mask = tuple[NDArray[np.bool_], float]
"""A (H, W) mask over the original picture, and its score."""


class AnswerDecoder:
    """Turns answers into Predictions.

    Args:
        model: on its device.
        processor: the model's own.
        eos_ids: ids that end an answer and are no part of its text.
        min_score: masks of a lower score are no segments.
    """

    def __init__(
        self,
        model: PixelLMForConditionalGeneration,
        processor: PixelLMProcessor,
        eos_ids: frozenset[int],
        min_score: float = 0.0,
    ) -> None:
        self.model = model
        self.processor = processor
        self.eos_ids = eos_ids
        self.min_score = min_score

    def text_of(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """The text of ids written so far, and where the phrase of each group ends in it."""
        decoded = self.processor.codec.decode_answer([i for i in ids if i not in self.eos_ids])
        return decoded.text, decoded.ends

    def predictions(self, finished: Sequence[PendingAnswer]) -> list[Prediction]:
        """Predictions of finished answers, their masks decoded together."""
        states = [
            (states, pending.picture)
            for pending in finished
            for states in pending.answer.group_states
        ]
        masks = iter(self.masks(states))
        return [
            self.prediction(pending, [next(masks) for _ in pending.answer.group_states])
            for pending in finished
        ]

    def prediction(self, pending: PendingAnswer, masks: Sequence[Mask]) -> Prediction:
        """Text, and a segment for each group with the phrase that it grounds.

        Groups whose masks are too unsure give none; how many is in ``info["num_filtered"]``.
        """
        codec, ids = self.processor.codec, pending.answer.ids
        decoded = codec.decode_answer([i for i in ids if i not in self.eos_ids])
        found = [
            segment(decoded.text, start, end, mask)
            for start, end, mask in zip((0, *decoded.ends), decoded.ends, masks, strict=False)
        ]
        segments = tuple(one for one in found if self.passes_threshold(one))
        info = {
            "num_tokens": len(ids),
            "num_filtered": len(found) - len(segments),
            "seconds": time.perf_counter() - pending.started,
            "marked_answer": codec.mark_answer(decoded),
        }
        size = pending.picture.original
        return Prediction(decoded.text, segments, pending.request.question, size, info)

    def passes_threshold(self, found: Segment) -> bool:
        """Whether a segment's mask is sure enough to be shown."""
        return passes_threshold(found.score, self.min_score)

    def masks(self, targets: Sequence[tuple[Tensor, PreparedImage]]) -> list[Mask]:
        """Masks of (G, D) group states, each about its picture."""
        return run_in_portions(self._decode, targets, TARGETS_AT_ONCE)

    @torch.inference_mode()
    def _decode(self, targets: Sequence[tuple[Tensor, PreparedImage]]) -> list[Mask]:
        pictures = {picture.key: picture for _, picture in targets}
        place = {key: row for row, key in enumerate(pictures)}
        rows = torch.tensor([place[p.key] for _, p in targets], device=self.model.device)
        features = _join_features([picture.encoded for picture in pictures.values()])
        embeddings = self.model.model.codebook(torch.stack([state for state, _ in targets]))
        logits = self.model.decode_masks(embeddings, features, rows)
        masks, scores, done = list[Tensor](), list[Tensor](), 0
        for _, group in groupby((picture for _, picture in targets), key=lambda p: p.key):
            same = list(group)
            for piece in logits[done : done + len(same)].split(_portion(same[0])):
                found, score = self._restore(piece, same[0])
                masks += [*found]
                scores.append(score)
            done += len(same)
        return list(zip(_to_host(masks), torch.cat(scores).tolist(), strict=True))

    def _restore(self, logits: Tensor, picture: PreparedImage) -> tuple[Tensor, Tensor]:
        """Bool masks (K, H, W) in original pixels on the device, and their scores (K,)."""
        canvas = self.processor.image_processor.image_size
        restored = restore_masks(logits.float(), picture.resized, picture.original, canvas)
        masks = restored > 0
        covered = masks.flatten(1).sum(1).clamp_min(1)
        return masks, (restored.sigmoid() * masks).flatten(1).sum(1) / covered


def _portion(picture: PreparedImage) -> int:
    """How many logits of a picture's size are held at once."""
    return max(1, PIXELS_AT_ONCE // (picture.original[0] * picture.original[1]))


def passes_threshold(score: float, limit: float) -> bool:
    """Whether a mask of that score is shown; 0 shows all, those without a score too."""
    return not score < limit


def segment(text: str, start: int, end: int, mask: Mask) -> Segment:
    """The segment of a group at ``end`` of a text, behind the one before at ``start``."""
    span = phrase_before(text, end, start)
    return Segment(text[span[0] : span[1]], mask[0], mask[1], span)


def _to_host(masks: Sequence[Tensor]) -> list[NDArray[np.bool_]]:
    """Masks of any sizes as arrays, brought over in one transfer."""
    flat = torch.cat([mask.flatten() for mask in masks]).cpu().numpy()
    ends = np.cumsum([mask.numel() for mask in masks])
    pieces = np.split(flat, ends[:-1])
    return [piece.reshape(tuple(mask.shape)) for piece, mask in zip(pieces, masks, strict=True)]


def _join_features(images: Sequence[EncodedImages]) -> list[Tensor]:
    """Decoder features of pictures of one row each, stacked per scale."""
    return [torch.cat(maps) for maps in zip(*(image.features for image in images), strict=True)]
