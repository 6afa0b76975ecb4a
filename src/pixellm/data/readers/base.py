"""What every reader of a data set promises: same index, same dialogues; bad rows have names.

A reader is a map-style data set: an index gives the dialogues about one image. Images are
paths, decoded by whoever needs the pixels; masks stay run lengths. This module knows no file
format, no tokens and no batches.
"""

from __future__ import annotations

import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, overload

import numpy as np

from pixellm.image_files import image_size, probe_image, size_mismatch
from pixellm.types import Sample


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of a data set that can't be used.

    Attributes:
        file: the annotation file, or the image.
        row: its place in the file, such as "entry 12, question 3"; "" for the file as a whole.
        reason: what is wrong, one sentence.
    """

    file: Path
    row: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{', ' if self.row else ''}{self.row}: {self.reason}"


class UnusableDataError(ValueError):
    """Nothing of a data set can be used.

    Args:
        message: one sentence.
        bad_rows: every row, with its reason.
    """

    def __init__(self, message: str, bad_rows: Sequence[BadRow] = ()) -> None:
        self.bad_rows = tuple(bad_rows)
        first = f" First, {self.bad_rows[0]}" if self.bad_rows else ""
        super().__init__(f"{message}{first}")
        self.message = message


class LazySamples(Sequence[Sample]):
    """Samples that are built when asked for.

    Args:
        length: how many.
        build: sample of a number from 0 to ``length - 1``.
        bad_rows: what of the data set is not among them because it can't be used.
    """

    def __init__(
        self, length: int, build: Callable[[int], Sample], bad_rows: Sequence[BadRow] = ()
    ) -> None:
        self._numbers = range(length)
        self._build = build
        self.bad_rows = tuple(bad_rows)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> LazySamples: ...

    def __getitem__(self, index: int | slice) -> Sample | LazySamples:
        """A sample, or some of them, as yet unbuilt."""
        if isinstance(index, slice):
            numbers = self._numbers[index]
            return LazySamples(
                len(numbers), lambda number: self._build(numbers[number]), self.bad_rows
            )
        return self._build(self._numbers[index])


class Reader(ABC):
    """A data set on disk as dialogues about images.

    Everything follows from the files and ``(split, seed, epoch, index)``: not from the order of
    access, the process or the worker. One epoch asks everything annotated exactly once; another
    one comes in another order and wording. Rows known to be bad are left out and listed in
    :attr:`bad_rows`; what only shows when a row is decoded raises and names the row.

    Cheap to fork and to pickle: annotations are compact arrays, or are read from the file when
    asked for (:class:`pixellm.data.readers.json_index.JsonRecords`).

    Args:
        root: folder that holds all data sets.
        split: one of :attr:`splits`.
        seed: another seed gives another order and wording.

    Raises:
        ValueError: an unknown split, or a file that is damaged.
        FileNotFoundError: a file is missing; says where to get it.
    """

    name: ClassVar[str]
    """As recipes and the command line call it."""
    title: ClassVar[str]
    """The data set's own name and what it holds, for people."""
    splits: ClassVar[tuple[str, ...]]
    """Known splits, the one to train on first."""
    obtain: ClassVar[str]
    """Where to get it: the end of a sentence, such as "download it from ..."."""

    bad_rows: tuple[BadRow, ...] = ()
    """Rows left out, known since the files were read."""

    def __init__(self, root: Path | str, split: str = "train", seed: int = 0) -> None:
        self.root = Path(root)
        self.split = split
        self.seed = seed
        self.sound_headers: list[Path] = []
        if split not in self.splits:
            raise ValueError(
                f"{self.name} has no split {split!r}; choose {', '.join(self.splits)}."
            )
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    @classmethod
    @abstractmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The annotation files and folders of images that a split needs, there or not."""

    @abstractmethod
    def __len__(self) -> int:
        """How many items an epoch has."""

    @abstractmethod
    def compose(self, item: int, rng: random.Random) -> tuple[Sample, ...]:
        """The dialogues of an item, in the order of the files; they share one image.

        Args:
            item: from 0 to ``len(self) - 1``.
            rng: every choice of wording comes from it.

        Raises:
            ValueError: the row is bad; names the file and the row.
        """

    @abstractmethod
    def where(self, item: int) -> tuple[Path, str]:
        """The annotation file of an item, and its place in it as in :class:`BadRow`."""

    @abstractmethod
    def evaluation_samples(self) -> LazySamples:
        """The questions that a benchmark asks about this split, one a sample, built when asked for.

        Neither order nor wording depends on the seed. Questions about one image follow each
        other. Rows found to be bad on the way are its ``bad_rows``, beside those of the reader.
        """

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How many images, questions and targets the split holds, by those names, and more."""

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        """The dialogues of the first epoch's item ``index``.

        Raises:
            IndexError: past the length, so that plain iteration ends.
            ValueError: the row is bad.
        """
        return self.dialogues(index, epoch=0)

    def dialogues(self, index: int, epoch: int) -> tuple[Sample, ...]:
        """The dialogues that come at place ``index`` of an epoch, about one image.

        Raises:
            IndexError: past the length.
            ValueError: the row is bad.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Item {index} of {len(self)} of {self.name} {self.split}.")
        if self._order[0] != epoch:
            draw = np.random.default_rng([self.seed, epoch])
            self._order = (epoch, draw.permutation(len(self)))
        item = int(self._order[1][index])
        return self.compose(item, self.random_of(item, epoch))

    def random_of(self, item: int, epoch: int = 0) -> random.Random:
        """The source of an item's choices."""
        return random.Random(f"{self.name}/{self.split}/{self.seed}/{epoch}/{item}")

    def check(self) -> Iterator[BadRow]:
        """Every bad row: those left out, those that can't be decoded, images missing or wrong.

        Slow by its nature, since it decodes everything once; images are opened, not decoded.
        """
        yield from self.bad_rows
        seen: set[Path] = set()
        for item in range(len(self)):
            try:
                samples = self.compose(item, self.random_of(item))
            except ValueError as error:
                yield BadRow(*self.where(item), str(error))
                continue
            for sample in samples:
                if isinstance(sample.image, Path) and sample.image not in seen:
                    seen.add(sample.image)
                    yield from self.check_image(sample.image, sample.size)

    def check_image(self, path: Path, size: tuple[int, int]) -> Iterator[BadRow]:
        """What the header of an image shows to be wrong; a sound one joins ``sound_headers``."""
        faults = list(check_header(path, size))
        if not faults:
            self.sound_headers.append(path)
        yield from faults

    @staticmethod
    def find_folder(root: Path, names: Sequence[str]) -> Path:
        """The first of several folders below the root that is there; the first where none is."""
        folders = [root / name for name in names]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    def require(self, *paths: Path) -> None:
        """Check that files or folders are there.

        Raises:
            FileNotFoundError: one is missing.
        """
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(
                    f"{self.name} needs {path}, which is missing; {self.obtain}."
                )


def path_of_split(root: Path, pattern: str, split: str) -> Path:
    """A path below the root, the split's name put in place of ``{split}``."""
    return root / pattern.replace("{split}", split)


def check_header(path: Path, size: tuple[int, int]) -> Iterator[BadRow]:
    """What is wrong with an image of an annotated (height, width), seen from its header.

    Args:
        path: the image.
        size: as its annotation says.
    """
    try:
        found = image_size(path)
    except FileNotFoundError:
        yield BadRow(path, "", "The image is missing.")
    except (OSError, ValueError) as error:
        yield BadRow(path, "", str(error))
    else:
        if fault := size_mismatch(found, size):
            yield BadRow(path, "", fault)


def decode_images(
    paths: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> Iterator[BadRow]:
    """The images that can't be read to their last byte, though their headers are sound.

    Args:
        paths: the images; read in threads.
        progress: told how many are read, and of how many.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, fault in enumerate(pool.map(_decoding_fault, paths), start=1):
            if fault:
                yield BadRow(paths[done - 1], "", fault)
            if progress is not None:
                progress(done, len(paths))


def _decoding_fault(path: Path) -> str:
    try:
        probe_image(path)
    except (OSError, ValueError) as error:
        return str(error)
    return ""
