"""From a request to its prompt, and from an answer's ids and states to its Prediction.

The only place where hidden states become masks: of answers that the model wrote and of answers
that were given, with logits or without. The masks of many answers are decoded together and
resized on the device. How answers are written is for ``batch`` to know.
Shape legend: K targets of an answer, M of all, G tokens of a group, D text width.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixellm.answer import Answer
from pixellm.engine.batch import GeneratedAnswer, Step
from pixellm.engine.dialogues import TooLongError
from pixellm.engine.images import PreparedImage
from pixellm.engine.memory import run_in_portions
from pixellm.engine.row import Prompt, read_groups
from pixellm.engine.sampling import AnswerOptions
from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.model.pixel_masks import restore_masks
from pixellm.processing.phrases import phrase_before
from pixellm.processing.processor import PixelLMProcessor
from pixellm.processing.prompts import EncodedDialogue, dialogue_messages
from pixellm.types import Prediction, Request, Sample, Segment, Turn, join_marks, split_marks

TARGETS_AT_ONCE = 256
"""Most targets in one call of the pixel decoder."""

PIXELS_AT_ONCE = 1 << 25
"""Most logits at the size of the original image, the largest tensors that there are."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedMask:
    """A mask over the original image.

    Attributes:
        mask: (H, W), true where the logits are above 0.
        score: mean probability over the mask's pixels, 0 for an empty mask; of models with
            ``masks_per_thing`` the intersection over union that it is expected to have.
        logits: (H, W) float32, where they were asked for.
        instance: which of the instances found it is; None where the model tells none apart.
    """

    mask: NDArray[np.bool_]
    score: float
    logits: NDArray[np.float32] | None = None
    instance: int | None = None


GroupMasks = tuple[DecodedMask, ...]
"""The masks of a group: of each instance that its phrase stands for."""


@dataclass(eq=False)
class PendingAnswer:
    """A request on its way: its image, its prompt, and the answer as far as it is written."""

    request: Request
    image: PreparedImage
    prompt: Prompt
    answer: GeneratedAnswer = field(default_factory=GeneratedAnswer)
    started: float = field(default_factory=time.perf_counter)


class PromptBuilder:
    """Builds prompts for one model."""

    def __init__(self, config: PixelLMConfig, processor: PixelLMProcessor) -> None:
        self.processor = processor
        self.group_size = config.group_size
        # None or absent where the language model's positions have no end.
        limit = getattr(config.text_config, "max_position_embeddings", None)
        self.context = sys.maxsize if limit is None else limit

    def encode(self, request: Request) -> EncodedDialogue:
        """Prompt ids."""
        if not request.question.strip():
            raise ValueError("The question is empty; ask something about the image.")
        encoded = self.processor.codec.encode(
            dialogue_messages(request.history, self.processor.word_question(request)),
            add_generation_prompt=True,
        )
        if self.context - len(encoded.ids) < 1 + self.group_size:
            raise TooLongError(
                f"The question takes {len(encoded.ids)} tokens with its image and history; the "
                f"model's context holds {self.context}. Ask something shorter."
            )
        return encoded

    def encode_given(self, sample: Sample) -> EncodedDialogue:
        """Ids of a dialogue with its answers."""
        turns = [(self.processor.word_question(turn), turn.answer) for turn in sample.turns]
        encoded = self.processor.codec.encode(dialogue_messages(turns))
        if len(encoded.ids) > self.context:
            raise TooLongError(
                f"Dialogue {sample.id!r} takes {len(encoded.ids)} tokens with its image and "
                f"answers; the model's context holds {self.context}. Ask it without its answers."
            )
        return encoded

    def begin(
        self,
        request: Request,
        encoded: EncodedDialogue,
        image: PreparedImage,
        options: AnswerOptions,
        limit: int,
    ) -> PendingAnswer:
        """Begin an answer of at most ``limit`` tokens, where the options say nothing else."""
        wanted = options.max_new_tokens or limit
        prompt = Prompt(
            ids=encoded.ids,
            max_new_tokens=min(wanted, self.context - len(encoded.ids)),
            image_tokens=image.encoded.tokens[0],
            visible=visible_ids(encoded, image),
            prefix=encoded.prefix,
            key=image.key,
            # Who asks with a history, or about an image prepared before, may ask again.
            keep=bool(request.history) or isinstance(request.image, PreparedImage),
            options=options,
        )
        return PendingAnswer(request, image, prompt)


def visible_ids(encoded: EncodedDialogue, image: PreparedImage) -> tuple[bool, ...]:
    """For each id up to the end of the image whether it may be attended to."""
    return (True,) * (encoded.prefix - len(image.visible)) + image.visible


@dataclass(eq=False)
class AnswerDecoder:
    """Turns answers into Predictions.

    The ``eos_ids`` end an answer and are no part of its text; masks of a score below ``min_score``
    are no segments.
    """

    model: PixelLMForConditionalGeneration
    processor: PixelLMProcessor
    eos_ids: frozenset[int]
    min_score: float = 0.0

    def text_of(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """The text of ids written so far, and where the phrase of each group ends in it."""
        decoded = self.processor.codec.decode_answer([i for i in ids if i not in self.eos_ids])
        return decoded.text, decoded.ends

    def predictions(self, finished: Sequence[PendingAnswer]) -> list[Prediction]:
        """Predictions of finished answers, their masks decoded together."""
        states = [
            (states, pending.image)
            for pending in finished
            for states in pending.answer.group_states
        ]
        keep_logits = any(pending.prompt.options.keep_logits for pending in finished)
        masks = iter(self.group_masks(states, keep_logits=keep_logits))
        return [
            self.prediction(pending, [next(masks) for _ in pending.answer.group_states])
            for pending in finished
        ]

    def prediction(self, pending: PendingAnswer, masks: Sequence[GroupMasks]) -> Answer:
        """Text, and a segment for each instance of a group with the phrase that it grounds.

        Masks that are too unsure give none, nor does an instance that an earlier phrase stands for.
        Where the encoder can tell, ``info["familiarity"]`` is how likely it knows anything in the
        image.
        """
        ids, size = pending.answer.ids, pending.image.original
        text, ends = self.text_of(ids)
        spans = [*zip((0, *ends), ends, strict=False)]
        groups = zip(spans, self.once(masks), strict=False)
        found = [(*span, mask) for span, own in groups for mask in own]
        shown = [one for one in found if passes_threshold(one[2].score, self.min_score)]
        info: dict[str, Any] = {
            "num_tokens": len(ids),
            "num_prompt_tokens": len(pending.prompt.ids),
            "is_cut": not ids or ids[-1] not in self.eos_ids,
            "num_filtered": len(found) - len(shown),
            "seconds": time.perf_counter() - pending.started,
            "marked_text": join_marks(text, spans),
        }
        if pending.prompt.options.keep_logits:
            info["logits"] = _stack_logits([mask for _, _, mask in shown], size)
        segments = tuple(segment(text, *one) for one in shown)
        known = self.model.model.familiarity(pending.image.encoded)
        if known is not None:
            info["familiarity"] = float(known[0])
        answer = Prediction(text, segments, pending.request.question, size, info)
        return Answer.of(answer, pending.request.image)

    def given_predictions(
        self,
        samples: Sequence[Sample],
        dialogues: Sequence[EncodedDialogue],
        images: Sequence[PreparedImage],
        keep_logits: bool,
    ) -> list[tuple[Prediction, ...]]:
        """Predictions of the turns of given dialogues, read in one pass, their masks together."""
        groups = read_groups(
            self.model,
            [dialogue.ids for dialogue in dialogues],
            [visible_ids(*one) for one in zip(dialogues, images, strict=True)],
            [image.encoded.tokens[0] for image in images],
        )
        targets = [(g, image) for own, image in zip(groups, images, strict=True) for g in own]
        masks = iter(self.masks(targets, keep_logits=keep_logits))
        predictions = []
        for sample, image in zip(samples, images, strict=True):
            drawn = [(turn, [next(masks) for _ in turn.targets]) for turn in sample.turns]
            predictions.append(
                tuple(_given_prediction(*one, image.original, keep_logits) for one in drawn)
            )
        return predictions

    def once(self, groups: Sequence[GroupMasks]) -> list[GroupMasks]:
        """An answer's masks without those of instances that an earlier group shows."""
        seen: set[int] = set()
        left = []
        for group in groups:
            own = tuple(one for one in group if one.instance is None or one.instance not in seen)
            sure = (one for one in own if passes_threshold(one.score, self.min_score))
            seen.update(one.instance for one in sure if one.instance is not None)
            left.append(own)
        return left

    def group_masks(
        self, targets: Sequence[tuple[Tensor, PreparedImage]], *, keep_logits: bool = False
    ) -> list[GroupMasks]:
        """Masks of (G, D) group states, each about its image: of every instance it stands for.

        A group has one mask, unless its model tells instances apart (``masks_per_thing``).
        """
        per_thing = self.model.config.masks_per_thing
        decode = partial(self._decode, per_thing=per_thing, keep_logits=keep_logits)
        return run_in_portions(decode, targets, TARGETS_AT_ONCE)

    def masks(
        self, targets: Sequence[tuple[Tensor, PreparedImage]], *, keep_logits: bool = False
    ) -> list[DecodedMask]:
        """Masks of (G, D) group states, one each: all that it stands for."""
        decode = partial(self._decode, per_thing=False, keep_logits=keep_logits)
        return [mask for (mask,) in run_in_portions(decode, targets, TARGETS_AT_ONCE)]

    @torch.inference_mode()
    def _decode(
        self,
        targets: Sequence[tuple[Tensor, PreparedImage]],
        *,
        per_thing: bool,
        keep_logits: bool,
    ) -> list[GroupMasks]:
        images = {image.key: image for _, image in targets}
        position = {key: row for row, key in enumerate(images)}
        rows = torch.tensor([position[p.key] for _, p in targets], device=self.model.device)
        maps = zip(*(image.encoded.features for image in images.values()), strict=True)
        features = [torch.cat(scale) for scale in maps]
        embeddings = self.model.model.codebook(torch.stack([state for state, _ in targets]))
        if not per_thing:
            low = self.model.decode_masks(embeddings, features, rows)
            return [(one,) for one in self._to_masks(low, [p for _, p in targets], keep_logits)]
        instances = self.model.decode_instances(embeddings, features, rows)
        owners = instances.targets.tolist()
        masks = self._to_masks(instances.logits, [targets[one][1] for one in owners], keep_logits)
        groups: list[list[DecodedMask]] = [[] for _ in targets]
        told = zip(owners, masks, instances.places.tolist(), instances.scores.tolist(), strict=True)
        for owner, mask, place, score in told:
            worth = score if mask.score else 0.0  # an empty mask is worth nothing
            groups[owner].append(replace(mask, score=worth, instance=place))
        return [tuple(group) for group in groups]

    def _to_masks(
        self, low: Tensor, images: Sequence[PreparedImage], keep_logits: bool
    ) -> list[DecodedMask]:
        """Masks over the original images of (P, h, w) logits."""
        masks, scores, logits, done = list[Tensor](), list[Tensor](), list[Tensor](), 0
        canvas = self.processor.image_processor.image_size
        for _, group in groupby(images, key=lambda image: image.key):
            same = list(group)
            resized, original = same[0].resized, same[0].original
            at_once = max(1, PIXELS_AT_ONCE // math.prod(original))
            for piece in low[done : done + len(same)].split(at_once):
                restored = restore_masks(piece.float(), resized, original, canvas)
                masks += [*(restored > 0)]
                scores.append(score_masks(restored))
                logits += [*restored.cpu()] if keep_logits else []
            done += len(same)
        if not masks:
            return []
        found = zip(_to_host(masks), torch.cat(scores).tolist(), strict=True)
        if not keep_logits:
            return [DecodedMask(*one) for one in found]
        kept = zip(found, logits, strict=True)
        return [DecodedMask(*one, piece.numpy()) for one, piece in kept]


class GrowingAnswer:
    """An answer told piece by piece, as its ids come."""

    def __init__(self, decoder: AnswerDecoder, pending: PendingAnswer) -> None:
        self.pending = pending
        self._decoder = decoder
        self._masks: list[GroupMasks] = []
        self._sent = 0

    def extend(
        self, step: Step, masks: Sequence[GroupMasks]
    ) -> Iterator[str | Segment | Prediction]:
        """What a step adds to text and segments; behind the last one the Prediction.

        The masks are those of the group that the step completes, if any.
        """
        self.pending.answer.extend(step)
        text, ends = self._decoder.text_of(self.pending.answer.ids)
        # A character may still lack its last bytes.
        ready = text if step.finished else text.rstrip("\ufffd")
        if len(ready) > self._sent:
            yield ready[self._sent :]
            self._sent = len(ready)
        self._masks += masks
        new = self._decoder.once(self._masks)[len(self._masks) - len(masks) :]
        for mask in chain(*new):
            if passes_threshold(mask.score, self._decoder.min_score):
                yield segment(text, ends[-2] if len(ends) > 1 else 0, ends[-1], mask)
        if step.finished:
            yield self._decoder.prediction(self.pending, self._masks)


def score_masks(logits: Tensor) -> Tensor:
    """(K,) mean probability over the positive pixels of (K, H, W) logits, 0 where none is."""
    masks = logits > 0
    covered = masks.flatten(1).sum(1).clamp_min(1)
    return (logits.sigmoid() * masks).flatten(1).sum(1) / covered


def _given_prediction(
    turn: Turn, masks: Sequence[DecodedMask], size: tuple[int, int], keep_logits: bool
) -> Prediction:
    """A given answer with the masks drawn for its targets; all are shown, whatever their score."""
    text, spans = split_marks(turn.answer)
    segments = tuple(
        Segment(target.name, found.mask, found.score, span)
        for span, target, found in zip(spans, turn.targets, masks, strict=True)
    )
    info: dict[str, Any] = {"num_filtered": 0, "marked_text": turn.answer}
    if keep_logits:
        info["logits"] = _stack_logits(masks, size)
    return Prediction(text, segments, turn.question, size, info)


def _stack_logits(masks: Sequence[DecodedMask], size: tuple[int, int]) -> NDArray[np.float32]:
    """(P, H, W), P may be 0."""
    kept = [mask.logits for mask in masks if mask.logits is not None]
    return np.stack(kept) if kept else np.zeros((0, *size), dtype=np.float32)


def passes_threshold(score: float, limit: float) -> bool:
    """Whether a mask of that score is shown; 0 shows all, those without a score too."""
    return not score < limit


def segment(text: str, start: int, end: int, found: DecodedMask) -> Segment:
    """The segment of a group at ``end`` of a text, behind the one before at ``start``."""
    span = phrase_before(text, end, start)
    return Segment(text[span[0] : span[1]], found.mask, found.score, span)


def _to_host(masks: Sequence[Tensor]) -> list[NDArray[np.bool_]]:
    """Masks of any sizes as arrays, brought over in one transfer."""
    flat = torch.cat([mask.flatten() for mask in masks]).cpu().numpy()
    ends = np.cumsum([mask.numel() for mask in masks])
    pieces = np.split(flat, ends[:-1])
    return [piece.reshape(tuple(mask.shape)) for piece, mask in zip(pieces, masks, strict=True)]
