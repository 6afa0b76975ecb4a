"""Which data sets a folder holds, what is missing, and every row that can't be used.

Finds the sets of the registry in their usual places, MUSE files as ``pixellm curate`` writes them,
and single files. What a bad row is, each data set says.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pixellm.data.dataset import GUIDE, BadRow, Dataset, UnusableDataError, decode_images
from pixellm.data.json_stream import scan_json
from pixellm.data.other_layouts import KEYS_OF_COCO
from pixellm.data.registry import READERS, open_reader, reader_class
from pixellm.files import STANDARD, plain_cell

CSV_HEADER = b"set,file,row,reason\r\n"
"""How the table of bad rows begins."""


@dataclass(frozen=True, slots=True)
class FoundSplit:
    """A split of a data set whose annotations are there, and how it is opened.

    Attributes:
        missing: files and folders that it needs too and that are not there.
        label: what reports call it.
    """

    name: str
    split: str
    root: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[Path, ...] = ()
    label: str = ""

    def open(self) -> Dataset:
        """The reader."""
        return open_reader(self.name, self.root, self.split, **self.options)


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What a check found; no counts where the split can't be opened."""

    found: FoundSplit
    counts: Mapping[str, int]
    bad_rows: tuple[BadRow, ...]


def find_sets(
    root: Path,
    names: Sequence[str] = (),
    splits: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> list[FoundSplit]:
    """The splits that a folder, or a file, holds: of these names and splits, all where empty.

    A split is there when the first of its files is. Two readers of the same files, such as refCOCO
    one by one and several at a time, count once, unless asked for by name. A set that is asked for
    by name and with options, arguments of its reader, counts as there: its files may have any
    place.

    ``root`` is the folder of all data sets; a folder with ``muse_*.json`` files; or one file: JSONL
    dialogues, a COCO instances file, a MUSE or a LLaVA file. FileNotFoundError where it is not
    there, ValueError for an unknown name, or a file of no known form.
    """
    given = dict(options or {})
    if str(root) == STANDARD:
        raise ValueError("Annotations are read more than once; save standard input as a file.")
    if root.is_file():
        if splits or len(names) > 1:
            raise ValueError(
                f"{root} is one file, read as one set; leave out the split, and others."
            )
        return [_found_file(root, names, given)]
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder or file at {root}.")
    found: list[FoundSplit] = []
    seen: set[tuple[tuple[Path, ...], str]] = set()
    for name in names or READERS:
        reader = reader_class(name)
        known = [split for split in reader.splits if not splits or split in splits]
        # Where files may have any place, the first split alone is looked for.
        for split in known[:1] if names and given and not splits else known:
            files = reader.files(root, split)
            missing = tuple(path for path in files if not path.exists())
            if names and given:
                missing = ()
            elif files[0] in missing or (not names and (files, split) in seen):
                continue
            seen.add((files, split))
            found.append(FoundSplit(name, split, root, given, missing, f"{name} {split}"))
    if not names or "muse" in names:
        found += [_found_muse(path, given) for path in sorted(root.glob("muse_*.json"))]
    return found


def absent_sets(found: Iterable[FoundSplit]) -> list[type[Dataset]]:
    """The readers of the public data sets that a folder of such sets does not hold.

    None where there is nothing but data of one's own, or a generated set.
    """
    there = {one.name for one in found if "file" not in one.options}
    public = {name: reader for name in READERS if (reader := reader_class(name)).is_public}
    if not there & public.keys():
        return []
    same_files = {name for name in public if name.startswith("multi-")}
    return [reader for name, reader in public.items() if name not in there | same_files]


def check_found(
    found: FoundSplit, *, decode: bool = False, progress: Callable[[int, int], None] | None = None
) -> SplitReport:
    """Decode every annotation of a split once, and on demand its images to their last byte.

    ``progress`` is told how many images are checked, and of how many.
    """
    if found.missing:
        obtain = reader_class(found.name).obtain
        rows = [BadRow(path, "", f"It is missing; {obtain}.") for path in found.missing]
        return SplitReport(found, {}, tuple(rows))
    try:
        reader = found.open()
    except UnusableDataError as error:
        whole = BadRow(found.root, "", error.message)
        return SplitReport(found, {}, (*error.bad_rows, whole))
    except (OSError, ValueError) as error:
        return SplitReport(found, {}, (BadRow(found.root, "", str(error)),))
    bad_rows = list(reader.check())
    if decode:
        bad_rows += decode_images(list(dict.fromkeys(reader.sound_headers)), progress)
    return SplitReport(found, reader.counts(), tuple(bad_rows))


def bad_rows_to_csv(reports: Iterable[SplitReport]) -> bytes:
    """Every bad row as a table: set, file, row, reason."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    for report in reports:
        table.writerows(
            map(plain_cell, (report.found.label, bad.file, bad.row, bad.reason))
            for bad in report.bad_rows
        )
    return CSV_HEADER + text.getvalue().encode()


def _found_muse(path: Path, options: dict[str, Any]) -> FoundSplit:
    """A MUSE file under any name; the split is only a label to its reader."""
    splits = reader_class("muse").splits
    split = next((one for one in splits if path.stem.startswith(f"muse_{one}")), splits[0])
    return FoundSplit("muse", split, path.parent, {**options, "file": path}, (), path.name)


def _found_file(path: Path, names: Sequence[str], options: dict[str, Any]) -> FoundSplit:
    name = names[0] if names else _form_of(path)
    if name == "muse":
        return _found_muse(path, options)
    key = {"jsonl": "file", "llava": "conversations"}.get(name, "annotations")
    located = {key: path.name, **options}
    if name != "jsonl":
        folder = Path(options.get("images", path.parent))
        located["images"] = str(folder.absolute())
    return FoundSplit(name, "train", path.parent, located, (), path.name)


def _form_of(path: Path) -> str:
    """The data set whose form a file has."""
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            if not any(map(bytes.strip, lines)):
                raise ValueError(f"{path} is empty.")
        return "jsonl"
    keys = set[str]()
    for key, value, _ in islice(scan_json(path, keys), 3):
        if key in KEYS_OF_COCO:
            return "coco"
        if isinstance(value, Mapping) and "questions" in value:
            return "muse"
        if isinstance(value, Mapping) and "conversations" in value:
            return "llava"
    if keys & KEYS_OF_COCO:
        return "coco"
    raise ValueError(
        f"{path} is neither JSONL dialogues nor a COCO, MUSE or LLaVA file; see {GUIDE}"
    )
