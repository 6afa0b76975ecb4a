"""Annotated photos as the generator sees them: COCO and LVIS files in, chosen photos out.

Reads annotations and decides which photos and which of their instances can carry a question. This
module knows nothing of questions, models or the ledger.

Frames: boxes are ``(x, y, width, height)`` in pixels of the photo, sizes ``(height, width)``.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pixellm.data.coco import CocoFile, category_name, file_of, read_captions, size_of
from pixellm.data.json_values import identity
from pixellm.data.muse import make_instance
from pixellm.image_files import load_image, probe_image
from pixellm.llm.client import ImageEncoder
from pixellm.masks import segmentation_to_rle
from pixellm.report.gallery import data_url
from pixellm.types import RLE

MIN_INSTANCES, MAX_INSTANCES = 2, 34
"""Usable instances that a photo needs, and the largest so many that a model is shown."""

MIN_AREA, MIN_SIDE = 0.0015, 10
"""Of a usable instance: its share of the photo, and the shorter side of its box in pixels."""

# Category names go into prompts and sentences, so only plain short names pass.
_PLAIN_NAME = re.compile(r"[^\W_][\w '()/,&.:-]{0,59}")


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotated object.

    Attributes:
        id: its number in the photo, from 1; what a model calls it by.
        category_id: as in the annotation file.
        category: the category's name, underscores as spaces.
        box: (x, y, width, height) in pixels.
        mask: over the whole photo.
    """

    id: int
    category_id: int
    category: str
    box: tuple[float, float, float, float]
    mask: RLE

    def entry(self, phrase: str) -> dict[str, Any]:
        """The object in a MUSE file, called by a phrase."""
        return make_instance(self.category_id, self.category, phrase, self.box, self.mask)


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo with what is known of it.

    Attributes:
        id: the image id of the annotation file, as text.
        file_name: path below the folder of images, with forward slashes.
        size: (height, width) in pixels.
        instances: the usable ones, largest first.
        left_out: categories that have further instances in the photo, unusable ones (crowds,
            tiny or damaged). A sentence about "all" or "the only" of these would be a guess.
        captions: sentences about the whole photo, or none.
        license: ``name`` and ``url`` of the photo's licence and its ``source``; all may be "".
    """

    id: str
    file_name: str
    size: tuple[int, int]
    instances: tuple[Instance, ...] = ()
    left_out: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    license: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The photo as one line of JSON; :meth:`from_json` is the way back."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Photo:
        """Read what :meth:`to_json` wrote."""
        return _PHOTO.validate_json(text)

    def by_id(self) -> dict[int, Instance]:
        """The instances by the number that a model calls them by."""
        return {instance.id: instance for instance in self.instances}


_PHOTO = TypeAdapter(Photo)


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several equal shares of a data set, for runs on several machines.

    Attributes:
        number: which one, from 1.
        count: of how many.

    Raises:
        ValueError: there is no such share.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"There is no shard {self}; they are counted from 1/{self.count} on.")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, image_id: object) -> bool:
        """Whether an image is in the share; which one depends on its id alone."""
        return int(_stable_hash(0, "shard", image_id), 16) % self.count == self.number - 1


WHOLE = Shard()


class AnnotationFile:
    """A COCO or LVIS instances file, and a COCO captions file where there is one.

    ``categories`` are the names of all categories, underscores as spaces. FileNotFoundError where a
    file is missing, ValueError where it is no COCO JSON.
    """

    def __init__(self, annotations: Path, captions: Path | None = None) -> None:
        self._coco = CocoFile(annotations)
        self._names = {key: category_name(one) for key, one in self._coco.categories.items()}
        self._licenses = {identity(one.get("id")): one for one in self._coco.licenses}
        self._captions = read_captions(captions) if captions else {}
        self.categories = tuple(self._names.values())

    def photos(self, images: Path, shard: Shard = WHOLE) -> Iterator[tuple[Photo, str]]:
        """Every photo of a shard in the file's order, with the reason why it can't be used, or "".

        Reasons are ``bad_entry``, ``missing_file``, ``unreadable``, ``size_differs`` and
        ``too_few_instances``; ``images`` is the folder that names are below.
        """
        if not images.is_dir():
            raise FileNotFoundError(f"There is no folder of images at {images}; check --images.")
        items = {number: item for item, number in enumerate(self._coco.image_indices.tolist())}
        for number in range(self._coco.num_images):
            entry = self._coco.image(items[number]) if number in items else {"id": number}
            if not shard.holds(entry["id"]):
                continue
            if number in items:
                photo = self._photo(items[number], entry)
                yield photo, _why_unusable(photo, images)
            else:
                yield Photo(f"entry {number}", "", (1, 1)), "bad_entry"

    def _photo(self, item: int, entry: Mapping[str, Any]) -> Photo:
        found, left_out = self._usable_instances(item, size_of(entry))
        captions = self._captions.get(identity(entry["id"]), ())
        terms = self._licenses.get(identity(entry.get("license")), {})
        source = entry.get("flickr_url") or entry.get("coco_url") or ""
        return Photo(
            id=str(entry["id"]),
            file_name=str(file_of(entry)),
            size=size_of(entry),
            instances=found,
            left_out=left_out,
            captions=tuple(" ".join(text.split()) for text in captions),
            license={
                "name": str(terms.get("name") or ""),
                "url": str(terms.get("url") or ""),
                "source": str(source),
            },
        )

    def _usable_instances(
        self, item: int, size: tuple[int, int]
    ) -> tuple[tuple[Instance, ...], tuple[str, ...]]:
        """The instances fit for a question, largest first, and the categories that lost some."""
        height, width = size
        found: list[tuple[float, int, str, tuple[float, float, float, float], RLE]] = []
        left_out: set[str] = set()
        for row in self._coco.rows_of(item).tolist():
            annotation, number = self._coco.annotation(row), int(self._coco.category_of[row])
            category = self._names[number]
            try:
                x, y, w, h = (float(value) for value in annotation["bbox"])
                area = float(annotation.get("area") or w * h)
                fit = (
                    not self._coco.is_crowd[row]
                    and min(w, h) >= MIN_SIDE
                    and area >= MIN_AREA * height * width
                    and _PLAIN_NAME.fullmatch(category) is not None
                    and 0 <= x <= x + w <= width + 1
                    and 0 <= y <= y + h <= height + 1
                )
                mask = segmentation_to_rle(annotation["segmentation"], size) if fit else None
            except (KeyError, TypeError, ValueError):
                mask = None
            if mask is None:
                left_out.add(category)
            else:
                found.append((area, number, category, (x, y, w, h), mask))
        found.sort(key=lambda one: (-one[0], one[3]))
        left_out.update(one[2] for one in found[MAX_INSTANCES:])
        kept = enumerate(found[:MAX_INSTANCES], start=1)
        instances = tuple(Instance(n, c, name, box, mask) for n, (_, c, name, box, mask) in kept)
        return instances, tuple(sorted(left_out))


def order_by_balance(photos: Iterable[tuple[str, frozenset[str]]], seed: int) -> list[str]:
    """Order photos, (id, categories) of each, so that every prefix covers the categories evenly.

    Greedy: next comes the photo whose categories were seen least so far; the seed breaks ties.
    Scores only fall, so a heap of stale scores, refreshed when popped, finds the same photo as a
    full scan.
    """
    categories = dict(photos)
    seen: Counter[str] = Counter()

    def rank(photo_id: str) -> float:
        return -math.fsum(1 / (1 + seen[name]) ** 2 for name in categories[photo_id])

    heap = [(rank(photo_id), _stable_hash(seed, photo_id), photo_id) for photo_id in categories]
    heapq.heapify(heap)
    order = []
    while heap:
        stale, tie, photo_id = heap[0]
        current = rank(photo_id)
        if current > stale:
            heapq.heapreplace(heap, (current, tie, photo_id))
            continue
        heapq.heappop(heap)
        order.append(photo_id)
        seen.update(categories[photo_id])
    return order


def seeded_fraction(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    return int(_stable_hash(seed, *parts)[:13], 16) / 16**13


def jpeg_data_url(path: Path, max_side: int, box: Sequence[float] | None = None) -> str:
    """A photo, upright, as a JPEG ``data:`` URL; sides over ``max_side`` pixels are scaled down.

    Of a box, (x, y, width, height) in pixels, only that part with a margin. ValueError for a
    damaged photo, OSError for a missing one.
    """
    image = load_image(path)
    if box is not None:
        x, y, width, height = box
        margin = 0.15 * max(width, height)
        left, top = max(0, int(x - margin)), max(0, int(y - margin))
        right = min(image.width, math.ceil(x + width + margin))
        bottom = min(image.height, math.ceil(y + height + margin))
        image = image.crop((left, top, right, bottom))
    image.thumbnail((max_side, max_side))
    return data_url(image, quality=88)


def photo_encoder(images: Path) -> ImageEncoder:
    """What gives a client the photos below a folder as ``data:`` URLs."""
    folder = images.resolve()
    return lambda part: jpeg_data_url(folder / part.path, part.side, part.box)


def _why_unusable(photo: Photo, images: Path) -> str:
    if len(photo.instances) < MIN_INSTANCES:
        return "too_few_instances"
    path = images / photo.file_name
    if not path.is_file():
        return "missing_file"
    try:
        size = probe_image(path)
    except (OSError, ValueError):
        return "unreadable"
    return "" if size == tuple(photo.size) else "size_differs"


def _stable_hash(seed: int, *parts: object) -> str:
    return hashlib.sha256(json.dumps([seed, *map(str, parts)]).encode()).hexdigest()
