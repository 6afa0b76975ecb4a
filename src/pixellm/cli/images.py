"""The image that a user types: a file, "-" for standard input, or a URL.

A URL is fetched with the server's limits on time, redirects and kind; see
:mod:`pixellm.serving.remote`. Images that files name, such as lists of questions, are never URLs.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pixellm.cli.console import open_console, printable
from pixellm.files import STANDARD, read_input
from pixellm.image_files import is_url, load_embedded, load_image

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES = 64 << 20
"""Of an image that is fetched."""


def read_image(typed: str) -> Image.Image:
    """The image, upright and in RGB."""
    if typed == STANDARD:
        return load_embedded(read_input(Path(typed)), "The image from standard input")
    if Path(typed).is_fifo():  # as a shell makes of <(command)
        return load_embedded(Path(typed).read_bytes(), typed)
    return load_embedded(_fetch(typed), typed) if is_url(typed) else load_image(typed)


def file_of(typed: str) -> Path | None:
    """The image's file, where it is one that can be read again."""
    is_stream = typed == STANDARD or is_url(typed) or Path(typed).is_fifo()
    return None if is_stream else Path(typed)


def name_of(typed: str) -> Path:
    """What files about the image are called after."""
    if typed == STANDARD:
        return Path("standard_input")
    name = PurePosixPath(unquote(urlsplit(typed).path)).name if is_url(typed) else ""
    return file_of(typed) or Path(name or "image")


def overlay_name(image: Path) -> Path:
    """Where an overlay goes if nothing is said: the current folder, named after the image."""
    return Path(f"{image.stem}_pixellm.png")


def _fetch(url: str) -> bytes:
    import asyncio

    from rich.markup import escape

    from pixellm.serving.errors import RefusedError
    from pixellm.serving.remote import fetch_image

    try:
        with open_console(stderr=True).status(escape(printable(f"Fetching {url}"))):
            return asyncio.run(fetch_image(url, MOST_BYTES, typed=True))
    except RefusedError as error:
        raise ValueError(f"{url}: {error}") from None
