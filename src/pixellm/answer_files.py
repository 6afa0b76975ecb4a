"""An answer as files: JSON, the image with its masks, one PNG per mask; and JSON read again.

Turns a :class:`~pixellm.types.Prediction` into bytes, puts them on disk, whole or not at all, and
alone reads what is written here. This module knows no model, no terminal and no network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field, StrictInt, TypeAdapter, ValidationError

from pixellm.files import (
    check_file,
    check_folder,
    is_same_file,
    json_bytes,
    open_input,
    parse_json,
    write_files,
)
from pixellm.masks import encode_mask, mask_to_box
from pixellm.types import RLE, Prediction, Segment
from pixellm.visualize import draw_overlay, encode_image

ANSWER_KEYS = ("image", "question", "answer", "segments")
"""Of the JSON of an answer; a file that has them was written here."""

_LONGEST_LABEL = 40
_MASK_NAME = re.compile(r"\d{2,}_.*\.png", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ShownMask:
    """A mask of an answer: :class:`~pixellm.types.Segment` with run lengths."""

    label: str
    score: float
    span: tuple[int, int]
    mask: Annotated[RLE, Field(alias="segmentation")]


@dataclass(frozen=True, slots=True)
class SavedAnswer:
    """What :func:`prediction_to_json` writes, read again; ``id`` is that of a job's question."""

    image: str
    question: str
    answer: str
    height: StrictInt
    width: StrictInt
    segments: tuple[ShownMask, ...]
    model: str = ""
    withheld: int = 0
    id: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.height, self.width


def read_answer(values: Any) -> SavedAnswer | None:
    """An answer from the values of its JSON; None for a question that got an error instead.

    Raises:
        ValueError: it is no answer; says which field is wrong.
    """
    if isinstance(values, dict) and "error" in values:
        return None
    try:
        return _answer_reader().validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg'].lower()}" if where else first["msg"]) from None


def read_answers(path: Path) -> Iterator[SavedAnswer | None]:
    """The answers in a file, or standard input for "-": one of ``segment --json``, or a line each.

    Raises:
        ValueError: a line is no answer, or the file holds none.
    """
    found = False
    with open_input(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                answer = read_answer(parse_json(line))
            except ValueError as error:
                if not found:  # one answer, over several lines
                    yield _only_answer(path, line + file.read(), error)
                    return
                if not line.endswith(b"\n"):  # of a job that was killed
                    return
                raise ValueError(f"Line {number} of {path} is no answer ({error}).") from error
            found = True
            yield answer
    if not found:
        raise ValueError(f"{path} holds no answers.")


@dataclass(frozen=True, slots=True)
class Destinations:
    """Where the parts of an answer go; None for parts that are not wanted.

    Attributes:
        overlay: the image with its masks; the suffix chooses the format.
        json: what :func:`prediction_to_json` gives.
        masks: folder of one PNG per mask.
    """

    overlay: Path | None = None
    json: Path | None = None
    masks: Path | None = None


def write_answer(
    prediction: Prediction,
    image: Image.Image,
    values: Mapping[str, Any],
    destinations: Destinations,
) -> list[Path]:
    """Write the wanted parts of an answer, all or none; gives the files as overlay, JSON, masks.

    The image is upright, in RGB; the values are those of :func:`prediction_to_json`. OSError as of
    :func:`~pixellm.files.write_files`.
    """
    files: dict[Path, bytes] = {}
    if destinations.overlay is not None:
        suffix = destinations.overlay.suffix
        files[destinations.overlay] = overlay_bytes(image, prediction, suffix)
    if destinations.json is not None:
        files[destinations.json] = json_bytes(values)
    if destinations.masks is not None:
        files |= mask_files(prediction, destinations.masks)
    write_files(files, folder=destinations.masks)
    return list(files)


def prediction_to_json(prediction: Prediction, image: str, model: str) -> dict[str, Any]:
    """An answer, masks (H, W) bool in pixels of the original image, as values that JSON knows.

    Returns:
        ``image``, ``width``, ``height``, ``question``, ``answer``, ``model``, and ``segments``,
        each with ``label``, ``score``, ``bbox`` [x, y, width, height] and ``area`` in pixels of
        the image as it is seen upright, ``span`` [start, end) in the answer's characters, and
        ``segmentation`` as COCO compressed run lengths; ``withheld`` counts masks that the engine
        filtered, their scores being too low.
    """
    height, width = prediction.size
    return {
        "image": image,
        "width": width,
        "height": height,
        "question": prediction.question,
        "answer": prediction.text,
        "model": model,
        "segments": [segment_to_json(segment) for segment in prediction.segments],
        "withheld": int(prediction.info.get("num_filtered", 0)),
    }


def segment_to_json(segment: Segment) -> dict[str, Any]:
    """A segment as values that JSON knows, see :func:`prediction_to_json`."""
    return {
        "label": segment.label,
        "score": float(segment.score),
        "bbox": list(mask_to_box(segment.mask)),
        "area": int(segment.mask.sum()),
        "span": list(segment.span),
        "segmentation": encode_mask(segment.mask),
    }


def overlay_bytes(image: Image.Image, prediction: Prediction, suffix: str) -> bytes:
    """The image with the masks drawn over it, encoded by a suffix as of :func:`encode_image`."""
    masks = [segment.mask for segment in prediction.segments]
    labels = [segment.label for segment in prediction.segments]
    return encode_image(draw_overlay(image, masks, labels), suffix)


def mask_files(prediction: Prediction, folder: Path) -> dict[Path, bytes]:
    """A PNG per segment, 255 inside the mask and 0 outside, as ``folder/01_the-left-banana.png``.

    Names hold the number, counted from 1 as everywhere, and the label without what file systems
    dislike.
    """
    files = {}
    for number, segment in enumerate(prediction.segments, start=1):
        words = re.sub(r"[\W_]+", "-", segment.label.casefold())[:_LONGEST_LABEL].strip("-")
        name = f"{number:02d}_{words or 'mask'}.png"
        pixels = segment.mask.astype(np.uint8) * 255
        files[folder / name] = encode_image(Image.fromarray(pixels), ".png")
    return files


def check_image_name(path: Path, original: Path | None = None) -> None:
    """Refuse, by a ValueError, a name of no format that Pillow writes, and the original file."""
    format_name = Image.registered_extensions().get(path.suffix.lower())
    if format_name not in Image.SAVE:
        raise ValueError(f"{path} has no suffix of an image; name it {path.stem or 'answer'}.png.")
    if original is not None and is_same_file(path, original):
        raise ValueError(f"{path} is the image itself; give the overlay another name.")


def check_destinations(destinations: Destinations, original: Path | None) -> None:
    """Refuse places where a part of an answer would replace another, the image, or foreign files.

    ``original`` is the file of the image that is asked about; None where it has none. ValueError
    where a part would be lost, or for a name of no image format; OSError for what can't be written.
    """
    overlay, json_file, folder = destinations.overlay, destinations.json, destinations.masks
    if overlay is not None:
        check_image_name(overlay, original)
    if json_file is not None and original is not None and is_same_file(json_file, original):
        raise ValueError(f"{json_file} is the image itself; give the JSON file another name.")
    if overlay is not None and json_file is not None and is_same_file(overlay, json_file):
        raise ValueError(f"{overlay} can't be both the overlay and the JSON file; name another.")
    for path in (original, overlay, json_file):
        if folder is not None and path is not None and _is_mask_in(path, folder):
            raise ValueError(f"A mask in {folder} may replace {path}; choose another folder.")
    if overlay is not None:
        check_file(overlay)
    if json_file is not None:
        check_file(json_file, keys=ANSWER_KEYS)
    if folder is not None:
        check_folder(folder)
        for path in sorted(folder.glob("*.png")):
            if _MASK_NAME.fullmatch(path.name):
                check_file(path)


@cache
def _answer_reader() -> TypeAdapter[SavedAnswer]:
    return TypeAdapter(SavedAnswer)


def _only_answer(path: Path, content: bytes, error: ValueError) -> SavedAnswer | None:
    try:
        return read_answer(parse_json(content))
    except ValueError:
        raise ValueError(f"{path} holds no answers of pixellm (line 1: {error}).") from error


def _is_mask_in(path: Path, folder: Path) -> bool:
    """Whether a file in the folder is called what :func:`mask_files` may call a mask."""
    return bool(_MASK_NAME.fullmatch(path.name)) and is_same_file(path.absolute().parent, folder)
