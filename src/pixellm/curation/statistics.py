"""The figures of a MUSE set, as numbers and as the plots the paper shows.

Reads MUSE files, its own or released ones, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pixellm.curation.muse import MuseRow, muse_files, read_entries, rows_of
from pixellm.files import MAKER, check_file, check_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _BAR = "#22313a", "#2f7f8f"


@dataclass
class Statistics:
    """Counts over the questions of a set.

    Attributes:
        photos: photos with at least one question.
        targets: questions by number of targets.
        categories: targets by category.
        words: descriptions by number of words.
        question_words: questions by number of words.
    """

    photos: int = 0
    targets: Counter[int] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    question_words: Counter[int] = field(default_factory=Counter)

    def add(self, row: MuseRow) -> None:
        """Count one question."""
        self.targets[len(row.targets)] += 1
        self.question_words[len(row.question.split())] += 1
        for target in row.targets:
            self.categories[str(target.get("category_name", ""))] += 1
            self.words[len(str(target.get("rephrased_name", "")).split())] += 1

    def summary(self) -> dict[str, float]:
        """The headline numbers."""
        return {
            "photos": self.photos,
            "questions": self.targets.total(),
            "targets": self.categories.total(),
            "categories": len(self.categories),
            "targets per question, mean": _mean(self.targets),
            "targets per question, most": max(self.targets, default=0),
            "words per description, mean": _mean(self.words),
            "words per question, mean": _mean(self.question_words),
        }


def gather(path: Path) -> Statistics:
    """The statistics of the MUSE files at a path.

    Raises:
        FileNotFoundError: there is no MUSE file.
        ValueError: a file is damaged; `pixellm curate validate` says where.
    """
    statistics = Statistics()
    for file in muse_files(path):
        try:
            for entry in read_entries(file):
                rows = list(rows_of(entry))
                statistics.photos += bool(rows)
                for row in rows:
                    statistics.add(row)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is no MUSE file ({error!r}); `pixellm curate validate` says where."
            ) from None
    return statistics


def check_plots(folder: Path) -> None:
    """Refuse a folder where a plot would replace a file that is not ours.

    Raises:
        OSError: it can't be written, or holds such a file.
    """
    check_folder(folder)
    for name in ("targets.png", "words.png", "questions.png", "categories.png"):
        check_file(folder / name)


def plot(statistics: Statistics, folder: Path) -> list[Path]:
    """Draw targets per question, categories, description and question length.

    Returns:
        The plots written (PNG).
    """
    check_plots(folder)
    folder.mkdir(parents=True, exist_ok=True)
    top = statistics.categories.most_common(30)[::-1]
    return [
        _bars(folder / "targets.png", "Targets per question", "questions", statistics.targets),
        _bars(folder / "words.png", "Words per description", "descriptions", statistics.words),
        _bars(
            folder / "questions.png", "Words per question", "questions", statistics.question_words
        ),
        _ranking(folder / "categories.png", top, len(statistics.categories)),
    ]


def _bars(path: Path, title: str, unit: str, counts: Counter[int]) -> Path:
    from matplotlib.ticker import MaxNLocator

    axes = _axes(title)
    axes.bar(list(counts), list(counts.values()), color=_BAR, width=0.85)
    axes.set_xlabel(title.lower())
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _save(axes, path)


def _ranking(path: Path, top: Iterable[tuple[str, int]], total: int) -> Path:
    names, numbers = zip(*top, strict=True) if top else ((), ())
    axes = _axes(f"The most frequent of {total} categories", tall=True)
    axes.barh([name[:40] for name in names], numbers, color=_BAR, height=0.8)
    axes.set_xlabel("targets")
    axes.margins(y=0.01)
    return _save(axes, path)


def _axes(title: str, tall: bool = False) -> Axes:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(7, 7.5 if tall else 4), layout="constrained").subplots()
    axes.set_title(title, color=_INK, loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    return axes


def _save(axes: Axes, path: Path) -> Path:
    figure = axes.get_figure()
    figure.savefig(path, dpi=130, metadata={"Software": MAKER})  # type: ignore[union-attr]
    return path


def _mean(counts: Counter[int]) -> float:
    return sum(value * times for value, times in counts.items()) / max(1, counts.total())
