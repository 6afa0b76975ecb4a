"""The MUSE format, once: what an entry holds, reading, checking and writing, and the data set.

A JSON list with one entry an image: its instances, questions, and answers that refer to several of
them, as the authors of PixelLM (Ren et al., CVPR 2024) release it and as ``pixellm curate`` and
``pixellm data scenes`` write it. The latter adds two keys that are parallel to ``questions``:
``kinds``, and ``follow_ups`` with the second turn of a dialogue or null.

Frames: boxes are ``(x, y, width, height)`` in pixels of the image, sizes ``(height, width)``.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixellm.data.coco import file_of, photo_name, size_of
from pixellm.data.dataset import (
    BadRow,
    BadRowError,
    Dataset,
    Entry,
    Groups,
    Row,
    check_at_least_one,
)
from pixellm.data.json_stream import scan_list
from pixellm.data.json_values import size_fault, text_fault
from pixellm.data.lazy import Lazy
from pixellm.data.questions import load_phrases
from pixellm.masks import Size, areas_of, decode_mask, mask_to_box, segmentation_to_rle
from pixellm.scenes.phrasing import mark_phrases
from pixellm.types import RLE, SEG_MARK, Sample, Target, Turn, split_marks

KIND = "muse"
"""Label of the turns of files that have no labels of their own."""

SPLITS = ("train", "val", "test_less", "test_many")
"""The files of a set; test is parted by the number of targets, as the paper's is."""

_RELEASED_IMAGES = "refer_seg/images/mscoco/images"

IMAGE_FOLDERS = ("coco/train2014", f"{_RELEASED_IMAGES}/train2014", "coco/train2017")
"""Where an image without an address may lie, below the root; then next to the file."""

ADDRESSED_IMAGE_FOLDERS = ("coco", _RELEASED_IMAGES)
"""Where one with an address may lie, in folders such as val2017; the release has the second."""

_BOX_SLACK = 3.0

Fault = tuple[str, str]
"""Which check finds something wrong, and what, in a sentence."""


# What an entry holds.


class MuseRow(Row):
    """One question of a MUSE file that can be used.

    Attributes:
        photo: ``file_name``, or the tail of ``coco_url``.
        addressed: whether it is that tail.
        size: (height, width) of the image.
        question: the question.
        text: the answer with one ``{seg}`` per target; None where it has to be composed.
        kind: label of the turn.
        targets: the instances in the order of their marks, as in the file.
        entry: number of its entry.
        number: its number among those of the entry.
    """

    photo: str
    addressed: bool = False
    size: tuple[int, int]
    question: str
    text: str | None = None
    kind: str = KIND
    targets: tuple[dict[str, Any], ...]
    entry: int = 0
    number: int = 0

    @property
    def num_targets(self) -> int:
        """Instances that the answer refers to."""
        return len(self.targets)

    @property
    def image_number(self) -> int:
        """The entry."""
        return self.entry

    @property
    def answer(self) -> str:
        """The text, or the answer composed in the first form."""
        return self.answer_as(_forms()[0])

    @property
    def key(self) -> str:
        """Names the row by its content, so that a mark set on it survives a new run."""
        return row_key(self.photo, self.question, self.answer)

    def answer_as(self, form: str) -> str:
        """The text; composed where there is none: what it refers to, each with its mark."""
        if self.text is not None:
            return self.text
        marked = mark_phrases(list(map(_phrase, self.targets)))
        return form.format(marked=marked, Marked=marked[0].upper() + marked[1:])


def row_key(photo: str, question: str, answer: str) -> str:
    """The name of a row: 16 hexadecimal digits made from its content."""
    return hashlib.sha256("\0".join((photo, question, answer)).encode()).hexdigest()[:16]


def make_entry(
    file_name: str, size: tuple[int, int], instances: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """An entry without questions; ``questions``, ``answers`` and ``text_answers`` are parallel."""
    return {
        "file_name": file_name,
        "height": size[0],
        "width": size[1],
        "ann_list": list(instances),
        "questions": [],
        "answers": [],
        "text_answers": [],
    }


def make_instance(
    category_id: int, category: str, phrase: str, box: Sequence[float], mask: RLE
) -> dict[str, Any]:
    """An instance of an entry, or of an answer, where the phrase is what its mark follows."""
    return {
        "category_id": category_id,
        "category_name": category,
        "rephrased_name": phrase,
        "bbox": list(box),
        "segmentation": mask,
    }


# Reading.


def muse_files(path: Path) -> list[Path]:
    """The MUSE files at a path: the file itself, or ``muse*.json`` in a folder."""
    if path.is_file():
        return [path]
    files = sorted(f for f in path.glob("*.json") if f.name.lower().startswith("muse"))
    if not files:
        raise FileNotFoundError(f"There is no MUSE file (muse*.json) at {path}.")
    return files


def rows_of(entry: Any) -> Iterator[MuseRow]:
    """The rows of an entry that can be used; :func:`validate` names the others."""
    if not entry_fault(entry):
        for number in range(len(entry["questions"])):
            if not row_fault(entry, number):
                yield MuseRow.read(_row_values(entry, 0, number))


def _row_values(entry: Mapping[str, Any], index: int, number: int) -> dict[str, Any]:
    kinds = entry.get("kinds")
    return {
        "photo": photo_name(entry),
        "addressed": not entry.get("file_name"),
        "size": size_of(entry),
        "question": entry["questions"][number],
        "text": _text_of(entry, number),
        "kind": str(kinds[number]) if isinstance(kinds, list) and number < len(kinds) else KIND,
        "targets": entry["answers"][number],
        "entry": index,
        "number": number,
    }


def entry_fault(entry: Any) -> Fault | None:
    """What makes an entry useless; None where nothing does."""
    if not isinstance(entry, Mapping):
        return "entry", "It is no JSON object."
    if fault := size_fault(entry.get("height"), entry.get("width")):
        return "size", fault
    if not (entry.get("file_name") or entry.get("coco_url")):
        return "photo", "It has neither file_name nor coco_url."
    try:
        file_of(entry)
    except ValueError as error:
        return "photo", f"Its photo is no path inside a folder: {error}."
    texts = entry.get("text_answers") or None
    lists = [entry.get("questions"), entry.get("answers"), *([texts] if texts else [])]
    if not all(isinstance(one, list) for one in lists):
        return "questions", "Its questions and answers are no lists."
    lengths = [len(one) for one in lists]
    if len(set(lengths)) > 1:
        more = f" and {lengths[2]} texts." if texts else "."
        return "counts", f"It has {lengths[0]} questions, but {lengths[1]} answers{more}"
    return None


def row_fault(entry: Mapping[str, Any], number: int) -> Fault | None:
    """What makes a question of a sound entry useless; None where nothing does."""
    question, instances = entry["questions"][number], entry["answers"][number]
    text = _text_of(entry, number)
    if fault := text_fault(question, "question"):
        return "question", fault
    if not isinstance(instances, list) or not all(isinstance(one, Mapping) for one in instances):
        return "targets", "The answer is no list of instances."
    if not instances:
        return "few_targets", "The answer refers to nothing."
    if not all(one.get("segmentation") for one in instances):
        return "segmentation", "An instance has no segmentation."
    if text is None:
        faults = (text_fault(_given_name(one), "name of an instance") for one in instances)
        fault = next(filter(None, faults), "")
        return ("no_text", f"It has no text answer. {fault}") if fault else None
    if fault := text_fault(text, "text answer", marks=True):
        return "text", fault
    marks = len(split_marks(text)[1])
    if marks != len(instances):
        return "seg_count", f"{marks} {SEG_MARK} for {len(instances)} instances."
    return None


def _text_of(entry: Mapping[str, Any], number: int) -> Any:
    """The text answer of a question; None where it has to be composed."""
    texts = entry.get("text_answers")
    return (texts[number] or None) if texts else None


def _given_name(instance: Mapping[str, Any]) -> Any:
    """What stands for an instance's name; no text where the file has none."""
    return instance.get("rephrased_name") or instance.get("category_name") or ""


def _phrase(instance: Mapping[str, Any]) -> str:
    """What an answer calls an instance."""
    name = _given_name(instance)
    return " ".join(name.replace("_", " ").split()) if isinstance(name, str) else ""


def _forms() -> Sequence[str]:
    return load_phrases("reasoning")["composed"]["answers"]


# Checking.


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a file: where, which check, and in words."""

    where: str
    check: str
    says: str

    def __str__(self) -> str:
        return f"{self.where}: {self.check}: {self.says}"


def validate(path: Path, images: Path | None = None) -> Iterator[Problem]:
    """Every problem of the MUSE files at a path: what can't be used, and what MUSE asks for beside.

    Given a folder of ``images``, those that it lacks are among them; in the order of the files.
    ValueError where there is no entry at all.
    """
    files = muse_files(path)
    damaged = ""
    num_entries = 0
    for file in files:
        seen: Counter[str] = Counter()
        names: dict[Any, str] = {}
        number = -1
        try:
            for number, entry in enumerate(scan_list(file)):
                num_entries += 1
                where = f"{file.name}, entry {number}"
                yield from _check_entry(entry, where, images, seen, names)
        except (ValueError, RecursionError) as error:
            damaged = str(error)
            if num_entries or len(files) > 1:
                where = f"{file.name}, after entry {number}" if number >= 0 else file.name
                yield Problem(where, "file", damaged)
    if not num_entries:
        raise ValueError(damaged or f"{path} holds no entry; a MUSE file with questions is needed.")


def _check_entry(
    entry: Any, where: str, images: Path | None, seen: Counter[str], names: dict[Any, str]
) -> Iterator[Problem]:
    """The problems of one entry; notes its image and its categories' names."""
    if fault := entry_fault(entry):
        yield Problem(where, *fault)
        return
    name = photo_name(entry)
    where = f"{where} ({name})"
    seen[name] += 1
    if seen[name] > 1:
        yield Problem(where, "repeated_photo", "An earlier entry has the same photo.")
    if images is not None and not (images / name).is_file():
        yield Problem(where, "missing_photo", f"There is no {name} below the folder of images.")
    if not isinstance(entry.get("ann_list"), list) or not entry["ann_list"]:
        yield Problem(where, "ann_list", "The list of instances is missing or empty.")
    if not entry["questions"]:
        yield Problem(where, "questions", "It has no question.")
    questions = Counter(q for q in entry["questions"] if isinstance(q, str))
    for repeated, times in questions.items():
        if times > 1:
            yield Problem(where, "repeated_question", f"{repeated!r} is asked {times} times.")
    for number, targets in enumerate(entry["answers"]):
        asked = f"{where}, question {number}"
        if fault := row_fault(entry, number):
            yield Problem(asked, *fault)
        elif "{seg" in entry["questions"][number].casefold():
            yield Problem(asked, "question", "It holds a mark; marks belong to answers.")
        if isinstance(targets, list) and all(isinstance(one, Mapping) for one in targets):
            yield from _check_targets(targets, asked, size_of(entry), names)


def _check_targets(
    targets: list[Mapping[str, Any]], where: str, size: Size, names: dict[Any, str]
) -> Iterator[Problem]:
    if len(targets) == 1:
        yield Problem(where, "few_targets", "1 target; MUSE asks for at least 2.")
    masks = Counter(json.dumps(target.get("segmentation"), sort_keys=True) for target in targets)
    if any(times > 1 for times in masks.values()):
        yield Problem(where, "repeated_target", "Two targets have the same mask.")
    for number, target in enumerate(targets):
        for fault in (_category_fault(target, names), _mask_fault(target, size)):
            if fault:
                yield Problem(f"{where}, target {number}", *fault)


def _category_fault(target: Mapping[str, Any], names: dict[Any, str]) -> Fault | None:
    number, name = target.get("category_id"), target.get("category_name")
    if number is None or not isinstance(name, str) or not name:
        return "category", "category_id or category_name is missing."
    known = names.setdefault(str(number), name)
    if known != name:
        return "category", f"Category {number} is {name!r} here and {known!r} before."
    return None


def _mask_fault(target: Mapping[str, Any], size: Size) -> Fault | None:
    box = target.get("bbox")
    try:
        x, y, width, height = (float(value) for value in box or ())
    except (TypeError, ValueError):
        return "bbox", f"It is {box!r} instead of [x, y, width, height]."
    inside = min(x, y) >= -_BOX_SLACK
    inside &= x + width <= size[1] + _BOX_SLACK and y + height <= size[0] + _BOX_SLACK
    if not (inside and min(width, height) > 0):
        return "bbox", f"{box} does not lie in a photo of {size[1]} x {size[0]} pixels."
    try:
        mask = decode_mask(segmentation_to_rle(target.get("segmentation") or [], size))
    except ValueError as error:
        return "segmentation", str(error)
    tight = mask_to_box(mask)
    if not mask.any():
        return "segmentation", "The mask is empty."
    far = np.abs(np.subtract(tight, (x, y, width, height))).max()
    if far > max(_BOX_SLACK, 0.1 * max(size)):
        return "bbox_mask", f"The box {box} is not that of the mask, {list(tight)}."
    return None


# Writing.


class MuseWriter:
    """Writes one split as shards of JSON, and of Parquet with a row a question; holds one shard.

    The folder gets ``muse_SPLIT.json`` and ``parquet/muse_SPLIT.parquet``; several shards, of
    ``shard_images`` entries each, have numbers.
    """

    def __init__(self, folder: Path, split: str, shard_images: int) -> None:
        self._folder, self._split, self._most = folder, split, shard_images
        self._entries: list[Mapping[str, Any]] = []
        self._flat: list[Mapping[str, Any]] = []
        self._shards: list[Path] = []
        self.counts = {"photos": 0, "questions": 0, "targets": 0}

    def add(self, entry: Mapping[str, Any], flat: Sequence[Mapping[str, Any]]) -> None:
        """Add an entry, and the same questions as rows of the Parquet file."""
        self._entries.append(entry)
        self._flat += flat
        self.counts["photos"] += 1
        self.counts["questions"] += len(entry["questions"])
        self.counts["targets"] += sum(map(len, entry["answers"]))
        if len(self._entries) >= self._most:
            self._flush()

    def close(self) -> None:
        """Write what is left and give the files their names; a single file has no number."""
        if self._entries:
            self._flush()
        total = len(self._shards)
        for number, shard in enumerate(self._shards):
            end = f"-{number:05d}-of-{total:05d}" if total > 1 else ""
            name = f"muse_{self._split}{end}"
            shard.rename(self._folder / f"{name}.json")
            shard.with_suffix(".parquet").rename(self._folder / "parquet" / f"{name}.parquet")

    def _flush(self) -> None:
        import pyarrow
        from pyarrow import parquet

        shard = self._folder / f"{self._split}.{len(self._shards)}.json"
        with shard.open("w", encoding="utf-8") as file:
            json.dump(self._entries, file, ensure_ascii=False)
        parquet.write_table(pyarrow.Table.from_pylist(self._flat), shard.with_suffix(".parquet"))
        self._shards.append(shard)
        self._entries, self._flat = [], []


# The data set.


class Muse(Dataset[Sequence[MuseRow]]):
    """MUSE, or any file of its format. An item is a few questions about an image.

    Args:
        root, split, seed: see :class:`~pixellm.data.dataset.Dataset`.
        file: a file of this format to read in place of the split's own.
        images: folder of the images, where they do not lie as usual.
        per_item: questions about an image in one item, at most.
    """

    name = "muse"
    title = "MUSE: questions about a photo that take several objects to answer"
    splits = SPLITS
    obtain = (
        "github.com/MaverickRen/PixelLM says where to download MUSE, and the photos are train2014, "
        "train2017 and val2017 of cocodataset.org"
    )
    row_type = MuseRow

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        file: Path | str | None = None,
        images: Path | str | None = None,
        per_item: int = 3,
    ) -> None:
        super().__init__(root, split, seed)
        check_at_least_one(self.name, per_item=per_item)
        self.path = Path(file) if file else self.files(self.root, split)[0]
        self.images = Path(images) if images else None
        self.require(self.path, *([self.images] if self.images else []))
        nothing = f"{self.path} has no usable question; a MUSE file is needed."
        self.open_rows(self.path, nothing=nothing)
        draw = np.random.default_rng(seed)
        # The questions about an image in any order, a few at a time.
        changes = np.flatnonzero(np.diff(self.table.numbers("image"))) + 1
        groups = [
            part
            for members in np.split(np.arange(len(self.table)), changes)
            for part in np.array_split(draw.permutation(members), -(-len(members) // per_item))
        ]
        self._num_images = len(changes) + 1
        self._groups = Groups.of(groups)
        self.num_items = len(self._groups)

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The file, which may go by either of two names."""
        names = (f"muse/muse_{split}.json", f"multi_reason_seg/MultiReasonSeg/MUSE_{split}.json")
        paths = [root / name for name in names]
        return (next((path for path in paths if path.is_file()), paths[0]),)

    def rows(self) -> Iterator[Entry | BadRow]:
        """The questions of all entries."""
        for index, entry in enumerate(scan_list(self.path)):
            if fault := entry_fault(entry):
                yield BadRow(self.path, f"entry {index}", fault[1])
                continue
            for number in range(len(entry["questions"])):
                row_name = f"entry {index}, question {number}"
                if fault := row_fault(entry, number):
                    yield BadRow(self.path, row_name, fault[1])
                else:
                    yield Entry(self.path, row_name, _row_values(entry, index, number))

    def row(self, item: int) -> Sequence[MuseRow]:
        """Some questions about an image."""
        return [self.stored_row(int(member)) for member in self._groups[item]]

    def where(self, item: int) -> tuple[Path, str]:
        """The file, and the first question's row in it."""
        return self.place_of_row(int(self._groups[item][0]))

    def compose(self, row: Sequence[MuseRow], rng: random.Random) -> tuple[Sample, ...]:
        """Each question is a dialogue of its own."""
        return tuple(self._sample(one, rng.choice(_forms())) for one in row)

    def evaluation_samples(self) -> Lazy[Sample]:
        """Every usable question."""

        def build(number: int) -> Sample:
            return self._sample(self.stored_row(number), _forms()[0])

        return Lazy(range(len(self.table)), build)

    def counts(self) -> dict[str, int]:
        """Images, questions, targets and items of an epoch."""
        return {**super().counts(), "images": self._num_images, "items": len(self)}

    def _sample(self, row: MuseRow, form: str) -> Sample:
        """The dialogue of a question, its answer composed by a template where it has none."""
        targets = []
        for number, one in enumerate(row.targets):
            name = one.get("category_name")
            called = name.replace("_", " ") if isinstance(name, str) and name else _phrase(one)
            try:
                mask = segmentation_to_rle(one["segmentation"], row.size)
                if not areas_of([mask])[0]:
                    raise ValueError("Its mask covers no pixel.")
                targets.append(Target(called, mask))
            except (TypeError, ValueError) as error:
                where = f"entry {row.entry}, question {row.number}, target {number}"
                raise BadRowError(BadRow(self.path, where, str(error))) from None
        answer = row.answer_as(form)
        turn = Turn(row.question.strip(), answer, tuple(targets), row.kind, takes_suffix=True)
        name = f"{self.name}-{self.split}-{row.entry}-{row.number}"
        return Sample(self._image(row), row.size, (turn,), name)

    def _image(self, row: MuseRow) -> Path:
        """Where the image of a question lies; where it should, if it is nowhere."""
        if self.images:
            return self.images / row.photo
        known = ADDRESSED_IMAGE_FOLDERS if row.addressed else IMAGE_FOLDERS
        folders = [*(self.root / folder for folder in known), self.path.parent]
        paths = [folder / row.photo for folder in folders]
        return next((path for path in paths if path.is_file()), paths[0])
