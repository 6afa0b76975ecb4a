"""What every data set promises: same index, same dialogues; bad rows have names.

A data set says where its files are (``files``), yields their rows (``rows``) and composes what is
asked about one (``compose``). :class:`Dataset` owns the rest: reading and caching the rows, order,
epochs, evaluation questions, checks and counts. Images are paths, decoded by whoever needs the
pixels; masks stay run lengths.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from pixellm.data.json_values import text_fault
from pixellm.data.lazy import Lazy
from pixellm.data.table import BadRow, Integers, Table, Tables, TablesWriter, open_tables
from pixellm.image_files import image_size, probe_image, size_mismatch
from pixellm.threads import usable_cores
from pixellm.types import Sample

GUIDE = "https://pixellm.github.io/pixellm/data/"
"""Where layouts and forms of files are described; messages name it."""


class UnusableDataError(ValueError):
    """Nothing of a data set can be used; has every row, with its reason."""

    def __init__(self, message: str, bad_rows: Sequence[BadRow] = ()) -> None:
        self.bad_rows = tuple(bad_rows)
        first = f" First, {self.bad_rows[0]}" if self.bad_rows else ""
        super().__init__(f"{message}{first}")
        self.message = message


class BadRowError(ValueError):
    """A row turns out to be bad when it is decoded."""

    def __init__(self, bad: BadRow) -> None:
        super().__init__(str(bad))
        self.bad = bad


def _check_text(value: Any, info: ValidationInfo) -> Any:
    if fault := text_fault(value, (info.field_name or "text").replace("_", " ")):
        raise ValueError(fault)
    return value


Text = Annotated[str, BeforeValidator(_check_text)]
"""A text that can be said in a dialogue; see :func:`~pixellm.data.json_values.text_fault`."""


class Row(BaseModel):
    """A row of an annotation file: subclasses name its fields.

    A key that is null is as if it were not there.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    noun: ClassVar[str] = "row"
    """How a sentence calls it."""

    @classmethod
    def read(cls, values: Any) -> Self:
        """A row from the values of a file; ValueError, in one sentence, names what is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(_sentence(error)) from None

    @property
    def num_questions(self) -> int:
        """How many questions it allows, for counts."""
        return 1

    @property
    def num_targets(self) -> int:
        """How many masks their answers have, for counts."""
        return 1

    @property
    def image_number(self) -> int:
        """The number of its image, where several rows are about one."""
        return -1

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping):
            raise ValueError(f"A {cls.noun} is a JSON object, not {values!r:.40}.")
        given = {key: value for key, value in values.items() if value is not None}
        fields = cls.model_fields
        missing = [
            name for name, field in fields.items() if field.is_required() and name not in given
        ]
        unknown = given.keys() - fields if cls.model_config["extra"] == "forbid" else ()
        if missing or unknown:
            wrong = f"lacks {missing[0]!r}" if missing else f"has an unknown key {min(unknown)!r}"
            raise ValueError(f"A {cls.noun} {wrong}; its keys are {', '.join(sorted(fields))}.")
        return given


def _sentence(error: ValidationError) -> str:
    """What is wrong first, with the row of a list inside the row where there is one."""
    first = error.errors()[0]
    path = first["loc"]
    if first["type"] != "value_error":
        says = first["msg"].replace("Input", f"Its {'.'.join(map(str, path))}", 1)
        return f"{says.replace('tuple', 'list')}, not {first['input']!r:.40}."
    numbers = [index for index, part in enumerate(path) if isinstance(part, int)]
    lists = path[: numbers[-1] + 1] if numbers else ()
    within = [f"{name} {number}" for name, number in zip(lists[::2], lists[1::2], strict=True)]
    reason = str(first["ctx"]["error"])
    return f"{', '.join(within)}: {reason}" if within else reason


class Entry(NamedTuple):
    """A row as a file holds it: its file, where it is in it as in :class:`BadRow`, its values."""

    file: Path
    row: str
    values: Any


class Group(NamedTuple):
    """An item that is made of several rows: its number and theirs."""

    item: int
    members: Integers


@dataclass(frozen=True, eq=False, slots=True)
class Groups:
    """The numbers that each item is made of.

    Attributes:
        members: the numbers, item by item.
        starts: (items + 1,) first member of each item, and the end.
    """

    members: Integers
    starts: Integers

    @classmethod
    def of(cls, groups: Sequence[Integers]) -> Groups:
        """Those of one group an item."""
        return cls(np.concatenate(groups), np.cumsum([0, *map(len, groups)]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[Integers]:
        return (self[item] for item in range(len(self)))

    def __getitem__(self, item: int) -> Integers:
        return self.members[self.starts[item] : self.starts[item + 1]]


R = TypeVar("R")


class Dataset(ABC, Generic[R]):
    """A data set on disk as dialogues about images.

    Everything follows from the files and ``(split, seed, epoch, index)``: not from the order of
    access, the process or the worker. One epoch asks everything annotated exactly once; another
    one comes in another order and wording. Rows known to be bad are left out and listed in
    :attr:`bad_rows`; what only shows when a row is decoded raises and names the row.

    A subclass defines ``rows`` and opens them with :meth:`open_rows` at the end of its
    construction: an item is then a row. One whose items are made of several records defines
    ``num_items``, ``row``, ``where``, ``evaluation_samples`` and ``counts`` instead. Cheap to fork
    and to pickle: rows lie in tables (:mod:`pixellm.data.table`).

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
    is_public: ClassVar[bool] = True
    """Whether it can be obtained; false of layouts for data of one's own."""
    row_type: ClassVar[type[Row]]
    """What ``rows`` yields, where an item is a row."""

    num_items: int
    """How many items an epoch has."""
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
        self._tables: Tables | None = None

    @classmethod
    @abstractmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The annotation files and folders of images that a split needs, there or not."""

    @abstractmethod
    def compose(self, row: R, rng: random.Random) -> tuple[Sample, ...]:
        """The dialogues about a row, in the order of the files; they share one image.

        Every choice of wording comes from ``rng``. OSError or ValueError where the row is bad.
        """

    def rows(self) -> Iterator[Entry | BadRow]:
        """The rows of the split's files, in their order; their values are checked later."""
        raise NotImplementedError

    def open_rows(self, *sources: Path, nothing: str) -> None:
        """Read the rows once, or take them from the cache, where these files were read before.

        ``sources`` are the files that rows are read from, none where they are too many to be
        stamped; ``nothing`` is the sentence where no row can be used.
        """
        self._tables = self.open_tables(sources, self._fill)
        self.bad_rows = self._tables.bad_rows
        self.num_items = len(self.table)
        if not self.num_items:
            raise UnusableDataError(nothing, self.bad_rows)

    def open_tables(self, sources: Sequence[Path], fill: Callable[[TablesWriter], None]) -> Tables:
        """See :func:`pixellm.data.table.open_tables`."""
        return open_tables(sources, f"{type(self).__qualname__}/{self.split}", fill)

    def _fill(self, tables: TablesWriter) -> None:
        writer = tables.table("rows", "questions", "targets", "image")
        for found in self.rows():
            if isinstance(found, BadRow):
                tables.refuse(found)
                continue
            try:
                row = self.row_type.read(found.values)
            except ValueError as error:
                tables.refuse(BadRow(found.file, found.row, str(error)))
                continue
            record = [tables.key_of(found.file), found.row, row.model_dump()]
            writer.append(record, row.num_questions, row.num_targets, row.image_number)

    def __len__(self) -> int:
        """How many items an epoch has."""
        return self.num_items

    def row(self, item: int) -> R:
        """What an item, from 0 to ``len(self) - 1``, is about."""
        return self.stored_row(item)

    def stored_row(self, number: int) -> Any:
        """A row of the table, of the type ``row_type``."""
        return self.row_type.model_validate(self.table[number][2])

    def where(self, item: int) -> tuple[Path, str]:
        """The annotation file of an item, and where it is in it, as in :class:`BadRow`."""
        return self.place_of_row(item)

    def place_of_row(self, number: int) -> tuple[Path, str]:
        """The file of a row of the table, and where it is in it."""
        assert self._tables is not None
        key, row, _ = self.table[number]
        return self._tables.file_of(key), row

    def evaluation_samples(self) -> Lazy[Sample]:
        """The questions that a benchmark asks about this split, one a sample, built when asked for.

        Neither order nor wording depends on the seed. Questions about one image follow each
        other. Rows found to be bad on the way are its ``bad_rows``, beside those of the set. Here
        the first question about each row.
        """

        def build(item: int) -> Sample:
            whole = self.item(item, random.Random(0))[0]
            return replace(whole, turns=whole.turns[:1])

        return Lazy(range(len(self)), build)

    def counts(self) -> dict[str, int]:
        """How many images, questions and targets the split holds, by those names, and more."""
        sums = {name: int(self.table.numbers(name).sum()) for name in ("questions", "targets")}
        return {"images": len(self), **sums}

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        """The dialogues of the first epoch's item ``index``; BadRowError where its row is bad.

        IndexError past the length, so that plain iteration ends.
        """
        return self.dialogues(index, epoch=0)

    def dialogues(self, index: int, epoch: int) -> tuple[Sample, ...]:
        """The dialogues that come at an index of an epoch, about one image."""
        if not 0 <= index < len(self):
            raise IndexError(f"Item {index} of {len(self)} of {self.name} {self.split}.")
        if self._order[0] != epoch:
            draw = np.random.default_rng([self.seed, epoch])
            self._order = (epoch, draw.permutation(len(self)))
        item = int(self._order[1][index])
        return self.item(item, self.random_of(item, epoch))

    def item(self, item: int, rng: random.Random | None = None) -> tuple[Sample, ...]:
        """The dialogues of an item, by its index in the files; of the first epoch without rng."""
        with self.naming(item):
            return self.compose(self.row(item), rng or self.random_of(item))

    @contextmanager
    def naming(self, item: int) -> Iterator[None]:
        """Whatever turns out to be wrong inside is told with the item's file and row."""
        try:
            yield
        except BadRowError:
            raise
        except (OSError, ValueError) as error:
            raise BadRowError(BadRow(*self.where(item), str(error))) from None

    def random_of(self, item: int, epoch: int = 0) -> random.Random:
        """The source of an item's choices."""
        return random.Random(f"{self.name}/{self.split}/{self.seed}/{epoch}/{item}")

    def check(self) -> Iterator[BadRow]:
        """Every bad row: those left out, those that can't be decoded, images missing or wrong.

        Slow by its nature, since it decodes everything once; images are opened, not decoded.
        """
        yield from self.bad_rows
        seen: set[Path] = set()
        samples = self.evaluation_samples()
        for number in range(len(samples)):
            try:
                sample = samples[number]
            except BadRowError as error:
                yield error.bad
                continue
            if isinstance(sample.image, Path) and sample.image not in seen:
                seen.add(sample.image)
                yield from self.check_image(sample.image, sample.size)

    def check_image(self, path: Path, size: tuple[int, int]) -> Iterator[BadRow]:
        """What the header of an image shows to be wrong; a sound one joins ``sound_headers``."""
        if bad := check_header(path, size):
            yield bad
        else:
            self.sound_headers.append(path)

    @staticmethod
    def find_folder(root: Path, names: Sequence[str]) -> Path:
        """The first of several folders below the root that is there; the first where none is."""
        folders = [root / name for name in names]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    def require(self, *paths: Path) -> None:
        """Check that files or folders are there."""
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(
                    f"{self.name} needs {path}, which is missing; {self.how_to_go_on(path)}."
                )

    def how_to_go_on(self, missing: Path) -> str:
        """What to do where a file or folder is missing: the end of a sentence."""
        return self.obtain

    @property
    def table(self) -> Table:
        """The rows that can be used, with columns ``questions``, ``targets`` and ``image``."""
        assert self._tables is not None, "open_rows comes at the end of a set's construction"
        return self._tables["rows"]


def check_at_least_one(name: str, **numbers: int | None) -> None:
    """Refuse numbers of a data set that are below 1; None is no number."""
    for key, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{key} of {name} is at least 1, not {number}.")


def path_of_split(root: Path, pattern: str, split: str) -> Path:
    """A path below the root, the split's name put in place of ``{split}``."""
    return root / pattern.replace("{split}", split)


def check_header(path: Path, size: tuple[int, int]) -> BadRow | None:
    """What is wrong with an image of an annotated (height, width), seen from its header."""
    try:
        fault = size_mismatch(image_size(path), size)
    except FileNotFoundError:
        fault = "The image is missing."
    except (OSError, ValueError) as error:
        fault = str(error)
    return BadRow(path, "", fault) if fault else None


def decode_images(
    paths: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> Iterator[BadRow]:
    """The images that can't be read to their last byte, though their headers are sound.

    They are read in threads; ``progress`` is told how many are, and of how many.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
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
