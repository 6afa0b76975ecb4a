"""``POST /v1/segment``: an image and a question as a form; JSON, an overlay or masks come back."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Header, UploadFile
from PIL import Image
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from pixellm.answer_files import mask_files, overlay_bytes, prediction_to_json
from pixellm.files import json_bytes
from pixellm.serving.chat import REFUSALS
from pixellm.serving.dialogue import check_texts
from pixellm.serving.errors import RefusedError, invalid
from pixellm.serving.presence import while_present
from pixellm.serving.schemas import SegmentAnswer
from pixellm.serving.service import Question, Service, segment_values
from pixellm.types import Prediction

FORMS = ("application/json", "image/png", "application/zip")
"""In which an answer can be had; the first where a client takes any."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_LONGEST_NAME = 200


def segment_routes(service: Service) -> APIRouter:
    """The route of one service."""
    router = APIRouter(prefix="/v1", responses=REFUSALS)

    @router.post(
        "/segment",
        response_model=SegmentAnswer,
        responses={
            200: {
                "description": "The answer, in the form that Accept asks for.",
                "content": {"image/png": _BINARY, "application/zip": _BINARY},
            }
        },
    )
    async def segment(
        http: HttpRequest,
        image: Annotated[UploadFile, File(description="an image file")],
        question: Annotated[str, Form()],
        max_tokens: Annotated[int | None, Form(ge=1)] = None,
        temperature: Annotated[float | None, Form(ge=0, le=2)] = None,
        top_p: Annotated[float | None, Form(gt=0, le=1)] = None,
        seed: Annotated[int | None, Form()] = None,
        accept: Annotated[str, Header(description=", ".join(FORMS))] = "*/*",
    ) -> Response:
        """Answer a question about an image."""
        form = choose_form(accept)
        if not question.strip():
            raise invalid("The question is empty; ask something about the image.", "empty_question")
        check_texts([question], service.settings)
        options = service.options(max_tokens, temperature, top_p, seed)
        data = await image.read()
        name = Path(image.filename or "image").name[:_LONGEST_NAME]
        asked = Question(data, question, options=options)
        prediction = await while_present(http.receive, service.predict(asked))
        pixels = Image.fromarray(await service.read_image(data)) if form == "image/png" else None
        body = await service.in_thread(_body, form, prediction, name, service.name, pixels)
        headers = {"Vary": "Accept"}
        if form == "application/zip":
            headers["Content-Disposition"] = 'attachment; filename="masks.zip"'
        return Response(body, media_type=form, headers=headers)

    return router


def choose_form(accept: str) -> str:
    """The one of :data:`FORMS` that a client likes best."""
    best, liked = "", 0.0
    for form in FORMS:
        weight = _weight(accept, form)
        if weight > liked:
            best, liked = form, weight
    if not best:
        raise RefusedError(406, f"An answer comes as {', '.join(FORMS)}.", "not_acceptable")
    return best


def _weight(accept: str, form: str) -> float:
    """How much a client likes a form, 0 to 1; its most exact word counts."""
    weights = dict[str, float]()
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = min(1.0, max(0.0, float(parameter[2:])))
                except ValueError:
                    quality = 0.0
        weights[kind] = quality
    for known in (form, form.partition("/")[0] + "/*", "*/*"):
        if known in weights:
            return weights[known]
    return 0.0


def _body(
    form: str, prediction: Prediction, name: str, model: str, image: Image.Image | None
) -> bytes:
    if image is not None:
        return overlay_bytes(image, prediction, ".png")
    values = answer_values(prediction, name, model)
    return json_bytes(values) if form == FORMS[0] else zip_bytes(prediction, values)


def answer_values(prediction: Prediction, image: str, model: str) -> dict[str, Any]:
    """An answer as :class:`~pixellm.serving.schemas.SegmentAnswer`."""
    found = [segment_values(one, index) for index, one in enumerate(prediction.segments)]
    known = prediction.info.get("familiarity")
    return {**prediction_to_json(prediction, image, model), "segments": found, "familiarity": known}


def zip_bytes(prediction: Prediction, values: dict[str, Any]) -> bytes:
    """A PNG for each mask, and ``answer.json``."""
    files = {path.name: data for path, data in mask_files(prediction, Path()).items()}
    return pack({**files, "answer.json": json_bytes(values)})


def pack(files: dict[str, bytes]) -> bytes:
    """A zip archive of files by name; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
