"""Annotated photos as the generator sees them: COCO and LVIS files in, chosen photos out.

Reads annotations and decides which photos and which of their instances can carry a question. This
module knows nothing of questions, models or the ledger.

Frames: boxes are ``(x, y, width, height)`` in pixels of the photo, sizes ``(height, width)``.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pixellm.data.coco import file_of
from pixellm.image_files import load_image, probe_image
from pixellm.llm.client import ImageEncoder
from pixellm.masks import segmentation_to_rle
from pixellm.types import RLE

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
        data = json.loads(text)
        instances = tuple(Instance(**{**i, "box": tuple(i["box"])}) for i in data.pop("instances"))
        for key in ("size", "left_out", "captions"):
            data[key] = tuple(data[key])
        return cls(**data, instances=instances)

    def by_id(self) -> dict[int, Instance]:
        """The instances by the number that a model calls them by."""
        return {instance.id: instance for instance in self.instances}


@dataclass(frozen=True, slots=True)
class SelectSettings:
    """Which photos and instances are fit for a question.

    Attributes:
        min_instances: usable instances a photo needs, at least 2.
        max_instances: the largest so many are shown to the model.
        min_area: smallest share of the photo that an instance covers.
        min_side: shortest side of an instance's box in pixels.
        seed: breaks ties in the order of photos.
    """

    min_instances: int = 2
    max_instances: int = 34
    min_area: float = 0.0015
    min_side: int = 10
    seed: int = 0


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
    """A COCO or LVIS instances file.

    Args:
        annotations: the instances JSON.
        captions: a COCO captions JSON, or None.

    Attributes:
        categories: names of all categories, underscores as spaces.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is no COCO JSON.
    """

    def __init__(self, annotations: Path, captions: Path | None = None) -> None:
        data = _read_coco(annotations, ("images", "annotations", "categories"))
        self._names = {c["id"]: str(c["name"]).replace("_", " ") for c in data["categories"]}
        self._licenses = {entry.get("id"): entry for entry in data.get("licenses", ())}
        self._entries = data["images"]
        self._of_image = _group(data["annotations"])
        texts = _read_coco(captions, ("annotations",))["annotations"] if captions else ()
        self._captions = _group(texts)
        self.categories = tuple(self._names.values())

    def photos(
        self, images: Path, settings: SelectSettings, shard: Shard = WHOLE
    ) -> Iterator[tuple[Photo, str]]:
        """Every photo, with the reason why it can't be used ("" if it can).

        Args:
            images: the folder that ``file_name`` (or the tail of ``coco_url``) is below.
            settings: what makes an instance and a photo usable.
            shard: the share of the entries to look at.

        Yields:
            One (photo, reason) per entry of ``images`` in the shard, in the order of the file.
            Reasons: ``bad_entry``, ``missing_file``, ``unreadable``, ``size_differs``,
            ``too_few_instances``.

        Raises:
            FileNotFoundError: the folder is missing.
        """
        if not images.is_dir():
            raise FileNotFoundError(f"There is no folder of images at {images}; check --images.")
        seen: set[str] = set()
        for number, entry in enumerate(self._entries):
            image_id = entry.get("id") if isinstance(entry, dict) else None
            if not shard.holds(number if image_id is None else image_id):
                continue
            try:
                photo = self._photo(entry, settings)
                if photo.id in seen:
                    raise ValueError("Two entries have one id.")
            except (AttributeError, KeyError, TypeError, ValueError):
                yield Photo(f"entry {number}", "", (1, 1)), "bad_entry"
                continue
            seen.add(photo.id)
            yield photo, _why_unusable(photo, images, settings)

    def _photo(self, entry: Mapping[str, Any], settings: SelectSettings) -> Photo:
        size = (int(entry["height"]), int(entry["width"]))
        path = file_of(entry)
        if min(size) < 1:
            raise ValueError("A photo needs pixels.")
        rows = self._of_image.get(entry["id"], ())
        found, left_out = _usable_instances(rows, self._names, size, settings)
        captions = (str(c.get("caption", "")) for c in self._captions.get(entry["id"], ()))
        terms = self._licenses.get(entry.get("license"), {})
        source = entry.get("flickr_url") or entry.get("coco_url") or ""
        return Photo(
            id=str(entry["id"]),
            file_name=str(path),
            size=size,
            instances=found,
            left_out=left_out,
            captions=tuple(" ".join(text.split()) for text in captions),
            license={
                "name": str(terms.get("name", "")),
                "url": str(terms.get("url", "")),
                "source": str(source),
            },
        )


def order_by_balance(photos: Iterable[tuple[str, frozenset[str]]], seed: int) -> list[str]:
    """Order photos so that every prefix covers the categories as evenly as it can.

    Greedy: next comes the photo whose categories were seen least so far. Scores only fall, so a
    heap of stale scores, refreshed when popped, finds the same photo as a full scan.

    Args:
        photos: (id, categories) of each.
        seed: breaks ties.

    Returns:
        The ids, best first; the same for the same input and seed.
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
    """A photo, upright, or a part of it, as a JPEG ``data:`` URL.

    Args:
        path: the photo.
        max_side: longer sides are scaled down to this many pixels.
        box: (x, y, width, height) of the part, shown with a margin; None for the whole photo.

    Raises:
        ValueError: the photo is damaged.
        OSError: it is missing.
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
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def photo_encoder(images: Path) -> ImageEncoder:
    """What gives a client the photos below a folder as ``data:`` URLs."""
    folder = images.resolve()
    return lambda part: jpeg_data_url(folder / part.path, part.side, part.box)


def _read_coco(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no annotation file at {path}.") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}); is it complete?") from None
    missing = [key for key in keys if not isinstance(data, dict) or key not in data]
    if missing:
        raise ValueError(
            f"{path} has no {missing[0]!r}; an annotation file in COCO format is needed."
        )
    return data


def _group(rows: Iterable[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    groups: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row.get("image_id")].append(row)
    return groups


def _usable_instances(
    rows: Iterable[Mapping[str, Any]],
    names: Mapping[int, str],
    size: tuple[int, int],
    settings: SelectSettings,
) -> tuple[tuple[Instance, ...], tuple[str, ...]]:
    """The instances fit for a question, largest first, and the categories that lost some."""
    height, width = size
    found: list[tuple[float, int, str, tuple[float, float, float, float], RLE]] = []
    left_out: set[str] = set()
    for row in rows:
        category = names.get(row.get("category_id", -1), "")
        try:
            x, y, w, h = (float(value) for value in row["bbox"])
            area = float(row.get("area") or w * h)
            fit = (
                not row.get("iscrowd")
                and min(w, h) >= settings.min_side
                and area >= settings.min_area * height * width
                and _PLAIN_NAME.fullmatch(category) is not None
                and 0 <= x <= x + w <= width + 1
                and 0 <= y <= y + h <= height + 1
            )
            mask = segmentation_to_rle(row["segmentation"], size) if fit else None
        except (KeyError, TypeError, ValueError):
            mask = None
        if mask is None:
            left_out.add(category)
        else:
            found.append((area, int(row["category_id"]), category, (x, y, w, h), mask))
    found.sort(key=lambda item: (-item[0], item[3]))
    left_out.update(item[2] for item in found[settings.max_instances :])
    kept = enumerate(found[: settings.max_instances], start=1)
    instances = tuple(Instance(n, c, name, box, mask) for n, (_, c, name, box, mask) in kept)
    return instances, tuple(sorted(left_out))


def _why_unusable(photo: Photo, images: Path, settings: SelectSettings) -> str:
    if len(photo.instances) < settings.min_instances:
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
