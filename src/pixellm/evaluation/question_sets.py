"""Data sets by name as the rows of a job: the registry's readers, and drawn scenes.

Chooses which questions of a set are asked; how its files are read is the reader's business. Rows
are built when they are answered, so that a large set needs no more memory than its reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixellm.data.dataset import Dataset, LazySamples
from pixellm.data.registry import READERS, open_reader, reader_class
from pixellm.data.rows import LazyRows, rows_of_samples
from pixellm.types import Sample

if TYPE_CHECKING:
    from pixellm.evaluation.benchmarks import SceneQuestions

SCENES = "scenes"

SET_NAMES = (*READERS, SCENES)
"""What can be asked by name."""

_OWN_DIALOGUES = frozenset({"jsonl", "llava"})
"""Sets that hold dialogues word for word; of the others a reader makes questions."""


def usual_split(name: str) -> str:
    """The split that is asked where none is named: the benchmark's, ``val``, or the first.

    Raises:
        ValueError: no data set is called so.
    """
    from pixellm.evaluation.benchmarks import BENCHMARKS

    _check_name(name)
    if name in BENCHMARKS:
        return BENCHMARKS[name].split
    splits = reader_class(name).splits
    return "val" if "val" in splits else splits[0]


def open_rows(
    name: str, root: Path, split: str, options: Mapping[str, Any] | None = None
) -> LazyRows:
    """The questions of a data set's split, and behind them a bad row for each that was left out.

    Asked are the reader's evaluation questions, which depend on no seed. Sets of dialogues are
    asked turn by turn instead, each with the data's own earlier turns as its history.

    Args:
        name: one of :data:`SET_NAMES`.
        root: folder that holds the data sets; images are called by their path from there. Not
            used by scenes.
        split: one of the set's.
        options: further arguments of the reader, by name; of scenes ``num`` images (500), with
            ``dialogues`` about each (4), and ``seed`` (0).

    Raises:
        ValueError: an unknown name, split or option, a damaged file, or nothing to ask.
        FileNotFoundError: a file is missing; says where to get it.
        ImportError: an extra is not installed.
    """
    _check_name(name)
    chosen = dict(options or {})
    if name == SCENES:
        return rows_of_samples(_open_scenes(split, chosen))
    folder = root.absolute()  # workers of a cluster may be in another folder
    reader = open_reader(name, folder, split, **chosen)
    own = name in _OWN_DIALOGUES
    samples = _dialogues(reader) if own else reader.evaluation_samples()
    if not samples:
        raise ValueError(f"{name} {split} in {root} has nothing to ask; see `pixellm data check`.")
    problems = [str(bad) for bad in (*reader.bad_rows, *samples.bad_rows)]
    return rows_of_samples(samples, folder, single_turns=not own, problems=problems)


def _check_name(name: str) -> None:
    if name not in SET_NAMES:
        raise ValueError(f"There is no data set {name!r}; known: {', '.join(SET_NAMES)}.")


def _dialogues(reader: Dataset) -> LazySamples:
    """The dialogues in the order of the file; a reader of such a set leaves nothing to chance."""

    def build(item: int) -> Sample:
        (dialogue,) = reader.item(item)
        return dialogue

    return LazySamples(len(reader), build)


def _open_scenes(split: str, options: Mapping[str, Any]) -> SceneQuestions:
    from pixellm.evaluation.benchmarks import SceneQuestions

    values = {"num": 500, "dialogues": 4, "seed": 0, **options}
    unknown = values.keys() - {"num", "dialogues", "seed"}
    if unknown or not all(isinstance(value, int) for value in values.values()):
        raise ValueError(
            "Options of data set 'scenes' are the whole numbers num, dialogues and seed, not "
            f"{', '.join(f'{key}={value}' for key, value in options.items())}."
        )
    return SceneQuestions(split, values["seed"], values["num"], values["dialogues"])
