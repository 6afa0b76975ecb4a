"""What is asked of a server, without HTTP: images in, pieces of answers out.

Reads images in threads, holds a place for each request, and stops where its time is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, TypeVarTuple

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from pixellm.answer_files import segment_to_json
from pixellm.engine import AnswerOptions
from pixellm.image_files import load_embedded
from pixellm.serving.dialogue import decode_data_url
from pixellm.serving.errors import RefusedError, invalid
from pixellm.serving.metrics import Metrics
from pixellm.serving.remote import fetch_image
from pixellm.serving.settings import Settings
from pixellm.serving.worker import Piece, Worker
from pixellm.types import Prediction, Request, Segment
from pixellm.visualize import css_color

Pixels = NDArray[np.uint8]
Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

IMAGES_HELD = 16
"""Images of the largest size that all requests together may hold."""

THREADS = 4
"""That read images and write masks; each may hold an image several times over."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question, its image still to be read: the bytes of a file, or a URL."""

    image: bytes | str
    text: str
    history: tuple[tuple[str, str], ...] = ()
    options: AnswerOptions = field(default_factory=AnswerOptions)


class Service:
    """Answers questions as a model of that name."""

    def __init__(self, worker: Worker, name: str, settings: Settings, metrics: Metrics) -> None:
        self.worker = worker
        self.name = name
        self.settings = settings
        self.metrics = metrics
        self._threads = anyio.CapacityLimiter(THREADS)
        self.started = int(time.time())
        self._pixels = 0

    def options(
        self,
        max_tokens: int | None,
        temperature: float | None,
        top_p: float | None,
        seed: int | None,
    ) -> AnswerOptions:
        """Options of an answer, within what the server allows; None is the usual."""
        limit = self.settings.max_answer
        return AnswerOptions(
            min(max_tokens or limit, limit),
            0.0 if temperature is None else temperature,
            1.0 if top_p is None else top_p,
            0 if seed is None else seed,
        )

    async def in_thread(self, work: Callable[[*Arguments], Result], *args: *Arguments) -> Result:
        """Do what would hold the event loop up in one of a few threads; waits for one."""
        return await anyio.to_thread.run_sync(work, *args, limiter=self._threads)

    async def predict(self, question: Question) -> Prediction:
        """The whole answer; see :meth:`ask`."""
        async with aclosing(self.ask(question)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Prediction):
                    return piece
        raise RuntimeError("an answer without its Prediction")

    async def ask(self, question: Question) -> AsyncGenerator[Piece]:
        """Pieces of the answer, the Prediction last; close it to leave early.

        Raises:
            RefusedError: no place, no image, or no answer in time.
        """
        arrived, is_left = time.monotonic(), True
        deadline = asyncio.get_running_loop().time() + self.settings.timeout
        try:
            with self.worker.place():
                async with asyncio.timeout_at(deadline):
                    image = await self.read_image(question.image)
                request = Request(image, question.text, question.history)
                answer = self.worker.answer(request, question.options)
                async with self._holding(image), aclosing(_until(deadline, answer)) as pieces:
                    first = await anext(pieces)
                    self.metrics.first_piece.observe(time.monotonic() - arrived)
                    yield first
                    async for piece in pieces:
                        if isinstance(piece, Prediction):
                            is_left = False
                            self.metrics.tokens.inc(piece.info["num_tokens"])
                            self.metrics.masks.inc(len(piece.segments))
                        yield piece
        except RefusedError:
            is_left = False
            raise
        except TimeoutError:
            is_left = False
            sentence = f"There was no answer within {self.settings.timeout:g} s."
            raise RefusedError(504, sentence, "timeout") from None
        finally:
            if is_left:
                self.metrics.left.inc()

    @asynccontextmanager
    async def _holding(self, image: Pixels) -> AsyncIterator[None]:
        """Count an image's pixels as held."""
        size = image.shape[0] * image.shape[1]
        if self._pixels + size > IMAGES_HELD * self.settings.max_pixels:
            sentence = "The server holds too many large images; try again."
            raise RefusedError(503, sentence, "busy", {"Retry-After": "2"})
        self._pixels += size
        try:
            yield
        finally:
            self._pixels -= size

    async def read_image(self, source: bytes | str) -> Pixels:
        """(H, W, 3) pixels of an image, upright."""
        if isinstance(source, str):
            data = await self.in_thread(decode_data_url, source)
            if data is None:
                if not self.settings.remote_images:
                    sentence = "This server fetches no images; send yours as a data URL."
                    raise invalid(sentence, "image_url")
                data = await fetch_image(source, self.settings.max_body)
        else:
            data = source
        return await self.in_thread(self._decode, data)

    def _decode(self, data: bytes) -> Pixels:
        if not data:
            raise invalid("The image is empty.", "image")
        try:
            loaded = load_embedded(data, "The image", max_pixels=self.settings.max_pixels)
        except ValueError as error:
            raise invalid(str(error), "image") from None
        return np.asarray(loaded)


async def _until(deadline: float, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    """Pass pieces on until a time of the event loop; never waits over a yield."""
    async with aclosing(pieces):
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            yield piece


def segment_values(segment: Segment, index: int) -> dict[str, Any]:
    """A segment as it goes over the wire."""
    return {"index": index, **segment_to_json(segment), "color": css_color(index)}


def extension(prediction: Prediction) -> dict[str, Any]:
    """What an answer tells beyond text and segments."""
    return {
        "marked_content": prediction.info["marked_text"],
        "image_size": list(prediction.size),
        "withheld": prediction.info["num_filtered"],
        "familiarity": prediction.info.get("familiarity"),
    }
