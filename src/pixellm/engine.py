"""The engine: pictures and questions in, Predictions out.

Encodes a picture once and reuses it over questions and turns, answers batches, decodes the masks
of all rows in one call and brings them back to original pixels. It knows models and processors;
it knows no files but pictures, no terminal and no network.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixellm.checkpoint.io import load_model_and_processor
from pixellm.model.generation import GeneratedAnswer, generate_answers
from pixellm.model.modeling import EncodedImages, PixelLMForConditionalGeneration
from pixellm.processing.image import load_image, restore_masks
from pixellm.processing.phrases import phrase_before
from pixellm.processing.processor import PixelLMProcessor, pad_sequences
from pixellm.processing.prompts import EncodedDialogue, dialogue_messages
from pixellm.types import Prediction, Request, Segment

CACHED_IMAGES = 32
"""Encoded pictures that an engine keeps by default."""


@dataclass(frozen=True)
class PreparedImage:
    """A picture after encoding: one row of features, and its geometry.

    Attributes:
        encoded: the features, a batch of one.
        original: (height, width) of the picture in pixels.
        resized: (height, width) of the picture on the canvas.
    """

    encoded: EncodedImages
    original: tuple[int, int]
    resized: tuple[int, int]


class Engine:
    """Answers questions about pictures with one model.

    Args:
        model: in evaluation mode, on its device.
        processor: the model's own.
        max_new_tokens: longest answer in tokens.
        cached_images: encoded pictures to keep, keyed by content.
    """

    def __init__(
        self,
        model: PixelLMForConditionalGeneration,
        processor: PixelLMProcessor,
        max_new_tokens: int = 512,
        cached_images: int = CACHED_IMAGES,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.cached_images = cached_images
        self._cache: OrderedDict[bytes, PreparedImage] = OrderedDict()
        eos = model.generation_config.eos_token_id or processor.tokenizer.eos_token_id
        self._eos_ids = frozenset(eos if isinstance(eos, (list, tuple)) else [eos])

    def predict(
        self, image: Any, question: str, history: Sequence[tuple[str, str]] = ()
    ) -> Prediction:
        """Answer one question about one picture.

        Args:
            image: path, Pillow image or (H, W, 3) uint8 array.
            question: as typed; never read as control tokens.
            history: earlier (question, answer) pairs, answers with ``{seg}`` marks.

        Raises:
            ValueError: an empty question, one longer than the context, or an unreadable picture.
            FileNotFoundError: no such picture.
        """
        return self.predict_batch([Request(image, question, tuple(history))])[0]

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answer any mix of pictures and questions in one batch, in the order given."""
        if not requests:
            return []
        started = time.perf_counter()
        prompts = [self._encode_request(request) for request in requests]
        pictures = self._prepare_images([request.image for request in requests])
        with torch.inference_mode():
            answers = self._generate(prompts, pictures)
            masks = self._decode(answers, pictures)
        seconds = (time.perf_counter() - started) / len(requests)
        return [
            self._to_prediction(request, picture, answer, logits, seconds)
            for request, picture, answer, logits in zip(
                requests, pictures, answers, masks, strict=True
            )
        ]

    def chat(self, image: Any) -> ChatSession:
        """Start a dialogue of several turns about one picture, encoded once."""
        picture = load_image(image)
        self._prepare_images([picture])
        return ChatSession(self, picture)

    def _encode_request(self, request: Request) -> EncodedDialogue:
        """Prompt ids; refuses what cannot be asked."""
        if not request.question.strip():
            raise ValueError("The question is empty; ask something about the picture.")
        encoded = self.processor.codec.encode(
            dialogue_messages(request.history, request.question), add_generation_prompt=True
        )
        if self._context_left(encoded) < 1 + self.model.config.group_size:
            raise ValueError(
                f"The question takes {len(encoded.ids)} tokens with its picture and history; the "
                f"model's context holds {self._context_length}. Ask something shorter."
            )
        return encoded

    @property
    def _context_length(self) -> int | None:
        """Tokens that the language model can hold; None where its positions have no end."""
        return getattr(self.model.config.text_config, "max_position_embeddings", None)

    def _context_left(self, prompt: EncodedDialogue) -> int:
        """Tokens that the context holds behind a prompt."""
        limit = self._context_length
        return sys.maxsize if limit is None else limit - len(prompt.ids)

    def _prepare_images(self, images: Sequence[Any]) -> list[PreparedImage]:
        """Encode the pictures that are not cached, in one batch; each content once."""
        loaded = [load_image(image) for image in images]
        keys = [self._content_key(image) for image in loaded]
        fresh = {k: i for k, i in zip(keys, loaded, strict=True) if k not in self._cache}
        found = {k: self._cache[k] for k in keys if k in self._cache}
        if fresh:
            found.update(zip(fresh, self._encode_images(list(fresh.values())), strict=True))
        for key in keys:
            self._cache[key] = found[key]
            self._cache.move_to_end(key)
        while len(self._cache) > self.cached_images:
            self._cache.popitem(last=False)
        return [found[key] for key in keys]

    @staticmethod
    def _content_key(image: Any) -> bytes:
        digest = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
        digest.update(image.tobytes())
        return digest.digest()

    def _encode_images(self, images: list[Any]) -> list[PreparedImage]:
        inputs = self.processor.image_processor(images)
        device = self.model.device
        with torch.inference_mode():
            encoded, _ = self.model.model.encode_images(
                inputs["pixel_values"].to(device), inputs["pixel_mask"].to(device)
            )
        rows = torch.arange(len(images), device=device)
        sizes = zip(
            inputs["original_sizes"].tolist(), inputs["resized_sizes"].tolist(), strict=True
        )
        return [
            PreparedImage(encoded.select(rows[i : i + 1]), tuple(original), tuple(resized))
            for i, (original, resized) in enumerate(sizes)
        ]

    def _generate(
        self, prompts: Sequence[EncodedDialogue], pictures: Sequence[PreparedImage]
    ) -> list[GeneratedAnswer]:
        """Run the language model over left-padded prompts."""
        masks = []
        for prompt, picture in zip(prompts, pictures, strict=True):
            shown = self.processor.image_token_mask(picture.resized)
            mask = np.ones(len(prompt.ids), dtype=int)
            mask[prompt.prefix - len(shown) : prompt.prefix] = shown
            masks.append(mask.tolist())
        device, pad = self.model.device, self.processor.tokenizer.pad_token_id
        return generate_answers(
            self.model,
            pad_sequences([p.ids for p in prompts], pad, "left").to(device),
            pad_sequences(masks, 0, "left").to(device),
            _join([picture.encoded for picture in pictures]),
            eos_ids=self._eos_ids,
            max_new_tokens=[min(self.max_new_tokens, self._context_left(p)) for p in prompts],
            forbidden_ids=(self.model.config.image_token_id,),
        )

    def _decode(
        self, answers: Sequence[GeneratedAnswer], pictures: Sequence[PreparedImage]
    ) -> list[Tensor]:
        """Mask logits (K, H, W) of every answer, in original pixels; one decoder call."""
        counts = [len(answer.group_states) for answer in answers]
        device = self.model.device
        if not sum(counts):
            return [torch.zeros(0, *picture.original, device=device) for picture in pictures]
        states = torch.stack([s for answer in answers for s in answer.group_states])
        rows = torch.repeat_interleave(torch.tensor(counts, device=device))
        features = _join([picture.encoded for picture in pictures]).features
        logits = self.model.decode_masks(self.model.model.codebook(states), features, rows)
        canvas = self.processor.image_processor.image_size
        return [
            restore_masks(piece.float(), picture.resized, picture.original, canvas)
            for piece, picture in zip(logits.split(counts), pictures, strict=True)
        ]

    def _to_prediction(
        self,
        request: Request,
        picture: PreparedImage,
        answer: GeneratedAnswer,
        logits: Tensor,
        seconds: float,
    ) -> Prediction:
        """Text, and a segment for each group with the phrase that it grounds."""
        ids = [i for i in answer.ids if i not in self._eos_ids]
        decoded = self.processor.codec.decode_answer(ids)
        masks = logits > 0
        scores = (logits.sigmoid() * masks).flatten(1).sum(1) / masks.flatten(1).sum(1).clamp_min(1)
        segments, start = [], 0
        for end, mask, score in zip(
            decoded.ends, masks.cpu().numpy(), scores.tolist(), strict=True
        ):
            span = phrase_before(decoded.text, end, start)
            segments.append(Segment(decoded.text[span[0] : span[1]], mask, score, span))
            start = end
        info = {
            "num_tokens": len(answer.ids),
            "seconds": seconds,
            "marked_answer": self.processor.codec.mark_answer(decoded),
        }
        return Prediction(decoded.text, tuple(segments), request.question, picture.original, info)


@dataclass
class ChatSession:
    """Several turns about one picture.

    Attributes:
        engine: answers.
        image: the picture.
        history: (question, answer with ``{seg}`` marks) pairs so far.
        last: the last prediction.
    """

    engine: Engine
    image: Any
    history: list[tuple[str, str]] = field(default_factory=list)
    last: Prediction | None = None

    def ask(self, question: str) -> Prediction:
        """Answer the next question; earlier turns are kept in mind."""
        prediction = self.engine.predict(self.image, question, self.history)
        self.history.append((question, prediction.info["marked_answer"]))
        self.last = prediction
        return prediction


def _join(images: Sequence[EncodedImages]) -> EncodedImages:
    """Stack pictures of one row each."""
    return EncodedImages(
        torch.cat([image.tokens for image in images]),
        [torch.cat(maps) for maps in zip(*(image.features for image in images), strict=True)],
        torch.cat([image.deepest for image in images]),
    )


def load(
    source: str | Path = "nano",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    vision_tower: str | Path | None = None,
    **options: Any,
) -> Engine:
    """Load a model, ready to answer.

    Args:
        source: "nano", a directory, a run's folder, or a hub id; a released PixelLM is converted
            once into the Hugging Face cache.
        device: "auto" takes a GPU where there is one.
        dtype: "auto" is bfloat16 on a GPU and float32 elsewhere.
        revision: commit, tag or branch on the hub.
        vision_tower: CLIP of a released PixelLM; the one that it names where None.
        **options: arguments of :class:`Engine`.

    Raises:
        FileNotFoundError, ValueError: as :func:`pixellm.checkpoint.io.load_model_and_processor`.
    """
    chosen = pick_device(device)
    floating = pick_dtype(dtype, chosen)
    model, processor = load_model_and_processor(
        source, dtype=floating, device=chosen, revision=revision, vision_tower=vision_tower
    )
    return Engine(model, processor, **options)


def pick_device(name: str | torch.device) -> torch.device:
    """A device by name; "auto" is the first GPU, else the CPU."""
    if str(name) != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"There is no device {str(name)!r}; try cpu or cuda.") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """A floating type by name; "auto" suits the device."""
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found: Callable[..., Any] | torch.dtype | None = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"There is no floating type {name!r}; try float32, bfloat16 or float16.")
    return found
