"""The page at /: its files, what it has to know, and the bundled photos."""

from __future__ import annotations

from importlib import resources
from typing import Any

from fastapi import APIRouter
from starlette.responses import FileResponse, JSONResponse, Response

from pixellm.image_files import example_image
from pixellm.serving.errors import RefusedError
from pixellm.serving.service import Service
from pixellm.types import UNFAMILIAR, UNFAMILIAR_NOTE

FILES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "masks.js": "text/javascript",
    "server.js": "text/javascript",
}
_EXAMPLES = {
    "coffee": ("Where are the table and the cup?", "A cup of coffee on a wooden table"),
    "chelsea": ("Where is the cat?", "The face of a ginger cat"),
    "astronaut": ("Where is the person?", "An astronaut in an orange suit, in front of a flag"),
}
"""Bundled photos -> a question, and what is seen in them."""

_ABOUT = {
    "nano": (
        "It answers questions about photos of the 80 everyday things that COCO names: people, "
        "animals, vehicles, furniture, food, things of a household.",
        "It finds large and frequent things well, and small ones (under 1 % of the image) hardly.",
        "It is weak at counting, at many of a kind, at left and right, and has no words for "
        "colours or reasons.",
        "It may name what is not there; then, mostly, no mask follows. English only.",
        "It is small on purpose (13 MB); full-size models know much more.",
    ),
    "nano-scenes": (
        "It knows scenes that the project draws itself, of 289 everyday things, and nothing else: "
        "photos are foreign to it.",
        "It finds what is named, or what serves a use or an activity; it is weak at second turns.",
        "English only.",
    ),
}
_ABOUT_OTHERS = (
    "It answers in words, and each phrase that names something in the image carries a mask.",
    "It can be wrong in words and in masks; look before you rely on either.",
)
_BASE64 = 4 / 3


def page_routes(service: Service) -> APIRouter:
    """The page's routes."""
    router = APIRouter(include_in_schema=False)
    folder = resources.files("pixellm.serving") / "static"
    settings = service.settings
    config = {
        "model": service.name,
        "about": _ABOUT.get(service.name, _ABOUT_OTHERS),
        "examples": [
            {"name": f"{name}.jpg", "url": f"page/examples/{name}.jpg", "question": q, "alt": alt}
            for name, (q, alt) in _EXAMPLES.items()
        ],
        "unfamiliar": {"below": UNFAMILIAR, "note": UNFAMILIAR_NOTE},
        "max_pixels": settings.max_pixels,
        # Room for the dialogue around the image.
        "max_bytes": int(settings.max_body / _BASE64 * 0.95),
    }

    def file(name: str, kind: str) -> Response:
        content = (folder / name).read_bytes()
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    @router.get("/")
    def index() -> Response:
        """The page itself."""
        return file("index.html", "text/html")

    @router.get("/page/config.json")
    async def show_config() -> Response:
        """What the page has to know of the server."""
        values: dict[str, Any] = config
        return JSONResponse(values)

    @router.get("/page/examples/{name}.jpg")
    def example(name: str) -> Response:
        """A bundled photo."""
        if name not in _EXAMPLES:
            raise RefusedError(404, "There is no such example.", "not_found")
        return FileResponse(example_image(name))

    @router.get("/page/{name}")
    def part(name: str) -> Response:
        """A file of the page."""
        if name not in FILES:
            raise RefusedError(404, "The page has no such file.", "not_found")
        return file(name, FILES[name])

    return router
