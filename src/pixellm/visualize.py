"""Masks drawn over their image, and sheets of images to look at.

Pillow and NumPy only. This module knows nothing of models, files or samples: it gets pixels,
masks and words, and gives back an image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageFont, PngImagePlugin

from pixellm.files import MAKER
from pixellm.masks import Size, mask_to_box, resize_mask
from pixellm.types import BoolMask

ImageLike = Image.Image | NDArray[np.uint8]
Color = tuple[int, int, int]

PALETTE: tuple[Color, ...] = (
    (238, 102, 0),
    (102, 17, 255),
    (0, 238, 204),
    (34, 153, 255),
    (170, 34, 102),
    (238, 221, 0),
    (153, 204, 102),
    (187, 0, 187),
    (255, 153, 238),
    (221, 0, 51),
)
"""Chosen so that any two differ by at least 20 (CIE Lab) for people with normal sight and for
those who see no red or no green, and by at least 40 for the former."""

_INK: Color = (20, 20, 20)
_PAPER: Color = (255, 255, 255)
_THUMBNAIL = 64
_GRID = 14
_LETTERS_ACROSS = 10


def segment_color(index: int) -> Color:
    """RGB colour of the segment of that index, counted from 0.

    The palette first, then darker and lighter shades of it, then the same again.
    """
    color = np.array(PALETTE[index % len(PALETTE)])
    shade = (index // len(PALETTE)) % 3
    mixed = (color, color * 0.55, color * 0.45 + 140)[shade]
    red, green, blue = (int(channel) for channel in mixed)
    return red, green, blue


def css_color(index: int) -> str:
    """The colour of a segment as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*segment_color(index))


def draw_overlay(
    image: ImageLike,
    masks: Sequence[BoolMask],
    labels: Sequence[str] | None = None,
    *,
    opacity: float = 0.45,
    numbered: bool = True,
) -> Image.Image:
    """Draw masks over their image: tinted, outlined and tagged.

    Tags read "1 the left banana". Each lies on or near its mask, inside the image and apart
    from the others as long as there is room; a line joins it to a mask that it doesn't touch.
    Labels are cut at two thirds of the image's width; small images carry numbers only, tiny
    ones no tags.

    Args:
        image: the image, or its pixels as (H, W, 3) uint8 RGB.
        masks: each (H, W) bool, in the order of their numbers; empty ones get no mark.
        labels: a text per mask; none where left out.
        opacity: how much of the tint covers the image, 0..1.
        numbered: whether tags open with the number of the mask, counted from 1.

    Returns:
        A new RGB image of the same size.

    Raises:
        ValueError: a mask of another size than the image, or masks and labels differ in number.
    """
    base = _to_image(image)
    _check(base, masks, labels)
    pixels = np.asarray(base, dtype=np.float32).copy()
    for index in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        tint = np.array(segment_color(index), dtype=np.float32)
        pixels[masks[index]] += (tint - pixels[masks[index]]) * opacity
    thickness = max(1, round(max(base.size) / 350))
    for index, mask in enumerate(masks):
        _draw_outline(pixels, mask, segment_color(index), thickness)
    drawn = Image.fromarray(np.rint(pixels).astype(np.uint8))
    font_size = int(np.clip(max(base.size) / 42, 11, 40))
    if labels is None or base.width < _LETTERS_ACROSS * font_size:
        labels = [""] * len(masks)
    _draw_tags(drawn, masks, _tag_texts(labels, numbered), _font(font_size))
    return drawn


def draw_contact_sheet(
    tiles: Sequence[ImageLike],
    captions: Sequence[str] | None = None,
    columns: int = 4,
    tile_width: int = 320,
) -> Image.Image:
    """Lay images of any size out in rows, a caption under each, as an RGB image on white.

    Each is scaled to lie in a square of ``tile_width`` pixels, a row is as high as its highest
    tile. Captions are wrapped to that width; their line breaks are kept. ValueError for no tiles,
    captions that differ in number, and sizes below 1.
    """
    captions = [""] * len(tiles) if captions is None else captions
    if not tiles or len(captions) != len(tiles) or min(columns, tile_width) < 1:
        raise ValueError(
            f"A contact sheet needs tiles and a caption for each; it got {len(tiles)} tiles, "
            f"{len(captions)} captions, {columns} columns of {tile_width} pixels."
        )
    font = _font(max(11, tile_width // 24))
    cells = [
        _draw_cell(_to_image(tile), caption, tile_width, font)
        for tile, caption in zip(tiles, captions, strict=True)
    ]
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    gap = max(4, tile_width // 32)
    heights = [max(cell.height for cell in row) for row in rows]
    width = gap + min(columns, len(cells)) * (tile_width + gap)
    sheet = Image.new("RGB", (width, gap + sum(heights) + gap * len(rows)), _PAPER)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (gap + column * (tile_width + gap), top))
        top += height + gap
    return sheet


def encode_image(image: Image.Image, suffix: str, **options: Any) -> bytes:
    """An image as a file that names its maker, where its format has room for that.

    The suffix chooses the format (".png", ".jpg"), ValueError for one that Pillow does not write;
    options are those of Pillow's writer.
    """
    name = Image.registered_extensions().get(suffix.lower(), "")
    note = f"generator: {MAKER}"
    if name == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("Software", MAKER)
        options["pnginfo"] = info
    elif name in ("JPEG", "GIF"):
        options["comment"] = note
    elif name in ("WEBP", "AVIF", "TIFF"):
        exif = image.getexif()
        exif[ExifTags.Base.Software] = note
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _to_image(image: ImageLike) -> Image.Image:
    return (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")


def _check(image: Image.Image, masks: Sequence[BoolMask], labels: Sequence[str] | None) -> None:
    size = (image.height, image.width)
    for mask in masks:
        if mask.shape != size:
            raise ValueError(f"A mask is {mask.shape} but its image is {size} (height, width).")
    if labels is not None and len(labels) != len(masks):
        raise ValueError(f"There are {len(masks)} masks but {len(labels)} labels.")


def _draw_outline(
    pixels: NDArray[np.float32], mask: BoolMask, color: Color, thickness: int
) -> None:
    """Colour the inner edge of a mask, and darken the pixels just outside it, in place."""
    x, y, width, height = mask_to_box(mask)
    if width == 0:
        return
    margin = thickness + 1
    rows = slice(max(0, y - margin), y + height + margin)
    columns = slice(max(0, x - margin), x + width + margin)
    part, near = pixels[rows, columns], mask[rows, columns]
    halo = _grow(near, max(1, thickness // 2)) & ~near
    edge = near & _grow(~near, thickness)
    part[halo] *= 0.35
    part[edge] = color


def _grow(mask: BoolMask, steps: int) -> BoolMask:
    """Dilate a mask by a diamond of that radius."""
    grown = mask.copy()
    for _ in range(steps):
        before = grown.copy()
        grown[1:] |= before[:-1]
        grown[:-1] |= before[1:]
        grown[:, 1:] |= before[:, :-1]
        grown[:, :-1] |= before[:, 1:]
    return grown


def _tag_texts(labels: Sequence[str], numbered: bool) -> list[str]:
    words = [" ".join(label.split()) for label in labels]
    if not numbered:
        return words
    return [f"{number}  {word}".rstrip() for number, word in enumerate(words, start=1)]


def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast("ImageFont.FreeTypeFont", ImageFont.load_default(size))


class _Rectangle(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int


def _draw_tags(
    image: Image.Image,
    masks: Sequence[BoolMask],
    texts: Sequence[str],
    font: ImageFont.FreeTypeFont,
) -> None:
    size = round(font.size)
    padding = max(2, size // 4)
    height = size + 2 * padding
    if not any(texts) or min(image.size) < height:
        return
    occupied, limit = np.any(masks, axis=0), image.width * 2 // 3
    placed: list[_Rectangle] = []
    tags = []
    # Small masks choose first: a large one has room elsewhere.
    for index in sorted(range(len(masks)), key=lambda i: int(masks[i].sum())):
        if not texts[index] or not masks[index].any():
            continue
        number_only = len(texts[index]) <= 3
        text = texts[index] if number_only else _fit_text(texts[index], font, limit)
        width = round(font.getlength(text)) + 2 * padding
        if width > image.width:
            continue
        anchor = _inner_point(masks[index])
        tag = _place_tag((height, width), anchor, masks[index], occupied, placed)
        placed.append(tag)
        tags.append((index, text, anchor, tag))
    canvas = ImageDraw.Draw(image)
    for index, _, anchor, tag in tags:
        _draw_leader(canvas, tag, anchor, masks[index], segment_color(index), max(1, size // 9))
    for index, text, _, tag in tags:
        _draw_tag(canvas, tag, text, font, segment_color(index))


def _fit_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, shortened with an ellipsis until it is no wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = len(text) - 1
    while kept > 1 and font.getlength(text[:kept].rstrip() + "…") > width:
        kept -= 1
    return text[:kept].rstrip() + "…"


def _inner_point(mask: BoolMask) -> tuple[int, int]:
    """A point (x, y) deep inside a mask: what is left of it after the last erosion."""
    x, y, width, height = mask_to_box(mask)
    inside = mask[y : y + height, x : x + width]
    size = (min(height, _THUMBNAIL), min(width, _THUMBNAIL))
    left = np.pad(resize_mask(inside, size), 1)
    if not left.any():  # a few pixels of a large box, all missed by the thumbnail
        row, column = np.argwhere(inside)[0]
        return x + int(column), y + int(row)
    while (eroded := left & ~_grow(~left, 1)).any():
        left = eroded
    points = np.argwhere(left) - 1
    row, column = points[np.abs(points - points.mean(axis=0)).sum(axis=1).argmin()]
    return (
        x + int((column + 0.5) * width / size[1]),
        y + int((row + 0.5) * height / size[0]),
    )


def _place_tag(
    size: Size,
    anchor: tuple[int, int],
    mask: BoolMask,
    occupied: BoolMask,
    placed: Sequence[_Rectangle],
) -> _Rectangle:
    """Choose the spot for a tag: apart from other tags, off other masks, near its own.

    Spots are weighed in pixels of distance to the anchor. Lying on other masks costs as much as
    moving away by the tag's width, hiding its own mask a few heights; lying on another tag costs
    more than any distance.
    """
    height, width = size
    spots, extent = _spots(size, anchor, mask), np.array([width, height])
    own = _covered(mask, spots, size)
    others = _covered(occupied, spots, size) - own
    distance = np.hypot(*(spots + extent / 2 - anchor).T)
    hidden = np.maximum(own / mask.sum() - 0.2, 0)
    clash = np.zeros(len(spots))
    for other in placed:
        shared = np.minimum(spots + extent, other[2:]) - np.maximum(spots, other[:2])
        clash += np.maximum(shared, 0).prod(axis=1)
    area = height * width
    cost = distance + width * others / area + 4 * height * hidden
    cost += 20 * sum(mask.shape) * clash / area
    left, top = (int(corner) for corner in spots[cost.argmin()])
    return _Rectangle(left, top, left + width, top + height)


def _covered(mask: BoolMask, spots: NDArray[np.int64], size: Size) -> NDArray[np.int64]:
    """How many pixels of a mask lie under a rectangle of ``size`` at each spot (x, y)."""
    sums = np.pad(mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), ((1, 0), (1, 0)))
    (left, top), (height, width) = spots.T, size
    right, bottom = left + width, top + height
    covered: NDArray[np.int64] = (
        sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    )
    return covered


def _spots(size: Size, anchor: tuple[int, int], mask: BoolMask) -> NDArray[np.int64]:
    """(n, 2) top left corners (x, y) to try, all inside the image.

    On the anchor, around the box of the mask, and all over the image.
    """
    height, width = size
    x, y, box_width, box_height = mask_to_box(mask)
    free_x, free_y = mask.shape[1] - width, mask.shape[0] - height
    lefts = [anchor[0] - width // 2, x, x + box_width - width, x - width - 2, x + box_width + 2]
    tops = [anchor[1] - height // 2, y - height - 2, y + box_height + 2, y, y + box_height - height]
    near = np.stack(np.meshgrid(np.clip(lefts, 0, free_x), np.clip(tops, 0, free_y)), axis=-1)
    columns = np.linspace(0, free_x, _GRID).astype(np.int64)
    rows = np.linspace(0, free_y, max(_GRID, free_y // height)).astype(np.int64)
    everywhere = np.stack(np.meshgrid(columns, rows), axis=-1)
    return np.concatenate([near.reshape(-1, 2), everywhere.reshape(-1, 2)])


def _draw_leader(
    canvas: ImageDraw.ImageDraw,
    tag: _Rectangle,
    anchor: tuple[int, int],
    mask: BoolMask,
    color: Color,
    width: int,
) -> None:
    """Join a tag to its mask, if it lies apart from it."""
    if mask[tag.top : tag.bottom, tag.left : tag.right].any():
        return
    start = (
        int(np.clip(anchor[0], tag.left, tag.right - 1)),
        int(np.clip(anchor[1], tag.top, tag.bottom - 1)),
    )
    canvas.line([start, anchor], fill=_INK, width=width + 2)
    canvas.line([start, anchor], fill=color, width=width)


def _draw_tag(
    canvas: ImageDraw.ImageDraw,
    tag: _Rectangle,
    text: str,
    font: ImageFont.FreeTypeFont,
    color: Color,
) -> None:
    ink = _INK if np.dot(color, (0.299, 0.587, 0.114)) > 120 else _PAPER
    height = tag.bottom - tag.top
    canvas.rounded_rectangle(
        (tag.left, tag.top, tag.right - 1, tag.bottom - 1),
        radius=height // 4,
        fill=color,
        outline=ink,
    )
    middle = ((tag.left + tag.right) / 2, (tag.top + tag.bottom) / 2)
    canvas.text(middle, text, fill=ink, font=font, anchor="mm")


def _draw_cell(
    tile: Image.Image, caption: str, width: int, font: ImageFont.FreeTypeFont
) -> Image.Image:
    """One tile of a contact sheet with its caption below."""
    scale = width / max(tile.size)
    size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    lines = _wrap(caption, font, width)
    line_height = round(sum(font.getmetrics()) * 1.1)
    cell = Image.new("RGB", (width, size[1] + 4 + line_height * len(lines)), _PAPER)
    cell.paste(tile.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, 0))
    canvas = ImageDraw.Draw(cell)
    for number, line in enumerate(lines):
        canvas.text((0, size[1] + 4 + number * line_height), line, fill=_INK, font=font)
    return cell


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text into lines no wider than ``width`` pixels; longer words are cut short."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return [_fit_text(line, font, width) for line in lines]
