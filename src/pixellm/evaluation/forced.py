"""Teacher-forced answers: the true text is given, the model draws the masks alone.

One pass over each dialogue instead of generation; the codebook groups of the given text are read
and decoded. It knows the model and its processor, and nothing of scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch

from pixellm.engine import Engine
from pixellm.evaluation.records import MASK_LOGITS
from pixellm.evaluation.runner import AnsweredDialogue
from pixellm.model.codebook import find_groups
from pixellm.processing.image import restore_masks
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


def _predict_masks(engine: Engine, samples: Sequence[Sample]) -> list[torch.Tensor]:
    """Per dialogue the logits (K, H, W) of all its targets, in pixels of its picture."""
    model, processor = engine.model, engine.processor
    conversations = [
        dialogue_messages([(turn.question, turn.answer) for turn in sample.turns])
        for sample in samples
    ]
    batch = processor.encode_batch(
        conversations,
        [sample.image for sample in samples],
        add_generation_prompt=False,
        padding_side="right",
    )
    _check_length(engine, batch["attention_mask"].shape[1], samples)
    device = model.device
    ids = batch["input_ids"].to(device)
    with torch.inference_mode():
        encoded, _ = model.model.encode_images(
            batch["pixel_values"].to(device), batch["pixel_mask"].to(device)
        )
        states = model.model(ids, encoded.tokens, batch["attention_mask"].to(device))
        codebook = torch.tensor(model.config.codebook_token_ids, device=device)
        rows, starts = find_groups(ids, codebook)
        counts = torch.bincount(rows, minlength=len(samples)).tolist()
        if not len(rows):
            return [torch.zeros(0, *sample.size) for sample in samples]
        embeddings = model.target_embeddings(states.last_hidden_state, rows, starts)
        logits = model.decode_masks(embeddings, encoded.features, rows)
        canvas = processor.image_processor.image_size
        return [
            restore_masks(piece.float(), tuple(resized), sample.size, canvas).cpu()
            for piece, resized, sample in zip(
                logits.split(counts), batch["resized_sizes"].tolist(), samples, strict=True
            )
        ]


def _check_length(engine: Engine, length: int, samples: Sequence[Sample]) -> None:
    limit = getattr(engine.model.config.text_config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise ValueError(
            f"A dialogue among {samples[0].id!r} .. {samples[-1].id!r} takes {length} tokens; the "
            f"model's context holds {limit}. Evaluate with --mode free."
        )


def _to_prediction(
    turn: Turn, logits: torch.Tensor, size: tuple[int, int], keep_logits: bool
) -> Prediction:
    """The true text with the predicted masks behind its phrases."""
    masks = logits > 0
    areas = masks.flatten(1).sum(1).clamp_min(1)
    scores = ((logits.sigmoid() * masks).flatten(1).sum(1) / areas).tolist()
    text, segments = "", []
    *pieces, rest = turn.answer.split(SEG_MARK)
    for piece, target, mask, score in zip(pieces, turn.targets, masks, scores, strict=True):
        start = len(text)
        text += piece.rstrip() if text or piece.strip() else ""
        segments.append(Segment(target.name, mask.numpy(), score, (start, len(text))))
    info = {MASK_LOGITS: logits.numpy()} if keep_logits else {}
    return Prediction(text + rest, tuple(segments), turn.question, size, info)
