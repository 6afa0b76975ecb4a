"""The benchmarks by name: what each asks, how it is scored, and which numbers it is judged by.

A table, and a way to open the questions of one. The files of data sets are read elsewhere; this
module knows no model and computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixellm.evaluation.metrics import Protocol
from pixellm.evaluation.scores import Mode, Rules, Unit
from pixellm.types import Sample

_REFERRING = ("ciou", "giou", "p@0.5", "p@0.7", "p@0.9")
_REFER_SETS = (("refcoco", "refCOCO"), ("refcoco+", "refCOCO+"), ("refcocog", "refCOCOg"))
_MULTIPLE = ("giou", "ciou", "set_accuracy", "precision", "recall")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: as the command line calls it.
        title: for reports.
        unit: what counts as one IoU.
        modes: how it may be answered, the usual one first.
        released: whether the release scores it: "muse" by its MUSE scorer; "same" where one mask
            answers one expression and the release's numbers equal the strict ones; "" not at all.
        headline: scores that it is judged by.
        split: the usual one.
        classes_are_kinds: average precision is the mean over kinds of question.
    """

    name: str
    title: str
    unit: Unit
    modes: tuple[Mode, ...]
    released: str
    headline: tuple[str, ...]
    split: str
    classes_are_kinds: bool = False

    def rules(self, mode: Mode | None = None, protocol: Protocol = "strict") -> Rules:
        """The rules of a run.

        Raises:
            ValueError: the benchmark knows no such mode or protocol.
        """
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
        return Rules(self.unit, chosen, protocol if self.released == "muse" else "strict")


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        *(
            Benchmark(name, title, "union", ("forced", "free"), "same", _REFERRING, "val")
            for name, title in _REFER_SETS
        ),
        *(
            Benchmark(
                f"multi-{name}",
                f"multi-{title}",
                "slots",
                ("forced", "free"),
                "same",
                ("ciou", "giou", "recall"),
                "val",
            )
            for name, title in _REFER_SETS
        ),
        Benchmark(
            "grefcoco",
            "gRefCOCO",
            "union",
            ("free", "forced"),
            "",
            ("giou", "ciou", "n_acc", "t_acc"),
            "val",
        ),
        Benchmark(
            "reasonseg", "ReasonSeg", "union", ("forced", "free"), "same", ("giou", "ciou"), "val"
        ),
        Benchmark("muse", "MUSE", "slots", ("free", "forced"), "muse", _MULTIPLE, "val"),
        Benchmark(
            "coco",
            "COCO categories",
            "slots",
            ("free", "forced"),
            "muse",
            ("giou", "ciou", "union_giou", "union_ciou", "precision", "recall"),
            "val",
            classes_are_kinds=True,
        ),
        Benchmark(
            "photos",
            "photos, all kinds of questions",
            "slots",
            ("free", "forced"),
            "",
            (
                "giou_targets",
                "ciou_targets",
                "union_giou",
                *_MULTIPLE[2:],
                "n_acc",
                "text_accuracy",
            ),
            "val",
        ),
        Benchmark(
            "coco-expressions",
            "own expressions",
            "union",
            ("forced", "free"),
            "same",
            _REFERRING,
            "val",
        ),
        Benchmark(
            "labelme", "own LabelMe photos", "slots", ("free", "forced"), "muse", _MULTIPLE, "val"
        ),
        Benchmark("jsonl", "own dialogues", "slots", ("free", "forced"), "muse", _MULTIPLE, "val"),
        Benchmark(
            "scenes",
            "scenes",
            "slots",
            ("free", "forced"),
            "muse",
            (
                *("giou_targets", "ciou_targets", "set_accuracy_targets"),
                *_MULTIPLE,
                *("n_acc", "text_accuracy"),
            ),
            "test",
        ),
    )
}
"""By name. What each asks is in :func:`open_questions` and the readers of the data sets."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"There is no benchmark {name!r}; choose {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


ONE_FILE = ("muse", "jsonl")
"""Benchmarks whose questions may also be those of a single file of one's own."""


def open_questions(
    name: str, split: str, data: Path, images: Path | None = None
) -> Sequence[Sample]:
    """The questions of a benchmark's split, built when asked for.

    Args:
        name: of a benchmark with files; drawn scenes are opened by :class:`SceneQuestions`.
        split: one of the data set's.
        data: folder that holds the data sets; for ``coco`` one in COCO's layout; for those in
            :data:`ONE_FILE` also a file of their format.
        images: folder of MUSE's photos, where they do not lie as usual or beside the file.

    Raises:
        ValueError: an unknown benchmark or split, or damaged files.
        FileNotFoundError: files are missing.
    """
    find_benchmark(name)
    if name == "coco":
        from pixellm.data.coco_sets import CocoCategories

        return CocoCategories(data, split)
    from pixellm.data.dataset import LazySamples
    from pixellm.data.registry import open_reader

    options: dict[str, Any] = {} if images is None else {"images": images}
    if data.is_file():
        if name not in ONE_FILE:
            raise ValueError(f"--data of {name} is a folder; {data} is a file.")
        path = data.resolve()
        data, options["file"] = path.parent, path if name == "muse" else path.name
    reader = open_reader(name, data, split, **options)
    asked = reader.evaluation_samples()
    return LazySamples(len(asked), asked.__getitem__, (*reader.bad_rows, *asked.bad_rows))


class SceneQuestions(Sequence[Sample]):
    """The dialogues about drawn scenes as a flat sequence; the last scene drawn is kept.

    A poor scene allows fewer dialogues than asked for, so all are drawn once to count them.

    Args:
        split: of the scenes data set.
        seed: of the scenes data set.
        num_scenes: images.
        dialogues_per_image: at most.

    Raises:
        ValueError: an unknown split, or a number that is too small.
        ImportError: the extra ``scenes`` is not installed.
    """

    def __init__(self, split: str, seed: int, num_scenes: int, dialogues_per_image: int) -> None:
        from pixellm.scenes.dataset import ScenesDataset

        self._dataset = ScenesDataset(
            split=split, seed=seed, length=num_scenes, dialogues_per_image=dialogues_per_image
        )
        self._kept: tuple[int, tuple[Sample, ...]] = (-1, ())
        self.places = list(self._count())

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:  # a sample; for a slice, several
        """The dialogue at that place."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        scene, number = self.places[index]
        return self._scene(scene)[number]

    def image_of(self, index: int) -> int:
        """Number of the scene that a dialogue is about."""
        return self.places[index][0]

    def _count(self) -> Iterator[tuple[int, int]]:
        for scene in range(len(self._dataset)):
            for number in range(len(self._scene(scene))):
                yield scene, number

    def _scene(self, scene: int) -> tuple[Sample, ...]:
        if self._kept[0] != scene:
            self._kept = (scene, self._dataset[scene])
        return self._kept[1]
