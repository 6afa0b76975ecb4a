"""A data set to look at: images with masks, questions and answers, as a page and a sheet.

Shows what training would see, in the wording of the first epoch. It knows no format: a reader
gives the dialogues, :mod:`pixellm.visualize` draws.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pixellm.data.readers.base import Reader
from pixellm.files import MARKED_PAGE, check_file, check_folder, write_files
from pixellm.image_files import load_image
from pixellm.masks import decode_mask, resize_mask
from pixellm.processing.phrases import phrase_before
from pixellm.types import SEG_MARK, Sample, Turn
from pixellm.visualize import draw_contact_sheet, draw_overlay, encode_image, segment_color

_LONG_SIDE = 1024
_PAGE = (
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
"""
    + MARKED_PAGE
    + """
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ margin: 1.5rem; font: 16px/1.5 system-ui, sans-serif; color: #1d2a31;
    background: #f4f6f7 }}
  main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr));
    gap: 1.2rem }}
  figure {{ margin: 0; background: #fff; border: 1px solid #d5dde1; border-radius: 8px;
    overflow: hidden }}
  img {{ display: block; width: 100% }}
  figcaption {{ padding: .6rem 1rem; overflow-wrap: anywhere }}
  p {{ margin: .3rem 0 }}
  .question {{ font-weight: 600 }}
  .id {{ font-size: .8rem; color: #566b75 }}
  mark {{ color: inherit; background: none; border-bottom: 3px solid }}
</style>
<h1>{title}</h1>
<main>
{figures}
</main>
</html>
"""
)


@dataclass(frozen=True, slots=True)
class Preview:
    """What :func:`write_preview` wrote.

    Attributes:
        page: the HTML page; it needs the images beside it.
        sheet: the contact sheet.
        problems: rows that could not be shown, with reasons.
    """

    page: Path
    sheet: Path
    problems: tuple[str, ...]


def write_preview(reader: Reader, out: Path, num: int, title: str) -> Preview:
    """Write the first dialogues of a reader's first epoch, one of each item.

    Args:
        reader: the data set.
        out: folder for ``index.html``, ``contact_sheet.png`` and a JPEG per dialogue; made where
            missing, files of these names are replaced.
        num: how many dialogues, at most.
        title: of the page.

    Raises:
        ValueError: ``num`` is below 1, or none of the dialogues can be shown.
        OSError: the folder can't be written, or holds a file of these names that is not ours.
    """
    if num < 1:
        raise ValueError(f"A preview of {num} dialogues shows nothing; ask for at least 1.")
    sheet, page = out / "contact_sheet.png", out / "index.html"
    check_folder(out)
    for path in (page, sheet, *(out / f"{index:03d}.jpg" for index in range(num))):
        check_file(path)
    files: dict[Path, bytes] = {}
    tiles, captions, figures, problems = [], [], [], []
    for index in range(min(num, len(reader))):
        try:
            dialogues = reader.dialogues(index, 0)
            sample = dialogues[index % len(dialogues)]
            tile = draw_sample(sample)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        name = f"{index:03d}.jpg"
        files[out / name] = encode_image(tile, ".jpg", quality=88)
        tiles.append(tile)
        captions.append("\n".join(f"Q: {t.question}\nA: {t.answer}" for t in sample.turns))
        figures.append(_figure(sample, name))
    if not tiles:
        raise ValueError(f"Nothing of {title} can be shown: {problems[0]}")
    files[sheet] = encode_image(draw_contact_sheet(tiles, captions), ".png")
    body = _PAGE.format(title=html.escape(title), figures="\n".join(figures))
    files[page] = body.encode()
    write_files(files, folder=out)
    return Preview(page, sheet, tuple(problems))


def draw_sample(sample: Sample) -> Image.Image:
    """The image with the masks of all turns, numbered in order of mention.

    Images larger than 1024 pixels are made smaller.

    Raises:
        ValueError: the image can't be read, or has another size than its masks.
        FileNotFoundError: there is no image.
    """
    image = load_image(sample.image)
    if (image.height, image.width) != tuple(sample.size):
        raise ValueError(
            f"The image of {sample.id} is {(image.height, image.width)}, its masks are "
            f"{tuple(sample.size)}."
        )
    masks = [decode_mask(target.mask) for turn in sample.turns for target in turn.targets]
    labels = [target.name for turn in sample.turns for target in turn.targets]
    if max(image.size) > _LONG_SIDE:
        image.thumbnail((_LONG_SIDE, _LONG_SIDE))
        masks = [resize_mask(mask, (image.height, image.width)) for mask in masks]
    return draw_overlay(image, masks, labels)


def _figure(sample: Sample, image: str) -> str:
    """One dialogue of the page."""
    lines = []
    first = 0
    for turn in sample.turns:
        lines.append(f'<p class="question">{html.escape(turn.question)}</p>')
        lines.append(f"<p>{''.join(_answer_html(turn, first))}</p>")
        first += len(turn.targets)
    lines.append(f'<p class="id">{html.escape(sample.id)}</p>')
    return (
        f'<figure><a href="{image}"><img src="{image}" alt="" loading="lazy"></a>'
        f"<figcaption>{''.join(lines)}</figcaption></figure>"
    )


def _answer_html(turn: Turn, first: int) -> Iterator[str]:
    """The answer; each phrase underlined in its mask's colour, the mask's number behind it.

    Args:
        turn: the turn.
        first: number of the dialogue's masks before this turn.
    """
    *pieces, rest = turn.answer.split(SEG_MARK)
    for number, piece in enumerate(pieces, start=first):
        start, end = phrase_before(piece, len(piece))
        color = "#{:02x}{:02x}{:02x}".format(*segment_color(number))
        mark = f'<mark style="border-color: {color}">'
        yield html.escape(piece[:start])
        yield f"{mark}{html.escape(piece[start:end])}</mark>{html.escape(piece[end:].rstrip())}"
        yield f" {mark}[{number + 1}]</mark>"
    yield html.escape(rest)
