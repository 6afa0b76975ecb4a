"""MUSE: questions about a photo that take several objects to answer.

A JSON list with one entry a photo, as the authors of PixelLM (Ren et al., CVPR 2024) release it
and as ``pixellm curate`` and ``pixellm data scenes`` write it. Knows that format and where its
photos usually lie.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixellm.data.coco import file_of, photo_name, size_of
from pixellm.data.dataset import (
    BadRow,
    Dataset,
    LazySamples,
    UnusableDataError,
)
from pixellm.data.json_values import size_fault, text_fault
from pixellm.data.questions import load_phrases
from pixellm.data.readers.json_index import SpanList, scan_json
from pixellm.masks import segmentation_to_rle
from pixellm.scenes.phrasing import join_phrases
from pixellm.types import SEG_MARK, Sample, Target, Turn, split_marks

KIND = "muse"
"""Label of the turns of files that have no labels of their own."""

_RELEASED_PHOTOS = "refer_seg/images/mscoco/images"

PHOTO_FOLDERS = ("coco/train2014", f"{_RELEASED_PHOTOS}/train2014", "coco/train2017")
"""Where a photo without an address may lie, below the root; then next to the file."""

ADDRESSED_PHOTO_FOLDERS = ("coco", _RELEASED_PHOTOS)
"""Where a photo with an address may lie, in folders such as val2017; the release has the second."""


class Muse(Dataset[int]):
    """MUSE, or any file of its format.

    Args:
        root: folder that holds all data sets.
        split: one of :attr:`splits`.
        seed: another seed gives other groups, another order and wording.
        file: a file of this format to read in place of the split's own.
        images: folder of the photos, where they do not lie as usual.
        per_item: questions about a photo in one item, at most.

    Raises:
        ValueError: an unknown split, or a file that is damaged or has no usable row.
        FileNotFoundError: a file is missing; says where to get it.
    """

    name = "muse"
    title = "MUSE: questions about a photo that take several objects to answer"
    splits = ("train", "val", "test_less", "test_many")
    obtain = (
        "github.com/MaverickRen/PixelLM says where to download MUSE, and the photos are train2014, "
        "train2017 and val2017 of cocodataset.org"
    )

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
        if per_item < 1:
            raise ValueError(f"An item of {self.name} holds at least 1 question, not {per_item}.")
        self.path = Path(file) if file else self.files(self.root, split)[0]
        self.images = Path(images) if images else None
        self.require(self.path, *([self.images] if self.images else []))
        self._read()
        self._group(per_item)

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """See :meth:`Dataset.files`; the file may go by either of two names."""
        names = (f"muse/muse_{split}.json", f"multi_reason_seg/MultiReasonSeg/MUSE_{split}.json")
        paths = [root / name for name in names]
        return (next((path for path in paths if path.is_file()), paths[0]),)

    def _read(self) -> None:
        """Note where each entry lies and which of its questions are usable."""
        spans, rows, bad = SpanList(), array("q"), list[BadRow]()
        self.num_targets = 0
        for place, (_, start, end, entry) in enumerate(scan_json(self.path)):
            spans.append(start, end)
            reason = _entry_fault(entry)
            if reason:
                bad.append(BadRow(self.path, f"entry {place}", reason))
                continue
            for number in range(len(entry["questions"])):
                reason = _row_fault(entry, number)
                if reason:
                    bad.append(BadRow(self.path, _row_name(place, number), reason))
                else:
                    rows.extend((place, number))
                    self.num_targets += len(entry["answers"][number])
        self.entries = spans.records(self.path)
        self.asked = np.array(rows, dtype=np.int64).reshape(-1, 2)
        self.bad_rows = tuple(bad)
        if not len(self.asked):
            raise UnusableDataError(
                f"{self.path} has no usable question; a MUSE file is needed.", bad
            )

    def _group(self, per_item: int) -> None:
        """Rows item by item: the questions about a photo in any order, a few at a time."""
        draw = np.random.default_rng(self.seed)
        photos = np.flatnonzero(np.diff(self.asked[:, 0])) + 1
        groups = [
            part
            for members in np.split(np.arange(len(self.asked)), photos)
            for part in np.array_split(draw.permutation(members), -(-len(members) // per_item))
        ]
        self.num_photos = len(photos) + 1
        self._members = np.concatenate(groups)
        self._ends = np.cumsum([0, *(len(group) for group in groups)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def compose(self, item: int, rng: random.Random) -> tuple[Sample, ...]:
        """See :meth:`Dataset.compose`; each question is a dialogue of its own."""
        members = self._members[self._ends[item] : self._ends[item + 1]]
        forms = load_phrases("reasoning")["composed"]["answers"]
        return tuple(self._sample(int(row), rng.choice(forms)) for row in members)

    def where(self, item: int) -> tuple[Path, str]:
        """See :meth:`Dataset.where`."""
        place, number = self.asked[self._members[self._ends[item]]].tolist()
        return self.path, _row_name(place, number)

    def evaluation_samples(self) -> LazySamples:
        """See :meth:`Dataset.evaluation_samples`: every usable question."""
        return LazySamples(len(self.asked), self._evaluation_sample)

    def _evaluation_sample(self, row: int) -> Sample:
        return self._sample(row, load_phrases("reasoning")["composed"]["answers"][0])

    def counts(self) -> dict[str, int]:
        """Photos, questions, targets and items of an epoch."""
        return {
            "images": self.num_photos,
            "questions": len(self.asked),
            "targets": self.num_targets,
            "items": len(self),
        }

    def check(self) -> Iterator[BadRow]:
        """See :meth:`Dataset.check`; every question on its own."""
        yield from self.bad_rows
        seen: set[Path] = set()
        for row, (place, number) in enumerate(self.asked.tolist()):
            try:
                sample = self._evaluation_sample(row)
            except ValueError as error:
                yield BadRow(self.path, _row_name(place, number), str(error))
                continue
            assert isinstance(sample.image, Path)
            if sample.image not in seen:
                seen.add(sample.image)
                yield from self.check_image(sample.image, sample.size)

    def _sample(self, row: int, form: str) -> Sample:
        """The dialogue of a question.

        Args:
            row: number among the usable ones.
            form: template of the answer, for a row that has none.
        """
        place, number = self.asked[row].tolist()
        entry = self.entries[place]
        size = size_of(entry)
        where = f"{self.path}, {_row_name(place, number)}"
        instances = entry["answers"][number]
        targets = tuple(
            Target(_category(one), _mask(one, size, f"{where}, target {at}"))
            for at, one in enumerate(instances)
        )
        text = _text_of(entry, number)
        answer = text if text is not None else compose_answer(instances, form)
        kinds = entry.get("kinds")
        kind = str(kinds[number]) if isinstance(kinds, list) and number < len(kinds) else KIND
        turn = Turn(entry["questions"][number].strip(), answer, targets, kind, takes_suffix=True)
        return Sample(
            self._photo(entry), size, (turn,), f"{self.name}-{self.split}-{place}-{number}"
        )

    def _photo(self, entry: Mapping[str, Any]) -> Path:
        """Where the photo of an entry lies; where it should, if it is nowhere."""
        name = photo_name(entry)
        if self.images:
            return self.images / name
        known = PHOTO_FOLDERS if entry.get("file_name") else ADDRESSED_PHOTO_FOLDERS
        folders = [*(self.root / folder for folder in known), self.path.parent]
        paths = [folder / name for folder in folders]
        return next((path for path in paths if path.is_file()), paths[0])


def compose_answer(instances: Sequence[Mapping[str, Any]], form: str) -> str:
    """The answer of a row without text: what it refers to, each with its mark.

    Args:
        instances: with ``rephrased_name`` or ``category_name``.
        form: template with ``{marked}`` or ``{Marked}``.
    """
    marked = join_phrases([f"{_name(one)} {SEG_MARK}" for one in instances])
    return form.format(marked=marked, Marked=marked[0].upper() + marked[1:])


def _entry_fault(entry: Any) -> str:
    """What makes an entry useless; "" where nothing does."""
    if not isinstance(entry, Mapping):
        return "It is no JSON object."
    fault = size_fault(entry.get("height"), entry.get("width"))
    if fault:
        return fault
    if not (entry.get("file_name") or entry.get("coco_url")):
        return "It has neither file_name nor coco_url."
    try:
        file_of(entry)
    except ValueError as error:
        return f"Its photo is no path inside a folder: {error}."
    texts = entry.get("text_answers") or None
    lists = [entry.get("questions"), entry.get("answers"), *([texts] if texts else [])]
    if not all(isinstance(one, list) for one in lists):
        return "Its questions and answers are no lists."
    lengths = [len(one) for one in lists]
    if len(set(lengths)) > 1:
        return f"It has {lengths[0]} questions, but {lengths[1]} answers" + (
            f" and {lengths[2]} texts." if texts else "."
        )
    return ""


def _row_fault(entry: Mapping[str, Any], number: int) -> str:
    """What makes a question useless; "" where nothing does."""
    question, instances = entry["questions"][number], entry["answers"][number]
    text = _text_of(entry, number)
    if fault := text_fault(question, "question"):
        return fault
    if not isinstance(instances, list) or not all(isinstance(one, Mapping) for one in instances):
        return "The answer is no list of instances."
    if not instances:
        return "The answer refers to nothing."
    if not all(one.get("segmentation") for one in instances):
        return "An instance has no segmentation."
    names = [_given_name(one) for one in instances]
    if text is None:
        faults = [text_fault(name, "name of an instance") for name in names]
        fault = next(filter(None, faults), "")
        return f"It has no text answer. {fault}" if fault else ""
    if fault := text_fault(text, "text answer", marks=True):
        return fault
    marks = len(split_marks(text)[1])
    return "" if marks == len(instances) else f"{marks} {SEG_MARK} for {len(instances)} instances."


def _text_of(entry: Mapping[str, Any], number: int) -> Any:
    """The text answer of a question; None where it has to be composed."""
    texts = entry.get("text_answers")
    return (texts[number] or None) if texts else None


def _mask(instance: Mapping[str, Any], size: tuple[int, int], where: str) -> Any:
    try:
        return segmentation_to_rle(instance["segmentation"], size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _category(instance: Mapping[str, Any]) -> str:
    name = instance.get("category_name")
    return name.replace("_", " ") if isinstance(name, str) and name else _name(instance)


def _given_name(instance: Mapping[str, Any]) -> Any:
    """What stands for an instance's name; no text where the file has none."""
    return instance.get("rephrased_name") or instance.get("category_name") or ""


def _name(instance: Mapping[str, Any]) -> str:
    """What an answer calls an instance."""
    name = _given_name(instance)
    return " ".join(name.replace("_", " ").split()) if isinstance(name, str) else ""


def _row_name(place: int, number: int) -> str:
    return f"entry {place}, question {number}"
