"""Answers as annotations for other programs: COCO, YOLO, LabelMe, Label Studio, PNG masks.

Reads answers as :mod:`pixellm.answer_files` writes them, gathers what was said about each image,
and writes a folder that one format's own readers open. A folder holds one export; the next one
into it takes its place, file by file, unless somebody changed a file. This module knows no model.

Frames: images are written as people see them, turned as their EXIF says, and so are the masks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from pixellm.answer_files import SavedAnswer, ShownMask
from pixellm.files import check_merged, claim_folder, explained, locked, merged_folder
from pixellm.image_files import image_size, is_upright, load_image, size_mismatch
from pixellm.masks import decode_mask, mask_iou, mask_to_box
from pixellm.polygons import LEAST_IOU_ON_PIXELS, border_polygons, fill_polygons, pixel_polygons
from pixellm.types import RLE, BoolMask
from pixellm.visualize import css_color, draw_overlay, encode_image, segment_color

_ARTICLE = re.compile(r"^(?:the|an|a)\s+")
_PORTABLE = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""Suffixes of images that every program opens; others are written as PNG."""
_LONGEST_RUN = 1 << 16
_RUN_BITS = (3, 4, 8, 16)
_QUARTER = 0.25
"""Of a pixel: corners lie there behind a pixel's edge, so that readers which cut off fractions
and readers which round both find the pixel."""


@dataclass(frozen=True, slots=True)
class LabelledObject:
    """One mask of an image; ``label`` is the phrase that it grounds."""

    category: int
    label: str
    score: float
    rle: RLE

    @property
    def mask(self) -> BoolMask:
        """(H, W) bool."""
        return decode_mask(self.rle)


@dataclass(slots=True)
class LabelledImage:
    """An image of (height, width) pixels, named as its answers name it, and what these show."""

    name: str
    size: tuple[int, int]
    model: str
    objects: list[LabelledObject] = field(default_factory=list)


@dataclass(slots=True)
class Categories:
    """Classes by name, and which of them a mask is of.

    Attributes:
        names: in order; grows with the phrases met, unless ``closed``.
        closed: whether the names were given: other phrases have no class then.
        asked: question -> name of the class that it asks for.
    """

    names: list[str] = field(default_factory=list)
    closed: bool = False
    asked: Mapping[str, str] = field(default_factory=dict)

    def find(self, question: str, label: str) -> int | None:
        """The class of a mask; None where it is of none of those given."""
        name = self.asked.get(question) or category_of(label)
        if not self.closed:
            if name not in self.names:
                self.names.append(name)
            return self.names.index(name)
        if name in self.names:
            return self.names.index(name)
        matches = [n for n, known in enumerate(self.names) if _ends_with(name, known)]
        return max(matches, key=lambda n: len(self.names[n]), default=None)


@dataclass(frozen=True, slots=True)
class Labels:
    """What answers say, image by image.

    Counted are the rows that have no answer, and the masks of none of the classes given.
    """

    images: tuple[LabelledImage, ...]
    categories: tuple[str, ...]
    failed: int = 0
    unclassed: int = 0

    @property
    def num_objects(self) -> int:
        """Masks of all images."""
        return sum(len(image.objects) for image in self.images)


Find = Callable[[str], Path]
"""Where the image of a name lies."""

Files = Iterator[tuple[str, bytes]]
"""Paths below the folder of an export, and contents."""


def category_of(label: str) -> str:
    """The class that a phrase names: "The left cup" is of "left cup"."""
    words = " ".join(label.split()).casefold().strip(" .,;:!?\"'")
    return _ARTICLE.sub("", words) or "object"


def gather_labels(
    answers: Iterable[SavedAnswer | None], categories: Categories, min_score: float = 0.0
) -> Labels:
    """What answers say, image by image; several answers about an image come together.

    Categories may grow; masks of a score below ``min_score`` are left out.

    Raises:
        ValueError: an image has two sizes, or a mask is damaged.
    """
    images: dict[str, LabelledImage] = {}
    failed = unclassed = 0
    for answer in answers:
        if answer is None:
            failed += 1
            continue
        name, size = answer.image, answer.size
        image = images.setdefault(name, LabelledImage(name, size, answer.model))
        if image.size != size:
            raise ValueError(f"The answers give {name} two sizes: {image.size} and {size}.")
        for one in answer.segments:
            if one.score < min_score or not _mask_of(one, size, name).any():
                continue
            category = categories.find(answer.question, one.label)
            if category is None:
                unclassed += 1
            else:
                image.objects.append(LabelledObject(category, one.label, one.score, one.mask))
    return Labels(tuple(images.values()), tuple(categories.names), failed, unclassed)


def check_export(folder: Path, format_name: str) -> None:
    """Refuse, by OSError, a folder that no export can go to; by ValueError, an unknown format."""
    if format_name not in FORMATS:
        raise ValueError(f"There is no format {format_name!r}; known: {', '.join(FORMATS)}.")
    check_merged(folder)


def write_export(labels: Labels, folder: Path, format_name: str, find: Find) -> None:
    """Write labels into a folder, in place of the export that lies there; all or nothing.

    The folder is new, empty, or of an earlier export. After a kill at any moment the same call can
    be made again. ``find`` tells where the image of a name lies.

    Raises:
        ValueError: an image is damaged or not the one answered about.
        OSError: an image is missing, or the folder can't be written.
    """
    check_export(folder, format_name)
    claim_folder(folder)  # so that a killed first export can be made again
    # What can't be written is told of the folder: a copy that fails would name the image.
    with locked(folder), explained(folder), merged_folder(folder) as aside:
        for name, content in FORMATS[format_name](labels, find):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_bytes(content)


# From answers to labels.


def _mask_of(shown: ShownMask, size: tuple[int, int], name: str) -> BoolMask:
    try:
        mask = decode_mask(shown.mask)
    except ValueError as error:
        raise ValueError(f"A mask of {name} is damaged ({error})") from error
    if mask.shape != size:
        raise ValueError(f"A mask of {name} is {mask.shape}, its image {size} (height, width).")
    return mask


def _ends_with(phrase: str, name: str) -> bool:
    """Whether a phrase's last words are a class, or several of it: "two left cups" of "cup"."""
    name = name.casefold()
    return any(
        phrase == form or phrase.endswith(f" {form}") for form in (name, f"{name}s", f"{name}es")
    )


# Where files go, and images.


def _placed(labels: Labels) -> Iterator[tuple[LabelledImage, PurePosixPath]]:
    """A path of its own for each image, without suffix, inside the folder whatever its name is.

    No two are equal, in upper or lower case.
    """
    taken: set[str] = set()
    for image in labels.images:
        parts = re.split(r"[/\\]+", re.sub(r'[\x00-\x1f<>:"|?*]', "_", image.name))
        kept = [part for part in parts if part.strip(". ")] or ["image"]
        path = place = PurePosixPath(*kept[:-1], PurePosixPath(kept[-1]).stem)
        number = 1
        while str(place).casefold() in taken:
            number += 1
            place = path.with_name(f"{path.name}_{number}")
        taken.add(str(place).casefold())
        yield image, place


def _open(image: LabelledImage, find: Find) -> Path:
    """The file of an image, which must be of the size that was answered about."""
    path = find(image.name)
    size = image_size(path)
    if size != image.size:
        raise ValueError(
            f"{path} is not what was answered about: {size_mismatch(size, image.size)}"
        )
    return path


def _image_file(image: LabelledImage, find: Find) -> tuple[str, bytes]:
    """An image's suffix and content, byte by byte where every program shows it upright."""
    path = _open(image, find)
    if path.suffix.lower() in _PORTABLE and is_upright(path):
        return path.suffix.lower(), path.read_bytes()
    return ".png", encode_image(load_image(path), ".png")


def _json(values: Any) -> bytes:
    return (json.dumps(values) + "\n").encode("ascii")


# COCO.


def _coco_files(segmentation: Callable[[LabelledObject], Any]) -> Callable[[Labels, Find], Files]:
    return lambda labels, find: iter([("instances.json", _json(coco_values(labels, segmentation)))])


def coco_values(
    labels: Labels, segmentation: Callable[[LabelledObject], Any] = lambda one: one.rle
) -> dict[str, Any]:
    """Labels as COCO instances; numbers of images, annotations and categories count from 1."""
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(labels.images, start=1):
        for one in image.objects:
            mask = one.mask
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": one.category + 1,
                    "segmentation": segmentation(one),
                    "area": int(mask.sum()),
                    "bbox": list(mask_to_box(mask)),
                    "iscrowd": 0,
                    "score": one.score,
                    "attributes": {"phrase": one.label},
                }
            )
    return {
        "info": {"description": "Answers of pixellm", "version": "1.0"},
        "licenses": [],
        "images": [
            {"id": n, "file_name": one.name, "height": one.size[0], "width": one.size[1]}
            for n, one in enumerate(labels.images, start=1)
        ],
        "annotations": annotations,
        "categories": [
            {"id": n, "name": name, "supercategory": ""}
            for n, name in enumerate(labels.categories, start=1)
        ],
    }


def _coco_polygons(one: LabelledObject) -> list[list[float]]:
    return [polygon.ravel().tolist() for polygon in border_polygons(one.mask)]


# YOLO.


def _yolo_files(labels: Labels, find: Find) -> Files:
    """``images/train``, ``labels/train`` with a polygon a line, and ``data.yaml``."""
    for image, place in _placed(labels):
        suffix, content = _image_file(image, find)
        yield f"images/train/{place}{suffix}", content
        lines = "".join(_yolo_lines(one, image.size) for one in image.objects)
        yield f"labels/train/{place}.txt", lines.encode("ascii")
    names = "".join(f"\n  {n}: {json.dumps(name)}" for n, name in enumerate(labels.categories))
    header = f"path: .\ntrain: images/train\nval: images/train\nnames:{names or ' []'}\n"
    yield "data.yaml", header.encode("ascii")


def _yolo_lines(one: LabelledObject, size: tuple[int, int]) -> str:
    """An object as one polygon, its parts joined; a line for each part where they lie far apart."""
    mask = one.mask
    polygons = pixel_polygons(mask, joined=True)
    if mask_iou(fill_polygons(polygons, size), mask) < LEAST_IOU_ON_PIXELS:
        polygons = pixel_polygons(mask)
    shares = [((polygon + _QUARTER) / (size[1], size[0])).ravel() for polygon in polygons]
    values = [" ".join(f"{value:.6f}" for value in share) for share in shares]
    return "".join(f"{one.category} {line}\n" for line in values)


# LabelMe.


def _labelme_files(labels: Labels, find: Find) -> Files:
    """A JSON file beside each image; the parts of an object share a ``group_id``."""
    for image, place in _placed(labels):
        suffix, content = _image_file(image, find)
        yield f"{place}{suffix}", content
        yield (
            f"{place}.json",
            _json(labelme_values(image, labels.categories, f"{place.name}{suffix}")),
        )


def labelme_values(
    image: LabelledImage, categories: Sequence[str], image_path: str
) -> dict[str, Any]:
    """An image's objects as a LabelMe file."""
    shapes = [
        {
            "label": categories[one.category],
            "points": (polygon + 0.5).tolist(),
            "group_id": number if len(polygons) > 1 else None,
            "description": one.label,
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for number, one in enumerate(image.objects, start=1)
        for polygons in [pixel_polygons(one.mask)]
        for polygon in polygons
    ]
    return {
        "version": "5.0.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": image.size[0],
        "imageWidth": image.size[1],
    }


# Label Studio.


def _label_studio_files(labels: Labels, find: Find) -> Files:
    """``tasks.json`` with predictions, ``config.xml`` of the labelling, and the images."""
    tasks = []
    for image, place in _placed(labels):
        suffix, content = _image_file(image, find)
        yield f"images/{place}{suffix}", content
        scores = [one.score for one in image.objects]
        prediction = {
            "model_version": image.model,
            "score": float(np.mean(scores)) if scores else 0.0,
            "result": [brush_result(one, labels.categories, image.size) for one in image.objects],
        }
        where = f"/data/local-files/?d=images/{place}{suffix}"
        tasks.append({"data": {"image": where, "name": image.name}, "predictions": [prediction]})
    yield "tasks.json", _json(tasks)
    yield "config.xml", label_studio_config(labels.categories).encode("utf-8")


def label_studio_config(categories: Sequence[str]) -> str:
    """A labelling configuration with a brush for each class."""
    brushes = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(css_color(n))}/>\n"
        for n, name in enumerate(categories)
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{brushes}  </BrushLabels>\n</View>\n'
    )


def brush_result(
    one: LabelledObject, categories: Sequence[str], size: tuple[int, int]
) -> dict[str, Any]:
    """An object as a result of Label Studio, its mask painted with a brush."""
    return {
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "original_height": size[0],
        "original_width": size[1],
        "image_rotation": 0,
        "score": one.score,
        "value": {
            "format": "rle",
            "rle": brush_rle(one.mask),
            "brushlabels": [categories[one.category]],
        },
    }


def brush_rle(mask: BoolMask) -> list[int]:
    """A mask in Label Studio's run lengths: bytes of RGBA pixels, packed in runs.

    The format is that of thi.ng/rle-pack: 32 bits count the values, 5 and four times 4 bits tell
    how many bits a value and a run's length take, then each run has a 1, the index of the size of
    its length, its length less one, and its value.
    """
    values = np.ravel(mask)
    ends = np.append(np.flatnonzero(values[1:] != values[:-1]) + 1, values.size)
    bits = [f"{values.size * 4:032b}{8 - 1:05b}", *(f"{size - 1:04b}" for size in _RUN_BITS)]
    start = 0
    for end in ends.tolist():
        value = "1" * 8 if values[start] else "0" * 8
        length = (end - start) * 4
        while length:
            run = min(length, _LONGEST_RUN)
            index = next(n for n, size in enumerate(_RUN_BITS) if run <= 1 << size)
            bits.append(f"1{index:02b}{run - 1:0{_RUN_BITS[index]}b}{value}")
            length -= run
        start = end
    packed = "".join(bits)
    packed += "0" * (-len(packed) % 8)
    return list(int(packed, 2).to_bytes(len(packed) // 8, "big"))


# Images.


def _png_files(labels: Labels, find: Find) -> Files:
    """``objects/`` a mask each, ``index/`` numbers of objects, ``classes/`` colours of classes.

    Where masks overlap, ``index`` and ``classes`` show the smallest.
    """
    palette = [0, 0, 0]
    for number in range(min(len(labels.categories), 255)):
        palette += segment_color(number)
    for image, place in _placed(labels):
        masks = [one.mask for one in image.objects]
        for number, (one, mask) in enumerate(zip(image.objects, masks, strict=True), start=1):
            words = re.sub(r"[\W_]+", "-", labels.categories[one.category])[:40].strip("-")
            name = f"{number:02d}_{words or 'object'}.png"
            yield f"objects/{place}/{name}", _png(Image.fromarray(mask.astype("u1") * 255))
        yield f"index/{place}.png", _png(_paint(masks, range(1, len(masks) + 1), image.size))
        classes = _paint(masks, [one.category + 1 for one in image.objects], image.size)
        if classes.mode == "L":
            classes.putpalette(palette)
        yield f"classes/{place}.png", _png(classes)
    lines = ["0 background", *(f"{n} {name}" for n, name in enumerate(labels.categories, start=1))]
    yield "classes.txt", ("\n".join(lines) + "\n").encode("utf-8")


def _png(image: Image.Image) -> bytes:
    return encode_image(image, ".png")


def _paint(masks: Sequence[BoolMask], numbers: Iterable[int], size: tuple[int, int]) -> Image.Image:
    """Each mask filled with its number, the largest first; 0 elsewhere. Of 8 bits where they do."""
    canvas = np.zeros(size, dtype=np.uint16)
    for mask, number in sorted(zip(masks, numbers, strict=True), key=lambda one: -one[0].sum()):
        canvas[mask] = number
    return Image.fromarray(canvas.astype(np.uint8) if canvas.max() < 256 else canvas)


def _overlay_files(labels: Labels, find: Find) -> Files:
    """Each image with its masks drawn over it."""
    for image, place in _placed(labels):
        masks, words = [one.mask for one in image.objects], [one.label for one in image.objects]
        drawn = draw_overlay(load_image(_open(image, find)), masks, words)
        yield f"{place}.jpg", encode_image(drawn, ".jpg", quality=92)


FORMATS: Mapping[str, Callable[[Labels, Find], Files]] = {
    "coco": _coco_files(lambda one: one.rle),
    "coco-polygons": _coco_files(_coco_polygons),
    "yolo": _yolo_files,
    "labelme": _labelme_files,
    "label-studio": _label_studio_files,
    "png": _png_files,
    "overlay": _overlay_files,
}
"""What answers can be exported as."""
