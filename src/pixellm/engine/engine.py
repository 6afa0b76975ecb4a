"""The engine itself: requests in, Predictions out.

Encodes an image once and reuses it over questions and turns, answers batches, decodes the masks
of all rows in one call and brings them back to original pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import numpy as np

from pixellm.engine.answers import AnswerDecoder, PendingAnswer, PromptBuilder
from pixellm.engine.batch import AnswerLoop, Chooser, choose_by_options
from pixellm.engine.cache import SlotRows, compile_forward
from pixellm.engine.chat import ChatSession
from pixellm.engine.images import ImageCache, PreparedImage
from pixellm.engine.live import LiveBatch
from pixellm.engine.memory import run_in_portions
from pixellm.engine.prefixes import PrefixStore
from pixellm.engine.sampling import AnswerOptions
from pixellm.image_files import load_image
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.model.small_batch_linear import use_small_batch_kernels
from pixellm.processing.processor import PixelLMProcessor
from pixellm.types import Prediction, Request, Sample, Segment

CACHED_IMAGES = 32
"""Encoded images that an engine keeps by default."""

MAX_BATCH = 16
"""Requests that an engine answers at the same time by default."""

MAX_NEW_TOKENS = 512
"""Longest answer in tokens by default."""

GREEDY = AnswerOptions()

LEAST_PREFIX_BYTES, MOST_PREFIX_BYTES = 1 << 26, 1 << 30
"""Bytes of keys and values of prompts that an engine keeps by default lie between these."""


class Engine:
    """Answers questions about images with one model.

    Several threads may call it: their calls take turns at the model, step by step. One batch of
    all their requests is faster, see :meth:`open_batch`.

    Args:
        model: in evaluation mode, on its device.
        processor: the model's own.
        max_new_tokens: longest answer in tokens, where a request says nothing else.
        cached_images: encoded images to keep, keyed by content.
        max_batch: most requests answered at the same time; lowered for good where memory runs out.
        prefix_bytes: keys and values to keep of what was read of images and dialogues; 0 reads
            every prompt whole, None keeps as many bytes as the model's weights take, of 64 MiB to
            1 GiB.
        compile: compile the steps and keep their shapes fixed. Pays on a GPU, after
            :meth:`warm_up`; costs minutes once.
        min_mask_score: masks of a lower score (mean probability over their pixels) are filtered,
            their phrases stay in the text; the model's own limit where None, 0 shows all.

    Raises:
        ValueError: ``max_batch`` is below 1, or ``min_mask_score`` not in 0 to 1.
    """

    def __init__(
        self,
        model: PixelLMForConditionalGeneration,
        processor: PixelLMProcessor,
        max_new_tokens: int = MAX_NEW_TOKENS,
        cached_images: int = CACHED_IMAGES,
        *,
        max_batch: int = MAX_BATCH,
        prefix_bytes: int | None = None,
        compile: bool = False,
        min_mask_score: float | None = None,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; it must be at least 1.")
        limit = model.config.min_mask_score if min_mask_score is None else min_mask_score
        if not 0 <= limit <= 1:
            raise ValueError(f"min_mask_score is {limit}; it must lie in 0 to 1.")
        self.model = model.eval()
        if model.device.type == "cpu":
            for part in (model.model.language_model, model.lm_head):
                use_small_batch_kernels(part)
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.max_batch = max_batch
        self.images = ImageCache(model, processor, cached_images, max_batch)
        eos = model.generation_config.eos_token_id or processor.tokenizer.eos_token_id
        self._eos_ids = frozenset(eos if isinstance(eos, (list, tuple)) else [eos])
        self._decoder = AnswerDecoder(model, processor, self._eos_ids, limit)
        self._prompts = PromptBuilder(model.config, processor)
        if prefix_bytes is None:
            weights = sum(weight.nbytes for weight in model.parameters())
            prefix_bytes = min(max(weights, LEAST_PREFIX_BYTES), MOST_PREFIX_BYTES)
        self._prefixes = PrefixStore(prefix_bytes)
        # Caches and tokenizer are shared: whoever works with them holds this, never over a yield.
        self._turn = threading.RLock()
        # Compiled steps write into buffers that stay where they are, from call to call.
        self._fixed_slots = SlotRows(model, forward=compile_forward(model)) if compile else None

    @property
    def min_mask_score(self) -> float:
        """Masks of a lower score are filtered."""
        return self._decoder.min_score

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
        keep_logits: bool = False,
    ) -> Prediction:
        """Answer one question about one image.

        Args:
            image: path, bytes, open file, Pillow image, or (H, W, 3) uint8 array or tensor;
                see :func:`~pixellm.image_files.load_image`.
            question: as typed; never read as control tokens.
            history: earlier (question, answer) pairs, answers with ``{seg}`` marks.
            max_new_tokens: longest answer in tokens; the engine's own limit where None.
            temperature: 0 is greedy; above, tokens are drawn.
            top_p: draw from the fewest most likely tokens that reach this probability.
            seed: same request and seed, same answer.
            keep_logits: hand the masks' logits on, see :attr:`Prediction.info`.

        Raises:
            ValueError: an empty question, one longer than the context, an option out of range,
                or an unreadable image.
            FileNotFoundError: no such image.
        """
        options = AnswerOptions(max_new_tokens, temperature, top_p, seed, keep_logits)
        return self._answer([(_request(image, question, history), options)])[0]

    def predict_batch(
        self,
        requests: Sequence[Request],
        options: AnswerOptions | Sequence[AnswerOptions] = GREEDY,
    ) -> list[Prediction]:
        """Answer any mix of images and questions, in the order given.

        Args:
            requests: any number; ``max_batch`` of them are answered at the same time.
            options: of all answers, or of each.

        Raises:
            ValueError, OSError: as :meth:`predict`, for the first request that can't be answered.
        """
        each = [options] * len(requests) if isinstance(options, AnswerOptions) else list(options)
        if len(each) != len(requests):
            raise ValueError(f"There are {len(each)} options for {len(requests)} requests.")
        return self._answer(list(zip(requests, each, strict=True)))

    def predict_given(
        self, samples: Sequence[Sample], *, keep_logits: bool = False
    ) -> list[tuple[Prediction, ...]]:
        """Draw the masks of answers that are given (teacher forcing).

        Each dialogue is read in one pass, ``max_batch`` of them together.

        Args:
            samples: dialogues with their answers.
            keep_logits: as :meth:`predict`.

        Returns:
            For each dialogue a Prediction of every turn: the given text, and a segment for each
            target in order, called by the target's name. None is filtered.

        Raises:
            ValueError: a dialogue that is longer than the context, or an unreadable image.
            FileNotFoundError: no such image.
        """

        def draw(portion: Sequence[Sample]) -> list[tuple[Prediction, ...]]:
            with self._turn:
                dialogues = [self._prompts.encode_given(sample) for sample in portion]
                images = self.images.prepare([sample.image for sample in portion])
                prepared = [image for image in images if isinstance(image, PreparedImage)]
                for error in images:
                    if not isinstance(error, PreparedImage):
                        raise error
                return self._decoder.given_predictions(portion, dialogues, prepared, keep_logits)

        return run_in_portions(draw, samples, self.max_batch)

    def predict_many(
        self,
        requests: Iterable[Request],
        options: AnswerOptions = GREEDY,
    ) -> Iterator[tuple[int, Prediction | ValueError | OSError]]:
        """Answer a long run of requests, read only as fast as they are answered.

        Args:
            requests: at most ``max_batch`` are read ahead of the answers.
            options: of all answers.

        Yields:
            (index of the request, its Prediction), in the order in which answers are finished;
            in the Prediction's place the error, where the request can't be answered.
        """
        yield from self._run((request, options) for request in requests)

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
            Segment with its mask as soon as its group is complete, unless the mask is filtered; at
            last the Prediction, equal to what :meth:`predict` returns.
        """
        options = AnswerOptions(max_new_tokens, temperature, top_p, seed)
        return self._stream(_request(image, question, history), options)

    def image_reader(self) -> ImageCache:
        """What encodes images apart from this engine's own, in any thread, and keeps none."""
        return ImageCache(self.model, self.processor, 0, self.max_batch)

    def forget(self) -> None:
        """Keep nothing of what was read, so that what follows depends on nothing before it."""
        with self._turn:
            self.images.clear()
            self._prefixes.clear()

    def chat(self, image: Any) -> ChatSession:
        """Start a dialogue of several turns about one image, encoded once.

        What the model has read of the dialogue is kept, so that a turn costs its question and
        answer alone.
        """
        opened = load_image(image)
        with self._turn:
            (prepared,) = self.images.prepare([opened])
        if not isinstance(prepared, PreparedImage):
            raise prepared
        return ChatSession(self, opened, prepared)

    @contextmanager
    def open_batch(self) -> Iterator[LiveBatch]:
        """A batch that requests enter at any time, and leave early, for servers."""
        with self._loop() as loop:
            yield LiveBatch(loop, self._decoder, self._begin, self._turn)

    def warm_up(self, batch: int = 1) -> None:
        """Run each kind of step once, so that no real request pays for what is made only once.

        Args:
            batch: warm up for so many requests at the same time.
        """
        blank = np.zeros((8, 8, 3), np.uint8)
        request = Request(blank, "What is it?")
        (pending,) = self._begin([(request, GREEDY)])
        if not isinstance(pending, PendingAnswer):
            raise pending
        told = iter((pending.prompt.ids[-1], self.model.config.codebook_token_ids[0]))
        with self._loop(lambda logits, rows: [next(told)] * len(rows)) as loop:
            for _ in range(min(batch, loop.max_rows)):
                loop.add(pending.prompt)
            with self._turn:
                steps = [*loop.step(), *loop.step()]
        groups = [step.group_states for step in steps if step.group_states is not None]
        with self._turn:
            self._decoder.group_masks([(group, pending.image) for group in groups])

    def _answer(self, requests: Sequence[tuple[Request, AnswerOptions]]) -> list[Prediction]:
        """Answer all requests, or raise the first error."""
        predictions: dict[int, Prediction] = {}
        with closing(self._run(requests)) as answers:
            for index, answer in answers:
                if not isinstance(answer, Prediction):
                    raise answer
                predictions[index] = answer
        return [predictions[index] for index in range(len(requests))]

    def _stream(
        self, request: Request, options: AnswerOptions
    ) -> Iterator[str | Segment | Prediction]:
        with self.open_batch() as batch:
            (number,) = batch.add([(request, options)])
            if not isinstance(number, int):
                raise number
            while len(batch):
                for _, piece in batch.step():
                    yield piece

    def _run(
        self, requests: Iterable[tuple[Request, AnswerOptions]]
    ) -> Generator[tuple[int, Prediction | ValueError | OSError], None, None]:
        """Answer requests side by side; those that wait enter as others are finished."""
        arriving = enumerate(requests)
        running: dict[int, tuple[int, PendingAnswer]] = {}
        finished: list[tuple[int, PendingAnswer]] = []
        with self._loop() as loop:
            while True:
                # A few enter together, so that their images and prompts are read together.
                if loop.room >= max(1, loop.max_rows // 4):
                    taken = list(islice(arriving, loop.room))
                    started = self._begin([asked for _, asked in taken])
                    for (index, _), pending in zip(taken, started, strict=True):
                        if isinstance(pending, PendingAnswer):
                            running[loop.add(pending.prompt)] = index, pending
                        else:
                            yield index, pending
                    if not taken and not loop.is_busy:
                        break
                with self._turn:
                    steps = loop.step()
                for step in steps:
                    running[step.row][1].answer.extend(step)
                    if step.finished:
                        finished.append(running.pop(step.row))
                if len(finished) >= loop.max_rows or not loop.is_busy:
                    with self._turn:
                        predictions = self._decoder.predictions([one for _, one in finished])
                    indices = [index for index, _ in finished]
                    finished = []
                    yield from zip(indices, predictions, strict=True)

    def _begin(
        self, requests: Sequence[tuple[Request, AnswerOptions]]
    ) -> list[PendingAnswer | ValueError | OSError]:
        """Jobs of requests, their images encoded together; an error where one is impossible."""
        started: list[PendingAnswer | ValueError | OSError] = []
        with self._turn:
            images = self.images.prepare([request.image for request, _ in requests])
            for (request, options), image in zip(requests, images, strict=True):
                try:
                    encoded = self._prompts.encode(request)
                except ValueError as error:
                    started.append(error)
                    continue
                if isinstance(image, PreparedImage):
                    limit = self.max_new_tokens
                    started.append(self._prompts.begin(request, encoded, image, options, limit))
                else:
                    started.append(image)
        return started

    @contextmanager
    def _loop(self, choose: Chooser = choose_by_options) -> Iterator[AnswerLoop]:
        """A batch to answer prompts in."""
        # None in a call while a stream, not read to its end yet, is open: that one has them.
        with self._turn:
            fixed, self._fixed_slots = self._fixed_slots, None
        loop = AnswerLoop(
            self.model,
            eos_ids=self._eos_ids,
            max_rows=self.max_batch,
            forbidden_ids=(self.model.config.image_token_id,),
            prefixes=self._prefixes,
            slots=fixed,
            choose=choose,
        )
        try:
            yield loop
        finally:
            with self._turn:
                loop.close()
                self._fixed_slots = fixed or self._fixed_slots
                self.max_batch = min(self.max_batch, loop.max_rows)


def _request(image: Any, question: str, history: Sequence[tuple[str, str]]) -> Request:
    """What is asked, about an image that can be read again when the answer is shown."""
    kept = image.read() if hasattr(image, "read") else image
    return Request(kept, question, tuple(history))
