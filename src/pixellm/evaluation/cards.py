"""The images of a report: which answers to show, and each drawn with its masks.

Answers are ranked by their own mean IoU. It knows records and pixels, and no markup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.scores import Unit, count_bin, question_giou
from pixellm.image_files import load_image
from pixellm.report.gallery import data_url, draw_masks
from pixellm.report.page import Card
from pixellm.types import RLE, Sample

EACH = 12
"""Answers shown of each sort: worst, median, best."""

Panel = tuple[str, str]
"""What the masks are, and the image as a ``data:`` URL."""

_LONGEST_SIDE = 384
_QUALITY = 82
_NO_IMAGE = (225, 225, 225)

FetchImage = Callable[[AnswerRecord], Image.Image | None]
"""The image of a record; None where it can't be had any more."""


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

    ``notes`` hold what a judge said of an answer, by (dialogue, turn).
    """
    said = notes or {}
    cards = []
    for sort, chosen in choose_records(records, unit).items():
        for record in chosen:
            image = fetch_image(record)
            panels = (predicted_panel(record, image), true_panel(record, image))
            title = f"IoU {question_giou(record, unit):.2f}"
            note = said.get((record.index, record.turn), "")
            cards.append(build_card(sort, title, record, panels, note))
    return cards


def build_card(
    sort: str, title: str, record: AnswerRecord, panels: tuple[Panel, ...], note: str = ""
) -> Card:
    """An answer as a report shows it."""
    fields = {
        "question": record.question,
        "answer": record.answer or "(nothing)",
        "expected": record.expected,
        "masks": f"{len(record.shown)} shown, {len(record.targets)} asked for",
        **({"judge": note} if note else {}),
        "sample": record.key,
    }
    return Card(sort, title, record.kind, count_bin(len(record.targets)), fields, panels)


def predicted_panel(
    record: AnswerRecord, image: Image.Image | None, caption: str = "predicted"
) -> Panel:
    """What the model showed; labels are its own phrases."""
    masks = [mask.mask for mask in record.shown]
    return caption, _draw(record, image, masks, [mask.label for mask in record.shown])


def true_panel(record: AnswerRecord, image: Image.Image | None) -> Panel:
    """What was asked for."""
    masks = [target.mask for target in record.targets]
    return "true", _draw(record, image, masks, [target.name for target in record.targets])


def image_source(questions: Sequence[Sample] | None) -> FetchImage:
    """Images from their files, and drawn ones from the questions, where there are any.

    A file that is not there any more, or has another size now, is no image.
    """

    def fetch(record: AnswerRecord) -> Image.Image | None:
        if record.path:
            try:
                image = load_image(record.path)
            except (OSError, ValueError):
                return None
            return image if (image.height, image.width) == record.size else None
        pixels = None if questions is None else questions[record.index].image
        return Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else None

    return fetch


def _draw(
    record: AnswerRecord, image: Image.Image | None, masks: Sequence[RLE], labels: Sequence[str]
) -> str:
    height, width = record.size
    if image is None:
        image = Image.new("RGB", (width, height), _NO_IMAGE)
    return data_url(draw_masks(image, masks, labels, _LONGEST_SIDE), quality=_QUALITY)
