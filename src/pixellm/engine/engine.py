"""The engine itself: requests in, Predictions out.

Encodes a picture once and reuses it over questions and turns, answers batches, decodes the masks
of all rows in one call and brings them back to original pixels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from pixellm.engine.chat import ChatSession
from pixellm.engine.grounding import Grounder, segment
from pixellm.engine.images import ImageCache, PreparedImage
from pixellm.model.generation import GeneratedAnswer, Step, generate_steps
from pixellm.model.modeling import EncodedImages, PixelLMForConditionalGeneration
from pixellm.model.sampling import AnswerOptions, Sampler, choose_ids
from pixellm.processing.image import load_image
from pixellm.processing.processor import PixelLMProcessor, pad_sequences
from pixellm.processing.prompts import EncodedDialogue, dialogue_messages
from pixellm.types import Prediction, Request, Segment

CACHED_IMAGES = 32
"""Encoded pictures that an engine keeps by default."""

MAX_BATCH = 16
"""Requests that an engine answers at the same time by default."""


class Engine:
    """Answers questions about pictures with one model.

    Not safe to be called from several threads at once.

    Args:
        model: in evaluation mode, on its device.
        processor: the model's own.
        max_new_tokens: longest answer in tokens, where a request says nothing else.
        cached_images: encoded pictures to keep, keyed by content.
        max_batch: most requests answered at the same time; lowered for good where memory runs out.
    """

    def __init__(
        self,
        model: PixelLMForConditionalGeneration,
        processor: PixelLMProcessor,
        max_new_tokens: int = 512,
        cached_images: int = CACHED_IMAGES,
        *,
        max_batch: int = MAX_BATCH,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; it must be at least 1.")
        self.model = model.eval()
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.max_batch = max_batch
        self.images = ImageCache(model, processor, cached_images, max_batch)
        eos = model.generation_config.eos_token_id or processor.tokenizer.eos_token_id
        self._eos_ids = frozenset(eos if isinstance(eos, (list, tuple)) else [eos])
        self._grounder = Grounder(model, processor, self._eos_ids)

    def predict(
        self,
        image: Any,
        question: str,
        history: Sequence[tuple[str, str]] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Prediction:
        """Answer one question about one picture.

        Args:
            image: path, Pillow image or (H, W, 3) uint8 array.
            question: as typed; never read as control tokens.
            history: earlier (question, answer) pairs, answers with ``{seg}`` marks.
            max_new_tokens: longest answer in tokens; the engine's own limit where None.
            temperature: 0 is greedy; above, tokens are drawn.
            top_p: draw from the fewest most likely tokens that reach this probability.
            seed: same request and seed, same answer.

        Raises:
            ValueError: an empty question, one longer than the context, an option out of range,
                or an unreadable picture.
            FileNotFoundError: no such picture.
        """
        options = AnswerOptions(max_new_tokens, temperature, top_p, seed)
        return self.predict_batch([Request(image, question, tuple(history))], options)[0]

    def predict_batch(
        self,
        requests: Sequence[Request],
        options: AnswerOptions | Sequence[AnswerOptions] = AnswerOptions(),  # noqa: B008
    ) -> list[Prediction]:
        """Answer any mix of pictures and questions, in the order given.

        Args:
            requests: any number; ``max_batch`` of them are answered at the same time.
            options: of all answers, or of each.

        Raises:
            ValueError, OSError: as :meth:`predict`; nothing is answered then.
        """
        each = [options] * len(requests) if isinstance(options, AnswerOptions) else list(options)
        if len(each) != len(requests):
            raise ValueError(f"There are {len(each)} options for {len(requests)} requests.")
        return self._answer(requests, each)

    def predict_many(
        self,
        requests: Iterable[Request],
        options: AnswerOptions = AnswerOptions(),  # noqa: B008
    ) -> Iterator[tuple[int, Prediction | ValueError | OSError]]:
        """Answer a long run of requests, read only as fast as they are answered.

        Args:
            requests: read ahead by a few batches at most.
            options: of all answers.

        Yields:
            (index of the request, its Prediction), in the order in which answers are finished;
            in the Prediction's place the error, where the request can't be answered.
        """
        arriving = enumerate(requests)
        while batch := list(islice(arriving, self.max_batch)):
            for index, request in batch:
                try:
                    yield index, self.predict_batch([request], options)[0]
                except (ValueError, OSError) as error:
                    yield index, error

    def stream(
        self,
        image: Any,
        question: str,
        history: Sequence[tuple[str, str]] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str | Segment | Prediction]:
        """Answer one question piece by piece; arguments and errors as :meth:`predict`.

        Yields:
            Pieces of the text as they are written, which joined are the Prediction's text; each
            Segment with its mask as soon as its group is complete; at last the Prediction, equal
            to what :meth:`predict` returns.
        """
        options = AnswerOptions(max_new_tokens, temperature, top_p, seed)
        return self._stream(Request(image, question, tuple(history)), options)

    def chat(self, image: Any) -> ChatSession:
        """Start a dialogue of several turns about one picture, encoded once."""
        picture = load_image(image)
        self.images.prepare([picture])
        return ChatSession(self, picture)

    def warm_up(self) -> None:
        """Run each kind of step once, so that the first real request pays for no preparation."""
        blank = np.zeros((8, 8, 3), np.uint8)
        self.predict(blank, "What is it?", max_new_tokens=1)

    def _stream(
        self, request: Request, options: AnswerOptions
    ) -> Iterator[str | Segment | Prediction]:
        started = time.perf_counter()
        prompt = self._encode_request(request)
        (picture,) = self.images.prepare([request.image])
        answer, masks, sent = GeneratedAnswer(), [], 0
        for step in self._steps([prompt], [picture], [options]):
            answer.extend(step)
            text, ends = self._grounder.text_of(answer.ids)
            # A character may still lack its last bytes.
            ready = text if step.finished else text.rstrip("\ufffd")
            if len(ready) > sent:
                yield ready[sent:]
                sent = len(ready)
            if step.group_states is not None:
                masks += self._grounder.masks([(step.group_states, picture)])
                start = ends[-2] if len(ends) > 1 else 0
                yield segment(text, start, ends[-1], masks[-1])
        prediction = self._grounder.prediction(request.question, answer, masks, picture)
        yield self._with_info(prediction, answer, time.perf_counter() - started)

    def _answer(
        self, requests: Sequence[Request], options: Sequence[AnswerOptions]
    ) -> list[Prediction]:
        """Answer requests in batches; masks of a batch together."""
        prompts = [self._encode_request(request) for request in requests]
        predictions: list[Prediction] = []
        for start in range(0, len(requests), self.max_batch):
            started = time.perf_counter()
            part = slice(start, start + self.max_batch)
            pictures = self.images.prepare([request.image for request in requests[part]])
            answers = [GeneratedAnswer() for _ in pictures]
            for step in self._steps(prompts[part], pictures, options[part]):
                answers[step.row].extend(step)
            questions = [request.question for request in requests[part]]
            found = self._grounder.predictions(questions, answers, pictures)
            seconds = (time.perf_counter() - started) / len(found)
            predictions += [
                self._with_info(p, a, seconds) for p, a in zip(found, answers, strict=True)
            ]
        return predictions

    def _with_info(
        self, prediction: Prediction, answer: GeneratedAnswer, seconds: float
    ) -> Prediction:
        ids = [i for i in answer.ids if i not in self._eos_ids]
        codec = self.processor.codec
        info = {
            "num_tokens": len(answer.ids),
            "seconds": seconds,
            "marked_answer": codec.mark_answer(codec.decode_answer(ids)),
        }
        return replace(prediction, info=info)

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

    def _steps(
        self,
        prompts: Sequence[EncodedDialogue],
        pictures: Sequence[PreparedImage],
        options: Sequence[AnswerOptions],
    ) -> Iterator[Step]:
        """Run the language model over left-padded prompts."""
        masks = []
        for prompt, picture in zip(prompts, pictures, strict=True):
            mask = [1] * len(prompt.ids)
            mask[prompt.prefix - len(picture.visible) : prompt.prefix] = map(int, picture.visible)
            masks.append(mask)
        device, pad = self.model.device, self.processor.tokenizer.pad_token_id
        samplers = [Sampler(one) for one in options]
        return generate_steps(
            self.model,
            pad_sequences([p.ids for p in prompts], pad, "left").to(device),
            pad_sequences(masks, 0, "left").to(device),
            _join([picture.encoded for picture in pictures]),
            eos_ids=self._eos_ids,
            max_new_tokens=[
                min(one.max_new_tokens or self.max_new_tokens, self._context_left(prompt))
                for prompt, one in zip(prompts, options, strict=True)
            ],
            choose=lambda logits, rows: torch.tensor(
                choose_ids(logits, [samplers[row] for row in rows])
            ),
            forbidden_ids=(self.model.config.image_token_id,),
        )


def _join(images: Sequence[EncodedImages]) -> EncodedImages:
    """Stack pictures of one row each."""
    return EncodedImages(
        torch.cat([image.tokens for image in images]),
        [torch.cat(maps) for maps in zip(*(image.features for image in images), strict=True)],
        torch.cat([image.deepest for image in images]),
    )
