"""Answers that show themselves: drawn, saved, as COCO or supervision's detections, in notebooks.

An :class:`Answer` is the :class:`~pixellm.types.Prediction` that an engine gives, together with the
image it is about. Everything here is made from these when it is asked for. Knows no model.
"""

from __future__ import annotations

import base64
import html
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from pixellm.answer_files import (
    ANSWER_KEYS,
    check_image_name,
    overlay_bytes,
    prediction_to_json,
    read_answer,
)
from pixellm.export import Categories, coco_values, gather_labels
from pixellm.files import check_file, json_bytes, write_files
from pixellm.image_files import ImageSource, load_image
from pixellm.masks import mask_to_box
from pixellm.polygons import Polygon, border_polygons
from pixellm.types import Prediction, Segment
from pixellm.visualize import draw_overlay, encode_image, segment_color

if TYPE_CHECKING:
    import supervision

_LONGEST_SIDE = 800
"""Pixels of an image inside a notebook."""

_NUMBERS = itertools.count(1)


@dataclass(frozen=True, slots=True)
class AnswerSegment(Segment):
    """A segment that knows its geometry; frames as :class:`~pixellm.types.Segment`."""

    @property
    def bbox(self) -> tuple[int, int, int, int]:
        """The tight box (x, y, width, height), in pixels."""
        return mask_to_box(self.mask)

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(self.mask.sum())

    @property
    def polygons(self) -> list[Polygon]:
        """(N, 2) corners (x, y) of each part, see :func:`~pixellm.polygons.border_polygons`."""
        return border_polygons(self.mask)


@dataclass(frozen=True, slots=True)
class Answer(Prediction):
    """A prediction with its image, which can be shown and turned into other forms.

    Attributes:
        image: what was asked about; a file is read again when it is needed.
    """

    segments: tuple[AnswerSegment, ...]
    image: ImageSource | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, prediction: Prediction, image: ImageSource | None) -> Self:
        """A prediction and its image."""
        segments = tuple(
            AnswerSegment(one.label, one.mask, one.score, one.span) for one in prediction.segments
        )
        size, info = prediction.size, prediction.info
        return cls(prediction.text, segments, prediction.question, size, info, image)

    def overlay(self, *, opacity: float = 0.45, labels: bool = True) -> Image.Image:
        """The image with the masks drawn over it, numbered in order of mention.

        Args:
            opacity: how much of the tint covers the image, 0..1.
            labels: whether tags tell the phrases.

        Raises:
            ValueError: the image is not known, or not the one that was asked about.
        """
        masks = [one.mask for one in self.segments]
        words = [one.label for one in self.segments] if labels else None
        return draw_overlay(self._pixels(), masks, words, opacity=opacity)

    def show(self) -> None:
        """Show the image with its masks: in a notebook there, else in the system's viewer."""
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            self.overlay().show()
            return
        if get_ipython() is None:
            self.overlay().show()
        else:
            display(self)

    def save(self, path: str | Path) -> None:
        """Write the answer: as JSON to ``*.json``, else the image with its masks.

        Raises:
            ValueError: Pillow writes no format of that suffix.
            OSError: the file can't be written, or was not written by pixellm.
        """
        path = Path(path)
        if path.suffix.lower() == ".json":
            check_file(path, keys=ANSWER_KEYS)
            write_files({path: json_bytes(self.to_dict())})
            return
        original = Path(self.image) if isinstance(self.image, str | Path) else None
        check_image_name(path, original)
        check_file(path)
        write_files({path: overlay_bytes(self._pixels(), self, path.suffix)})

    def to_dict(self) -> dict[str, Any]:
        """The answer as ``segment --json`` writes it, masks as COCO run lengths."""
        return prediction_to_json(self, self._name(), "")

    def to_coco(self) -> dict[str, Any]:
        """The answer as a COCO data set of one image; its phrases are the categories."""
        return coco_values(gather_labels([read_answer(self.to_dict())], Categories()))

    def to_supervision(self) -> supervision.Detections:
        """The answer as detections of supervision; ``class_name`` holds the phrases.

        Raises:
            ImportError: supervision is not installed.
        """
        import supervision

        if not self.segments:
            return supervision.Detections.empty()
        boxes = np.array([one.bbox for one in self.segments], dtype=np.float32)
        labels = [one.label for one in self.segments]
        names = list(dict.fromkeys(labels))
        return supervision.Detections(
            xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            mask=np.stack([one.mask for one in self.segments]),
            confidence=np.array([one.score for one in self.segments], dtype=np.float32),
            class_id=np.array([names.index(label) for label in labels]),
            data={"class_name": np.array(labels)},
        )

    def _repr_html_(self) -> str:
        """The answer for a notebook: hovering over a phrase lights its mask, and the reverse."""
        name = f"pixellm-{next(_NUMBERS)}"
        height, width = self.size
        lit, shapes = "", ""
        for number, one in enumerate(self.segments):
            red, green, blue = segment_color(number)
            corners = (" ".join(f"{x:g},{y:g}" for x, y in polygon) for polygon in one.polygons)
            path = "".join(f"M{points}Z" for points in corners)
            title = html.escape(f"{one.label}, {one.score:.2f}")
            shapes += (
                f'<path class="s{number}" d="{path}" fill="rgb({red},{green},{blue})" '
                f'fill-rule="evenodd"><title>{title}</title></path>'
            )
            lit += f"#{name}:has(.s{number}:hover) path.s{number}{{fill-opacity:.8}}"
        return (
            f'<div id="{name}"><style>#{name} path{{fill-opacity:.4;stroke:#fff;stroke-width:'
            f"{max(self.size) / 400:.2f}}}{lit}</style><p><b>{html.escape(self.question)}</b><br>"
            f'{self._marked_text()}</p><svg viewBox="0 0 {width} {height}" role="img" '
            f'style="max-width:100%;width:{min(width, _LONGEST_SIDE)}px">{self._embedded()}{shapes}'
            "</svg></div>"
        )

    def _marked_text(self) -> str:
        """The text as HTML, each phrase in the colour of its mask."""
        parts, start = [], 0
        for number, one in enumerate(self.segments):
            begin, end = one.span
            if begin < start:  # it shares its phrase with the one before
                begin = end = start
            color = "rgb({},{},{})".format(*segment_color(number))
            words = html.escape(self.text[begin:end]) or str(number + 1)
            parts += [
                html.escape(self.text[start:begin]),
                f'<span class="s{number}" style="border-bottom:3px solid {color}">{words}</span>',
            ]
            start = end
        return "".join([*parts, html.escape(self.text[start:])])

    def _embedded(self) -> str:
        """The image inside a drawing; nothing where it is not known."""
        if self.image is None:
            return ""
        pixels = self._pixels()
        pixels.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        data = base64.b64encode(encode_image(pixels, ".jpg", quality=85)).decode("ascii")
        height, width = self.size
        return f'<image href="data:image/jpeg;base64,{data}" width="{width}" height="{height}"/>'

    def _name(self) -> str:
        return Path(self.image).name if isinstance(self.image, str | Path) else "image"

    def _pixels(self) -> Image.Image:
        if self.image is None:
            raise ValueError("The answer does not know its image; make it with Answer.of.")
        image = load_image(self.image)
        if (image.height, image.width) != tuple(self.size):
            raise ValueError(
                f"The image is {(image.height, image.width)} now, and was {self.size} when it was "
                "asked about (height, width)."
            )
        return image
