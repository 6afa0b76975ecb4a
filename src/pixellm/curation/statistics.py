"""The figures of a MUSE set, as numbers and as the plots the paper shows.

Reads MUSE files, its own or released ones, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pixellm.data.json_stream import scan_list
from pixellm.data.muse import MuseRow, muse_files, rows_of
from pixellm.files import check_file, check_folder, write_files
from pixellm.report import figures

_PLOTS = ("targets.png", "words.png", "questions.png", "categories.png")


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
    """The statistics of the MUSE files at a path; ValueError where they hold no question."""
    statistics = Statistics()
    for file in muse_files(path):
        try:
            for entry in scan_list(file):
                rows = list(rows_of(entry))
                statistics.photos += bool(rows)
                for row in rows:
                    statistics.add(row)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is no MUSE file ({error!r}); `pixellm curate validate` says where."
            ) from None
    if not statistics.photos:
        raise ValueError(
            f"{path} holds no question that can be used; `pixellm curate validate` says why."
        )
    return statistics


def check_plots(folder: Path) -> None:
    """Refuse a folder where a plot would replace a file that is not ours."""
    figures.check_plots()
    check_folder(folder)
    for name in _PLOTS:
        check_file(folder / name)


def plot(statistics: Statistics, folder: Path) -> list[Path]:
    """Draw targets per question, categories, description and question length; returns the PNGs."""
    check_plots(folder)
    title = f"The most frequent of {len(statistics.categories)} categories"
    drawn = (
        figures.count_bars("Targets per question", statistics.targets, "questions"),
        figures.count_bars("Words per description", statistics.words, "descriptions"),
        figures.count_bars("Words per question", statistics.question_words, "questions"),
        figures.ranking(title, statistics.categories.most_common(30), "targets"),
    )
    files = {
        folder / name: figures.to_png(figure) for name, figure in zip(_PLOTS, drawn, strict=True)
    }
    write_files(files, folder=folder)
    return [*files]


def _mean(counts: Counter[int]) -> float:
    return sum(value * times for value, times in counts.items()) / max(1, counts.total())
