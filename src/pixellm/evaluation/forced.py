"""Teacher-forced answers: the true text is given, the model draws the masks alone.

One pass over each dialogue instead of generation; the codebook groups of the given text are read
and decoded. It knows the model and its processor, and nothing of scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from transformers import BatchFeature

from pixellm.engine import Engine
from pixellm.evaluation.records import MASK_LOGITS
from pixellm.evaluation.runner import AnsweredDialogue
from pixellm.model.codebook import find_groups
from pixellm.model.outputs import EncodedImages
from pixellm.model.pixel_masks import restore_masks
from pixellm.processing.prompts import dialogue_messages
from pixellm.types import SEG_MARK, Prediction, Sample, Segment, Turn


def answer_forced(
    engine: Engine, samples: Iterable[Sample], batch_size: int, *, keep_logits: bool = False
) -> Iterator[AnsweredDialogue]:
    """Run dialogues with their true answers given, in order.

    The masks of a turn come in the order of its targets, one each; the texts are the true ones.

    Args:
        engine: holds the model.
        samples: dialogues, read a batch at a time.
        batch_size: dialogues per pass, at least 1.
        keep_logits: keep the (P, H, W) mask logits in each prediction's ``info``.

    Yields:
        Each dialogue, in the order of the input.

    Raises:
        ValueError: ``batch_size`` is below 1, or a dialogue is longer than the model's context.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    arriving, index = iter(samples), 0
    while batch := list(islice(arriving, batch_size)):
        start = time.perf_counter()
        masks = _predict_masks(engine, batch)
        seconds = (time.perf_counter() - start) / sum(len(sample.turns) for sample in batch)
        for sample, logits in zip(batch, masks, strict=True):
            pieces = logits.split([len(turn.targets) for turn in sample.turns])
            predictions = tuple(
                _to_prediction(turn, piece, sample.size, keep_logits)
                for turn, piece in zip(sample.turns, pieces, strict=True)
            )
            yield AnsweredDialogue(index, sample, predictions, (seconds,) * len(predictions))
            index += 1


def _predict_masks(engine: Engine, samples: Sequence[Sample]) -> list[Tensor]:
    """Per dialogue the logits (K, H, W) of all its targets, in pixels of its picture."""
    model, processor = engine.model, engine.processor
    conversations = [
        dialogue_messages([(processor.word_question(t), t.answer) for t in sample.turns])
        for sample in samples
    ]
    batch = processor.encode_batch(
        conversations,
        [sample.image for sample in samples],
        add_generation_prompt=False,
        padding_side="right",
    )
    _check_length(engine, batch["attention_mask"].shape[1], samples)
    ids = batch["input_ids"].to(model.device)
    with torch.inference_mode():
        encoded = encode_pictures(engine, batch)
        mask = batch["attention_mask"].to(model.device)
        hidden = model.model(ids, encoded.tokens, mask).last_hidden_state
        codebook = torch.tensor(model.config.codebook_token_ids, device=model.device)
        rows, starts = find_groups(ids, codebook)
        states = model.model.codebook.gather_states(hidden, rows, starts)
        counts = torch.bincount(rows, minlength=len(samples)).tolist()
        return decode_logits(engine, list(states.split(counts)), encoded, batch)


def encode_pictures(engine: Engine, batch: BatchFeature) -> EncodedImages:
    """Encode the pictures of a processor's batch, one per row."""
    device = engine.model.device
    pixels, mask = batch["pixel_values"].to(device), batch["pixel_mask"].to(device)
    encoded, _ = engine.model.model.encode_images(pixels, mask)
    return encoded


def decode_logits(
    engine: Engine, states: Sequence[Tensor], encoded: EncodedImages, batch: BatchFeature
) -> list[Tensor]:
    """Mask logits over the original pictures, on the CPU.

    Args:
        engine: holds the model.
        states: per row of the batch the (K, G, D) hidden states of its groups.
        encoded: the rows' pictures.
        batch: the processor's, with the pictures' sizes.

    Returns:
        Per row (K, H, W) float32, in pixels of its picture.
    """
    model, canvas = engine.model, engine.processor.image_processor.image_size
    counts = [len(row) for row in states]
    sizes = [
        (tuple(resized), tuple(original))
        for resized, original in zip(
            batch["resized_sizes"].tolist(), batch["original_sizes"].tolist(), strict=True
        )
    ]
    if not sum(counts):
        return [torch.zeros(0, *original) for _, original in sizes]
    rows = torch.repeat_interleave(torch.tensor(counts, device=model.device))
    embeddings = model.model.codebook(torch.cat(list(states)))
    logits = model.decode_masks(embeddings, encoded.features, rows)
    return [
        restore_masks(piece.float(), resized, original, canvas).cpu()
        for piece, (resized, original) in zip(logits.split(counts), sizes, strict=True)
    ]


def score_of_masks(logits: Tensor) -> list[float]:
    """Mean probability over the positive pixels of each mask, 0 for an empty one."""
    masks = logits > 0
    areas = masks.flatten(1).sum(1).clamp_min(1)
    scores: list[float] = ((logits.sigmoid() * masks).flatten(1).sum(1) / areas).tolist()
    return scores


def _check_length(engine: Engine, length: int, samples: Sequence[Sample]) -> None:
    limit = getattr(engine.model.config.text_config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise ValueError(
            f"A dialogue among {samples[0].id!r} .. {samples[-1].id!r} takes {length} tokens; the "
            f"model's context holds {limit}. Evaluate with --mode free."
        )


def _to_prediction(
    turn: Turn, logits: Tensor, size: tuple[int, int], keep_logits: bool
) -> Prediction:
    """The true text with the predicted masks behind its phrases."""
    text, segments = "", []
    *pieces, rest = turn.answer.split(SEG_MARK)
    parts = zip(pieces, turn.targets, logits, score_of_masks(logits), strict=True)
    for piece, target, mask, score in parts:
        start = len(text)
        text += piece.rstrip()
        segments.append(Segment(target.name, (mask > 0).numpy(), score, (start, len(text))))
    info = {MASK_LOGITS: logits.numpy()} if keep_logits else {}
    return Prediction(text + rest, tuple(segments), turn.question, size, info)
