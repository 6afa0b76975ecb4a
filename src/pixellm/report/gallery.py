"""Images for a page: scaled down, with masks, as ``data:`` URLs; and the preview of a data set."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pixellm.files import check_file, check_folder, write_files
from pixellm.masks import decode_mask, resize_mask
from pixellm.report.page import render_page
from pixellm.types import RLE, BoolMask
from pixellm.visualize import draw_contact_sheet, draw_overlay, encode_image, segment_color

Part = tuple[str, int | None]
"""Text of an answer, and the index of the mask that it carries; None for text without one."""


@dataclass(frozen=True, slots=True)
class PreviewTurn:
    """A question, its answer with marks, and the parts in which that is shown."""

    question: str
    answer: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class PreviewEntry:
    """A dialogue to look at, and its image with the masks drawn."""

    name: str
    image: Image.Image
    turns: tuple[PreviewTurn, ...]


def draw_masks(
    image: Image.Image, masks: Sequence[RLE], labels: Sequence[str], side: int
) -> Image.Image:
    """An image with its masks, scaled down to a longest side of so many pixels."""
    image = image.convert("RGB")
    image.thumbnail((side, side))
    size = (image.height, image.width)
    return draw_overlay(image, [resize_mask(decode_mask(mask), size) for mask in masks], labels)


def data_url(image: Image.Image, suffix: str = ".jpg", **options: object) -> str:
    """An image as a ``data:`` URL; ``suffix`` and options as in ``encode_image``."""
    content = b64encode(encode_image(image, suffix, **options)).decode("ascii")
    return f"data:{Image.MIME[Image.registered_extensions()[suffix]]};base64,{content}"


def mask_layer(mask: BoolMask, index: int, side: int) -> str:
    """An (H, W) mask as a transparent PNG to lie over its image, in the colour of its index.

    The longest side is that of the image in the page, in pixels.
    """
    layer = Image.fromarray(mask.astype("uint8") * 255)
    layer.thumbnail((side, side), Image.Resampling.NEAREST)
    layer = layer.point([0] * 128 + [1] * 128)
    layer.putpalette([0, 0, 0, *segment_color(index)], "RGB")
    return data_url(layer, ".png", transparency=0, optimize=True)


def check_preview(out: Path) -> None:
    """OSError for a folder where a preview would replace files that are not of a preview."""
    check_folder(out)
    for path in _preview_files(out):
        check_file(path)


def write_preview(out: Path, title: str, entries: Sequence[PreviewEntry]) -> tuple[Path, Path]:
    """Write ``index.html``, which holds its images, and ``contact_sheet.png``; gives both paths.

    The folder is made where missing; at least one entry is needed. See :func:`check_preview`.
    """
    check_preview(out)
    page, sheet = _preview_files(out)
    captions = ["\n".join(f"Q: {t.question}\nA: {t.answer}" for t in e.turns) for e in entries]
    shown = [
        {"name": e.name, "turns": e.turns, "image": data_url(e.image, quality=88)} for e in entries
    ]
    drawn = draw_contact_sheet([entry.image for entry in entries], captions)
    files = {
        page: render_page("preview.html", {"title": title, "entries": shown}),
        sheet: encode_image(drawn, ".png"),
    }
    write_files(files, folder=out)
    return page, sheet


def _preview_files(out: Path) -> tuple[Path, Path]:
    return out / "index.html", out / "contact_sheet.png"
