"""``POST /v1/export``: an image and an answer's segments in, a file of annotations out.

Asks no model. Masks come back as they were answered, so that a page can offer downloads.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, UploadFile
from PIL import Image
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.responses import Response

from pixellm.answer_files import overlay_bytes, read_answer
from pixellm.export import Categories, coco_values, gather_labels, labelme_values
from pixellm.files import json_bytes
from pixellm.masks import decode_mask
from pixellm.serving.chat import REFUSALS
from pixellm.serving.errors import invalid
from pixellm.serving.schemas import Rle
from pixellm.serving.segmenting import answer_values, zip_bytes
from pixellm.serving.service import Pixels, Service
from pixellm.types import Prediction, Segment

MAX_SEGMENTS = 256
MAX_MASK_PIXELS = 1 << 30
"""Of all masks of an answer together, in pixels."""

AT_ONCE = 2
"""Exports that are written at the same time."""

Format = Literal["overlay", "masks", "coco", "labelme"]


class GivenSegment(BaseModel):
    """A segment as it was answered."""

    label: str = Field(max_length=1000)
    score: float = Field(1.0, ge=0, le=1)
    segmentation: Rle


_SEGMENTS = TypeAdapter(Annotated[list[GivenSegment], Field(max_length=MAX_SEGMENTS)])


def export_routes(service: Service) -> APIRouter:
    """The route of one service."""
    router = APIRouter(prefix="/v1", responses=REFUSALS)
    writing = asyncio.Semaphore(AT_ONCE)
    binary = {"schema": {"type": "string", "format": "binary"}}

    @router.post(
        "/export",
        response_class=Response,
        responses={
            200: {"description": "The file.", "content": {"application/octet-stream": binary}}
        },
    )
    async def export(
        image: Annotated[UploadFile, File(description="the image that was asked about")],
        segments: Annotated[str, Form(description="JSON: the segments of an answer about it")],
        format: Annotated[Format, Form()],
    ) -> Response:
        """Write an answer's masks as a file."""
        given = _parse(segments)
        name = Path(image.filename or "image").name[:200]
        async with writing:
            pixels = await service.read_image(await image.read())
            body, kind = await service.in_thread(_write, format, pixels, given, name, service.name)
        return Response(body, media_type=kind)

    return router


def _parse(text: str) -> list[GivenSegment]:
    try:
        return _SEGMENTS.validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part)[:40] for part in fault["loc"])
        raise invalid(f"segments.{place}: {fault['msg'][:200]}") from None


def _write(
    format: Format, pixels: Pixels, given: list[GivenSegment], name: str, model: str
) -> tuple[bytes, str]:
    """The file, and its type."""
    prediction = _prediction(pixels, given)
    if format == "overlay":
        return overlay_bytes(Image.fromarray(pixels), prediction, ".png"), "image/png"
    answer = answer_values(prediction, name, model)
    if format == "masks":
        return zip_bytes(prediction, answer), "application/zip"
    labels = gather_labels([read_answer(answer)], Categories())
    if format == "coco":
        return json_bytes(coco_values(labels)), "application/json"
    return json_bytes(labelme_values(labels.images[0], labels.categories, name)), "application/json"


def _prediction(pixels: Pixels, given: list[GivenSegment]) -> Prediction:
    height, width = pixels.shape[:2]
    if len(given) * height * width > MAX_MASK_PIXELS:
        raise invalid("There are too many masks for an image of this size.", "too_large")
    found, text = [], ""
    for one in given:
        if one.segmentation.size != [height, width]:
            raise invalid(f"A mask is {one.segmentation.size}, the image [{height}, {width}].")
        try:
            mask = decode_mask(one.segmentation.model_dump())
        except ValueError as error:
            raise invalid(f"A mask can't be read: {error}") from None
        text += ", " * bool(text)
        found.append(Segment(one.label, mask, one.score, (len(text), len(text) + len(one.label))))
        text += one.label
    return Prediction(text, tuple(found), "", (height, width), {"num_filtered": 0})
