"""The images of a report: which answers to show, and each drawn with its masks.

Answers are ranked by their own mean IoU. Images are scaled down and kept as JPEG bytes. It
knows records and pixels, and no markup.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.scores import Unit, count_bin, question_giou
from pixellm.image_files import load_image
from pixellm.masks import decode_mask, resize_mask
from pixellm.types import RLE
from pixellm.visualize import draw_overlay

EACH = 12
"""Answers shown of each sort: worst, median, best."""

_LONGEST_SIDE = 384
_QUALITY = 82
_NO_IMAGE = (225, 225, 225)

FetchImage = Callable[[AnswerRecord], Image.Image | None]
"""The image of a record; None where it can't be had any more."""


@dataclass(frozen=True, slots=True)
class Panel:
    """An image with masks.

    Attributes:
        caption: what the masks are.
        jpeg: the image, as a ``data:`` address.
    """

    caption: str
    jpeg: str


@dataclass(frozen=True, slots=True)
class Card:
    """One answer to look at.

    Attributes:
        sort: why it is shown, such as "worst".
        title: its score, in words.
        record: the answer.
        panels: images side by side.
        count: group by number of targets.
        note: what a judge said of it; "" without one.
    """

    sort: str
    title: str
    record: AnswerRecord
    panels: tuple[Panel, ...]
    count: str
    note: str = ""


def choose_records(records: Sequence[AnswerRecord], unit: Unit) -> dict[str, list[AnswerRecord]]:
    """The worst, median and best answers, each at most once.

    Where fewer than three times :data:`EACH` were answered, all are shown. Questions answered
    rightly without a mask show nothing and are passed over.
    """
    shown = [record for record in records if record.shown or record.targets]
    ranked = sorted(shown, key=lambda r: (question_giou(r, unit), r.index, r.turn))
    if len(ranked) <= 3 * EACH:
        third = -(-len(ranked) // 3)
        parts = ranked[:third], ranked[third : 2 * third], ranked[2 * third :]
    else:
        middle = (len(ranked) - EACH) // 2
        parts = ranked[:EACH], ranked[middle : middle + EACH], ranked[-EACH:]
    return dict(zip(("worst", "median", "best"), (*parts[:2], parts[2][::-1]), strict=True))


def build_cards(
    records: Sequence[AnswerRecord],
    unit: Unit,
    fetch_image: FetchImage,
    notes: Mapping[tuple[int, int], str] | None = None,
) -> list[Card]:
    """The gallery of a report: predicted masks on the left, true ones on the right.

    Args:
        records: all answers.
        unit: what counts as one IoU.
        fetch_image: gives the images.
        notes: (dialogue, turn) -> what a judge said of the answer.
    """
    said = notes or {}
    cards = []
    for sort, chosen in choose_records(records, unit).items():
        for record in chosen:
            image = fetch_image(record)
            panels = (predicted_panel(record, image), true_panel(record, image))
            title = f"IoU {question_giou(record, unit):.2f}"
            note = said.get((record.index, record.turn), "")
            cards.append(Card(sort, title, record, panels, count_bin(len(record.targets)), note))
    return cards


def predicted_panel(
    record: AnswerRecord, image: Image.Image | None, caption: str = "predicted"
) -> Panel:
    """What the model showed; labels are its own phrases."""
    masks = [mask.mask for mask in record.shown]
    return _panel(caption, record, image, masks, [mask.label for mask in record.shown])


def true_panel(record: AnswerRecord, image: Image.Image | None) -> Panel:
    """What was asked for."""
    masks = [target.mask for target in record.targets]
    return _panel("true", record, image, masks, [target.name for target in record.targets])


def read_image(record: AnswerRecord) -> Image.Image | None:
    """The image from its file, where that is still there and has the size it had."""
    if not record.path:
        return None
    try:
        image = load_image(record.path)
    except (OSError, ValueError):
        return None
    return image if (image.height, image.width) == record.size else None


def _panel(
    caption: str,
    record: AnswerRecord,
    image: Image.Image | None,
    masks: Sequence[RLE],
    labels: Sequence[str],
) -> Panel:
    height, width = record.size
    scale = min(1.0, _LONGEST_SIDE / max(record.size))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if image is None:
        canvas = Image.new("RGB", (size[1], size[0]), _NO_IMAGE)
    else:
        canvas = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)
    drawn = draw_overlay(
        np.asarray(canvas), [resize_mask(decode_mask(mask), size) for mask in masks], list(labels)
    )
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=_QUALITY)
    return Panel(caption, "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode("ascii"))
