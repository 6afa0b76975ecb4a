"""The benchmarks by name: what each asks, how it is scored, and which numbers it is judged by.

A table, and ways to open the questions of one: scored, or as the rows of a job. The files of data
sets are read elsewhere; this module knows no model and computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pixellm.data.dataset import Dataset
from pixellm.data.lazy import Lazy
from pixellm.data.registry import READERS, open_reader, reader_class
from pixellm.data.rows import JobRow, rows_of_samples
from pixellm.evaluation.metrics import Protocol
from pixellm.evaluation.scores import Mode, Names, Rules, Unit
from pixellm.types import Sample

if TYPE_CHECKING:
    from pixellm.scenes.dataset import ScenesDataset

SCENES = "scenes"

SET_NAMES = (*READERS, SCENES)
"""What can be asked by name."""

ONE_FILE = ("muse", "jsonl")
"""Benchmarks whose questions may also be those of a single file of one's own."""

_OWN_DIALOGUES = frozenset({"jsonl", "llava"})
"""Sets that hold dialogues word for word; of the others a reader makes questions."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    Attributes:
        unit: what counts as one IoU.
        modes: how it may be answered, the usual one first.
        released: whether the release scores it: "muse" by its MUSE scorer; "same" where one mask
            answers one expression and the release's numbers equal the strict ones; "" not at all.
        classes_are_kinds: average precision is the mean over kinds of question.
        names: how phrases name targets, see :class:`~pixellm.evaluation.scores.Rules`.
    """

    name: str
    title: str
    asks: str
    unit: Unit = "slots"
    modes: tuple[Mode, ...] = ("free", "forced")
    released: str = "muse"
    headline: tuple[str, ...] = ("giou", "ciou", "set_accuracy", "precision", "recall")
    split: str = "val"
    classes_are_kinds: bool = False
    names: Names = "words"

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits of its data set, the one to train on first."""
        if self.name == SCENES:
            from pixellm.scenes.dataset import SPLITS

            return SPLITS
        return reader_class(self.name).splits

    def rules(self, mode: Mode | None = None, protocol: Protocol = "strict") -> Rules:
        """The rules of a run; ValueError for a mode or protocol that the benchmark lacks."""
        chosen = self.modes[0] if mode is None else mode
        if chosen not in self.modes:
            raise ValueError(f"{self.name} is answered {' or '.join(self.modes)}, not {chosen!r}.")
        if protocol not in ("strict", "released"):
            raise ValueError(f"The protocol is strict or released, not {protocol!r}.")
        if protocol == "released" and not self.released:
            raise ValueError(f"The release does not score {self.name}; use --protocol strict.")
        if protocol == "released" and self.released == "same" and chosen != "forced":
            raise ValueError(
                f"The release scores {self.name} with given answers only; add --mode forced."
            )
        # Where the release's numbers equal the strict ones there is nothing else to compute.
        counted = protocol if self.released == "muse" else "strict"
        return Rules(self.unit, chosen, counted, self.names)


_GIVEN: dict[str, Any] = {"modes": ("forced", "free"), "released": "same"}
_EXPRESSION: dict[str, Any] = {
    **_GIVEN,
    "unit": "union",
    "headline": ("ciou", "giou", "p@0.5", "p@0.7", "p@0.9"),
}
_TOGETHER: dict[str, Any] = {**_GIVEN, "headline": ("ciou", "giou", "recall")}

_TABLE = (
    Benchmark("refcoco", "refCOCO", "One expression, one mask.", **_EXPRESSION),
    Benchmark("refcoco+", "refCOCO+", "One expression without places, one mask.", **_EXPRESSION),
    Benchmark("refcocog", "refCOCOg", "One longer expression, one mask.", **_EXPRESSION),
    Benchmark(
        "multi-refcoco",
        "multi-refCOCO",
        "Several expressions about an image, asked together.",
        **_TOGETHER,
    ),
    Benchmark(
        "multi-refcoco+",
        "multi-refCOCO+",
        "Several expressions without places, asked together.",
        **_TOGETHER,
    ),
    Benchmark(
        "multi-refcocog",
        "multi-refCOCOg",
        "Several longer expressions, asked together.",
        **_TOGETHER,
    ),
    Benchmark(
        "grefcoco",
        "gRefCOCO",
        "Expressions for none, one or several objects.",
        unit="union",
        released="",
        headline=("giou", "ciou", "n_acc", "t_acc"),
    ),
    Benchmark(
        "reasonseg",
        "ReasonSeg",
        "One question that needs reasoning, one mask.",
        **{**_EXPRESSION, "headline": ("giou", "ciou")},
    ),
    Benchmark("muse", "MUSE", "Questions that need reasoning about several objects."),
    Benchmark(
        "coco",
        "COCO categories",
        "Every instance of each category that a photo shows.",
        headline=("giou", "ciou", "union_giou", "union_ciou", "precision", "recall"),
        classes_are_kinds=True,
    ),
    Benchmark(
        "photos",
        "photos, all kinds of questions",
        "Photos in COCO format: names, places, sizes, kinds, uses, what is not there.",
        released="",
        headline=(
            *("giou_targets", "ciou_targets", "union_giou"),
            *("set_accuracy", "precision", "recall", "n_acc", "text_accuracy"),
        ),
    ),
    Benchmark(
        "coco-expressions",
        "own expressions",
        "Own photos in COCO format: the description of each annotation.",
        **_EXPRESSION,
    ),
    Benchmark(
        "labelme",
        "own LabelMe photos",
        "Own LabelMe photos: every instance of each label that a photo shows.",
    ),
    Benchmark("jsonl", "own dialogues", "Own dialogues, one a line: the first question of each."),
    Benchmark(
        SCENES,
        "scenes",
        "Drawn scenes: every kind of question; needs no files.",
        headline=(
            *("giou_targets", "ciou_targets", "set_accuracy_targets", "named_set_accuracy"),
            *("giou", "ciou", "set_accuracy", "precision", "recall", "n_acc", "text_accuracy"),
        ),
        split="test",
        names="concepts",
    ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _TABLE}
"""By name. What each asks is in :func:`open_questions` and the readers of the data sets."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name."""
    if name not in BENCHMARKS:
        raise ValueError(f"There is no benchmark {name!r}; choose {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def open_questions(
    name: str, split: str, data: Path, options: Mapping[str, Any] = MappingProxyType({})
) -> Lazy[Sample]:
    """The questions of a benchmark's split, built when asked for.

    Args:
        name: of a benchmark.
        split: one of the data set's.
        data: folder that holds the data sets; for ``coco`` one in COCO's layout; for those in
            :data:`ONE_FILE` also a file of their format; not used by drawn scenes.
        options: further arguments of the reader, by name; of scenes ``num`` images (500), with
            ``dialogues`` about each (4), and ``seed`` (0).

    Raises:
        ValueError: an unknown benchmark, split or option, or damaged files.
        FileNotFoundError: files are missing.
    """
    find_benchmark(name)
    chosen = dict(options)
    if name == SCENES:
        return _open_scenes(split, chosen)
    if name == "coco":
        from pixellm.data.coco_sets import coco_questions

        try:
            return coco_questions(data, split, **chosen)
        except TypeError as error:
            raise ValueError(f"Options of data set 'coco': {error}.") from error
    if data.is_file():
        if name not in ONE_FILE:
            raise ValueError(f"--data of {name} is a folder; {data} is a file.")
        path = data.resolve()
        data, chosen["file"] = path.parent, path if name == "muse" else path.name
    return _questions_of(open_reader(name, data, split, **chosen))


def usual_split(name: str) -> str:
    """The split that is asked where none is named: the benchmark's, ``val``, or the first.

    ValueError where no data set is called so.
    """
    _check_name(name)
    if name in BENCHMARKS:
        return BENCHMARKS[name].split
    splits = reader_class(name).splits
    return "val" if "val" in splits else splits[0]


def open_rows(
    name: str, root: Path, split: str, options: Mapping[str, Any] | None = None
) -> Lazy[JobRow]:
    """The questions of a data set's split, and behind them a bad row for each that was left out.

    Asked are the reader's evaluation questions, which depend on no seed. Sets of dialogues are
    asked turn by turn instead, each with the data's own earlier turns as its history. Images are
    called by their path from ``root``, which scenes don't use. Options and errors are those of
    :func:`open_questions`; nothing to ask is an error too.
    """
    _check_name(name)
    chosen = dict(options or {})
    if name == SCENES:
        return rows_of_samples(open_questions(name, split, root, chosen))
    folder = root.absolute()  # workers of a cluster may be in another folder
    reader = open_reader(name, folder, split, **chosen)
    own = name in _OWN_DIALOGUES
    samples = _dialogues(reader) if own else _questions_of(reader)
    if not samples:
        raise ValueError(f"{name} {split} in {root} has nothing to ask; see `pixellm data check`.")
    problems = [str(bad) for bad in samples.bad_rows]
    return rows_of_samples(samples, folder, single_turns=not own, problems=problems)


class _SceneDialogues:
    """The dialogue of a number among all about drawn scenes; the last scene drawn is kept.

    A poor scene allows fewer dialogues than asked for, so all are drawn once to count them.
    """

    def __init__(self, dataset: ScenesDataset) -> None:
        self._dataset = dataset
        self._kept: tuple[int, tuple[Sample, ...]] = (-1, ())
        counts = [len(self._scene(scene)) for scene in range(len(dataset))]
        self.indices = [(scene, n) for scene, count in enumerate(counts) for n in range(count)]

    def __call__(self, number: int) -> Sample:
        scene, dialogue = self.indices[number]
        return self._scene(scene)[dialogue]

    def _scene(self, scene: int) -> tuple[Sample, ...]:
        if self._kept[0] != scene:
            self._kept = (scene, self._dataset[scene])
        return self._kept[1]


def _check_name(name: str) -> None:
    if name not in SET_NAMES:
        raise ValueError(f"There is no data set {name!r}; known: {', '.join(SET_NAMES)}.")


def _questions_of(reader: Dataset) -> Lazy[Sample]:
    """The evaluation questions, and what the set and they leave out."""
    questions = reader.evaluation_samples()
    bad_rows = (*reader.bad_rows, *questions.bad_rows)
    return Lazy(questions.numbers, questions.build, bad_rows)


def _dialogues(reader: Dataset) -> Lazy[Sample]:
    """The dialogues in the order of the file; a reader of such a set leaves nothing to chance."""

    def build(item: int) -> Sample:
        (dialogue,) = reader.item(item)
        return dialogue

    return Lazy(range(len(reader)), build, reader.bad_rows)


def _open_scenes(split: str, options: Mapping[str, Any]) -> Lazy[Sample]:
    from pixellm.scenes.dataset import ScenesDataset

    values = {"num": 500, "dialogues": 4, "seed": 0, **options}
    unknown = values.keys() - {"num", "dialogues", "seed"}
    if unknown or not all(isinstance(value, int) for value in values.values()):
        raise ValueError(
            "Options of data set 'scenes' are the whole numbers num, dialogues and seed, not "
            f"{', '.join(f'{key}={value}' for key, value in options.items())}."
        )
    dataset = ScenesDataset(split, values["seed"], values["num"], values["dialogues"])
    dialogues = _SceneDialogues(dataset)
    return Lazy(range(len(dialogues.indices)), dialogues)
