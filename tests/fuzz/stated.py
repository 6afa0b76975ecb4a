"""What files of annotations state, read without the library, and whether a sample says the same.

Reading is as generous as a person who wants to understand a file: whatever could be meant counts.
So a mask, a name or a sentence that is not found here has been made up.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_dilation, binary_erosion

from pixellm.types import Sample, Target, Turn

SIDE = (48, 64)
"""(height, width) of every image."""

Mask = NDArray[np.bool_]
_ROWS, _COLUMNS = np.indices(SIDE)
_CENTRES = np.stack([_COLUMNS.ravel(), _ROWS.ravel()], 1) + 0.5


class AcceptedError(AssertionError):
    """What should have been refused was used."""


@dataclass(frozen=True)
class Shape:
    """A mask that a file gives an object of an image.

    Attributes:
        image: name of the image's file, without folders.
        names: of the object, any of which it may be called by.
        mask: its pixels.
        said: sentences that mean it; () where its name is all there is to ask for.
    """

    image: str
    names: tuple[str, ...]
    mask: Mask
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Statement:
    """What a data set's files hold: shapes, and texts that are asked word for word."""

    shapes: tuple[Shape, ...] = ()
    texts: tuple[str, ...] | None = None


def words_of(text: object) -> str:
    """A name or sentence by its words alone, without senses in brackets."""
    return " ".join(re.sub(r"\(.*?\)|[\W_]", " ", str(text)).casefold().split())


def compare(sample: Sample, statement: Statement) -> int:
    """How many masks of a sample its files have, too.

    Raises:
        AcceptedError: a mask, a name, a sentence or a denial that they do not state.
    """
    image = Path(str(sample.image)).name
    shapes = [shape for shape in statement.shapes if shape.image == image]
    for turn in sample.turns:
        texts = statement.texts
        if texts is not None and not any(turn.question in text for text in texts):
            raise AcceptedError(f"{turn.question!r} stands nowhere")
        _check_denial(turn, shapes)
        for target in turn.targets:
            _check_target(turn, target, [s for s in shapes if _is_called(s, target.name)])
    return sum(len(turn.targets) for turn in sample.turns)


def _check_denial(turn: Turn, shapes: Iterable[Shape]) -> None:
    asked = f" {words_of(turn.question)} "
    for shape in shapes:
        for name in map(words_of, shape.names):
            if turn.kind == "absent" and name and f" {name} " in asked:
                raise AcceptedError(f"{turn.question!r} is denied, and {shape.image} has {name!r}")


def _is_called(shape: Shape, name: str) -> bool:
    return bool(words_of(name)) and words_of(name) in map(words_of, shape.names)


def _check_target(turn: Turn, target: Target, shapes: list[Shape]) -> None:
    mask = coco_mask.decode(target.mask).astype(bool)
    own = [shape for shape in shapes if is_same(mask, shape.mask)]
    together = shapes and is_same(mask, np.any([shape.mask for shape in shapes], axis=0))
    if not own and not together:
        raise AcceptedError(f"{target.name!r} of {turn.question!r} has a mask that no file has")
    said = [words_of(text) for shape in own for text in shape.said]
    spoken = words_of(f"{turn.question} {turn.answer}")
    if said and not any(text and text in spoken for text in said):
        raise AcceptedError(f"{turn.question!r} asks for what means none of {said}")


def is_same(one: Mask, other: Mask) -> bool:
    """Whether two masks differ at most along their outline, where every way of drawing differs."""
    if one.shape != other.shape or not one.any():
        return False
    square = np.ones((3, 3), bool)
    inside, near = binary_erosion(other, square), binary_dilation(other, square, iterations=2)
    return bool((near | ~one).all() and (one | ~inside).all())


# Shapes as files write them.


def outline(points: Any) -> Mask | None:
    """The pixels whose centres lie inside of [[x, y], ...]; None where these are no points."""
    try:
        corners = np.array([[_number(v) for v in point] for point in points], float)
    except (TypeError, ValueError):
        return None
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
        return None
    return Outline(corners).contains_points(_CENTRES).reshape(SIDE)


def _number(value: Any) -> float:
    """A number, also as text."""
    if isinstance(value, bool) or not abs(number := float(value)) < 1e9:
        raise ValueError("no number")
    return number


def segmentation(value: Any) -> Mask | None:
    """The pixels of COCO's polygons, however they are nested, or of its run lengths."""
    if isinstance(value, dict):
        return _runs(value)
    found = [*map(outline, _polygons(value)), *map(_runs, _dicts(value))]
    masks = [mask for mask in found if mask is not None]
    return np.any(masks, axis=0) if masks else None


def _polygons(value: Any) -> Iterator[list[list[Any]]]:
    if not isinstance(value, list):
        return
    if len(value) >= 6 and not any(isinstance(one, list) for one in value):
        yield [value[at : at + 2] for at in range(0, len(value) - 1, 2)]
    else:
        yield from chain.from_iterable(map(_polygons, value))


def _runs(value: dict[str, Any]) -> Mask | None:
    counts = value.get("counts")
    try:
        counts = _unpack(counts) if isinstance(counts, str) else counts
        marks = np.arange(len(counts)) % 2 == 1
        if [_id(one) for one in value["size"]] == [*map(str, SIDE)] and sum(counts) == SIDE[
            0
        ] * SIDE[1]:
            return np.repeat(marks, counts).reshape(SIDE[::-1]).T
    except (IndexError, KeyError, TypeError, ValueError):
        pass
    return None


def _unpack(text: str) -> list[int]:
    """COCO's compressed run lengths: five bits a letter, from the third on as differences."""
    counts: list[int] = []
    letters = iter(text)
    for letter in letters:
        bits, number, place = ord(letter) - 48, 0, 0
        while True:
            number |= (bits & 31) << place
            place += 5
            if not bits & 32:
                break
            bits = ord(next(letters, "0")) - 48
        number -= (bits & 16 > 0) << place
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
    return counts


def json_of(path: Path) -> Any:
    """A file's JSON; one with a byte order mark too."""
    return json.loads(path.read_bytes().decode("utf-8-sig"))


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def _id(value: Any) -> str:
    """Ids are the same as a number, as 1.0 and as text."""
    text = str(value).strip()
    return text.removesuffix(".0") if isinstance(value, int | float | str) else repr(value)


def _file_name(value: Any) -> str:
    return str(value).replace("\\", "/").rpartition("/")[2]


# What each layout states.


def coco(path: Path) -> Statement:
    """A COCO file; an annotation may have its own expression."""
    return Statement(tuple(shape for _, shape in _annotations(json_of(path))))


def _annotations(values: Any) -> Iterator[tuple[str, Shape]]:
    """The id and the shape of every annotation, for each image of its id; "" where it has none."""
    for one in _dicts(values["annotations"]):
        mask = segmentation(one.get("segmentation"))
        if mask is None:
            continue
        said = (str(one["expression"]),) if "expression" in one else ()
        names = (*_found(values["categories"], "name", one.get("category_id")), *said)
        for image in _found(values["images"], "file_name", one.get("image_id")) or ("",):
            yield _id(one.get("id")), Shape(_file_name(image), names, mask, said)


def _found(entries: Any, key: str, number: Any) -> list[str]:
    """What entries of an id have under a key."""
    return [str(one.get(key)) for one in _dicts(entries) if _id(one.get("id")) == _id(number)]


class _PlainPickle(pickle._Unpickler):  # type: ignore[name-defined] # in Python: no large memos
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError("no plain values")


def refer(instances: Path, refs_file: Path) -> Statement:
    """Two files of the refer family: masks, and the sentences that mean them.

    Image and category stand in both files.
    """
    if refs_file.suffix == ".json":
        refs = json_of(refs_file)
    else:
        refs = _PlainPickle(io.BytesIO(refs_file.read_bytes()), encoding="latin1").load()
    values = json_of(instances)
    annotations = list(_annotations(values))
    shapes = []
    for ref, key in _means(refs):
        said = tuple(str(one.get("sent")) for one in _dicts(ref.get("sentences")))
        images = map(_file_name, _found(values["images"], "file_name", ref.get("image_id")))
        ids = ref.get("category_id")
        own = [_found(values["categories"], "name", one) for one in _listed(ids)]
        for shape in (one for number, one in annotations if number == key):
            names = (*shape.names, *chain(*own), *said)
            for image in {shape.image, *images}:
                shapes.append(Shape(image, names, shape.mask, said))
    return Statement(tuple(shapes))


def _means(refs: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Refs with the ids of the annotations that they mean."""
    for ref in _dicts(refs):
        for one in _listed(ref.get("ann_id")):
            yield ref, _id(one)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def labelme(path: Path) -> Statement:
    """A LabelMe file."""
    values = json_of(path)
    image, shapes = _file_name(values["imagePath"]), []
    for one in _dicts(values["shapes"]):
        mask = _labelme_mask(one.get("shape_type") or "polygon", one.get("points"))
        if mask is not None:
            shapes.append(Shape(image, (str(one.get("label")),), mask))
    return Statement(tuple(shapes))


def _labelme_mask(kind: Any, points: Any) -> Mask | None:
    if kind not in ("rectangle", "circle"):
        return outline(points)
    try:
        columns, rows = zip(*[[_number(v) for v in point] for point in points], strict=True)
    except (TypeError, ValueError):
        return None
    if kind == "circle":
        radius = np.hypot(columns[-1] - columns[0], rows[-1] - rows[0])
        return np.hypot(_COLUMNS + 0.5 - columns[0], _ROWS + 0.5 - rows[0]) <= radius
    left, top, right, bottom = min(columns), min(rows), max(columns), max(rows)
    return outline([[left, top], [right, top], [right, bottom], [left, bottom]])


def jsonl(path: Path) -> Statement:
    """Dialogues with their targets, one a line; a line that is no JSON states nothing."""
    shapes, texts = [], []
    for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines():
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            continue
        for turn in _dicts(row.get("turns") if isinstance(row, dict) else None):
            texts.append(str(turn.get("question")))
            for target in _dicts(turn.get("targets")):
                mask = segmentation(target.get("segmentation"))
                if mask is not None:
                    name = str(target.get("name"))
                    shapes.append(Shape(_file_name(row.get("image")), (name,), mask))
    return Statement(tuple(shapes), tuple(texts))


def llava(path: Path) -> Statement:
    """The texts of LLaVA's conversations."""
    conversations = (_dicts(one.get("conversations")) for one in _dicts(json_of(path)))
    return Statement(texts=tuple(str(one.get("value")) for one in chain(*conversations)))


def muse(path: Path) -> Statement:
    """The questions of a MUSE file, and the instances of its answers."""
    shapes, texts = [], []
    for entry in _dicts(json_of(path)):
        questions = entry.get("questions")
        texts += map(str, _listed(questions))
        for one in chain(*map(_dicts, _listed(entry.get("answers")))):
            mask = segmentation(one.get("segmentation"))
            if mask is not None:
                names = (str(one.get("category_name")), str(one.get("rephrased_name")))
                shapes.append(Shape(_file_name(entry.get("file_name")), names, mask))
    return Statement(tuple(shapes), tuple(texts))


def reasonseg(path: Path) -> Statement:
    """A file of ReasonSeg: one region, with and without what is to be ignored."""
    try:
        values = json_of(path)
    except UnicodeDecodeError:  # some of them are in Windows' letters
        values = json.loads(path.read_bytes().decode("cp1252"))
    masks: dict[bool, list[Mask]] = {True: [], False: []}
    for one in _dicts(values["shapes"]):
        mask = _labelme_mask(one.get("shape_type"), one.get("points"))
        if mask is not None:
            masks[one.get("label") == "target"].append(mask | _border(one["points"]))
    target = np.any([np.zeros(SIDE, bool), *masks[True]], axis=0)
    ignored = np.any([np.zeros(SIDE, bool), *masks[False]], axis=0)
    texts = tuple(map(str, _listed(values["text"])))
    shapes = (
        Shape("a.jpg", (text,), m, (text,)) for text in texts for m in (target, target & ~ignored)
    )
    return Statement(tuple(shapes))


def _border(points: list[Any]) -> Mask:
    """The lines of an outline, which belong to the shapes of ReasonSeg."""
    drawn = Image.new("1", SIDE[::-1])
    corners = [(_number(x), _number(y)) for x, y in points]
    ImageDraw.Draw(drawn).line([*corners, corners[0]], fill=1)
    return np.array(drawn, bool)


def labels(path: Path, names: dict[int, str], image: str) -> Statement:
    """A label image, whose numbers stand for names."""
    with Image.open(path) as stored:
        values = np.array(stored)
    return Statement(tuple(Shape(image, (name,), values == n) for n, name in names.items()))


def mapillary_names(path: Path) -> dict[int, str]:
    """The names of Mapillary's numbers."""
    return {n: str(one.get("readable")) for n, one in enumerate(_all(json_of(path)["labels"]))}


def _all(values: list[Any]) -> list[dict[str, Any]]:
    return [one if isinstance(one, dict) else {} for one in values]


def png_masks(folder: Path) -> Statement:
    """A table of sentences, and a PNG for each object."""
    text = (folder / "sentences.csv").read_bytes().decode("utf-8-sig")
    shapes = []
    for row in csv.DictReader(io.StringIO(text, newline="")):
        image = str(row.get("image"))
        for name in str(row.get("object")).split(";"):
            path = folder / "masks" / Path(image).stem / f"{name.strip()}.png"
            if path.is_file():
                with Image.open(path) as stored:
                    mask = np.array(stored) > 0
                said = (str(row.get("sentence")),)
                shapes.append(Shape(_file_name(image), (name,), mask, said))
    return Statement(tuple(shapes))


Reading = Callable[[], Statement]
"""Reads what the files of a data set state."""
