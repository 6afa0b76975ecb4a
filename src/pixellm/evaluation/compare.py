"""Two runs side by side: which scores differ beyond chance, and which answers moved most.

Both must have answered the same questions; what only one answered is counted and left out. It
reads records and writes a report, and runs no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixellm.engine.run_folder import read_settings
from pixellm.evaluation.benchmarks import find_benchmark
from pixellm.evaluation.cards import (
    EACH,
    FetchImage,
    build_card,
    predicted_panel,
    true_panel,
)
from pixellm.evaluation.intervals import Difference, Estimate, bootstrap
from pixellm.evaluation.records import AnswerRecord, read_run
from pixellm.evaluation.scores import Rules, Unit, image_ratios, question_giou
from pixellm.evaluation.summary import by_image
from pixellm.evaluation.tables import number
from pixellm.report.page import Card, Report, Table

KEYS = ("runs", "num_questions", "scores")
"""That the JSON of every comparison has."""

_SAME = ("benchmark", "split")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs over the questions that both answered.

    Attributes:
        scores: name -> the score of each run and the difference, second minus first.
        pairs: the answers of both runs to each question, those that moved most first.
        num_left_out: questions that only one run answered.
    """

    names: tuple[str, str]
    settings: tuple[Mapping[str, Any], Mapping[str, Any]]
    unit: Unit
    scores: dict[str, tuple[Estimate, Estimate, Difference]]
    pairs: list[tuple[AnswerRecord, AnswerRecord]]
    num_images: int
    num_left_out: int

    def table(self) -> Table:
        """Every score of both runs with the paired difference."""
        header = ("score", "A", "B", "B - A, 95 % interval", "resamples in which B is not above A")
        rows = [
            (name, number(a.value), number(b.value), str(change), number(change.share_not_above))
            for name, (a, b, change) in self.scores.items()
        ]
        return Table("Differences", [header, *rows], "differences")

    def moved(self) -> Table:
        """The questions whose own IoU moved most."""
        header = ("sample", "A", "B", "B - A", "question")
        rows = [
            (b.key, f"{first:.3f}", f"{second:.3f}", f"{second - first:+.3f}", b.question)
            for a, b in self.pairs[: 2 * EACH]
            for first, second in [(question_giou(a, self.unit), question_giou(b, self.unit))]
            if first != second
        ]
        return Table("Answers that moved most", [header, *rows], "moved")

    def describe(self) -> str:
        """One sentence that says what is compared."""
        left_out = f", {self.num_left_out} answered by one run only" if self.num_left_out else ""
        runs = (
            f"{letter}: {name} ({values['model']}, {values['mode']}, {values['protocol']})"
            for letter, name, values in zip("AB", self.names, self.settings, strict=True)
        )
        return (
            f"{' · '.join(runs)}. {len(self.pairs)} questions about {self.num_images} "
            f"images{left_out}; paired bootstrap over images."
        )


def compare_runs(first: Path, second: Path) -> Comparison:
    """Compare the answers in the folders of two runs, A and B.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: the runs are about other questions, or a file is damaged.
    """
    settings = (read_settings(first), read_settings(second))
    for name in _SAME:
        if settings[0].get(name) != settings[1].get(name):
            raise ValueError(
                f"{first} has {name} {settings[0].get(name)!r}, {second} "
                f"{settings[1].get(name)!r}; compare runs of one benchmark and split."
            )
    rules = tuple(
        _rules(values, folder) for values, folder in zip(settings, (first, second), strict=True)
    )
    pairs, num_left_out = _common_pairs(first, second)
    unit = rules[0].unit
    return Comparison(
        names=(first.name, second.name),
        settings=settings,
        unit=unit,
        scores=_compare_scores(pairs, (rules[0], rules[1])),
        pairs=sorted(pairs, key=lambda pair: (-abs(_change(pair, unit)), pair[0].index)),
        num_images=len({a.image for a, _ in pairs}),
        num_left_out=num_left_out,
    )


def comparison_report(comparison: Comparison, fetch_image: FetchImage) -> Report:
    """The report of a comparison, with the images of the answers that moved most."""
    title = f"{comparison.names[0]} and {comparison.names[1]}"
    tables = [comparison.table(), comparison.moved()]
    cards = _cards(comparison, fetch_image)
    values = {
        "runs": [
            {"name": name, "settings": dict(settings)}
            for name, settings in zip(comparison.names, comparison.settings, strict=True)
        ],
        "num_questions": len(comparison.pairs),
        "num_images": comparison.num_images,
        "num_left_out": comparison.num_left_out,
        "scores": {
            name: {"a": asdict(a), "b": asdict(b), "difference": asdict(change)}
            for name, (a, b, change) in comparison.scores.items()
        },
        "moved": [dict(zip(tables[1].rows[0], row, strict=True)) for row in tables[1].rows[1:]],
    }
    return Report(title, comparison.describe(), tables, {}, cards, values)


def _common_pairs(first: Path, second: Path) -> tuple[list[tuple[AnswerRecord, AnswerRecord]], int]:
    """The answers of both runs to each question, and how many questions one run alone has."""
    # The index keeps apart dialogues that a data set calls by one name.
    answers = [
        {(record.index, record.key): record for record in read_run(folder).records}
        for folder in (first, second)
    ]
    pairs = [(record, answers[1][key]) for key, record in answers[0].items() if key in answers[1]]
    if not pairs:
        raise ValueError(f"{first} and {second} have no answered question in common.")
    for a, b in pairs:
        if (a.question, a.targets) != (b.question, b.targets):
            raise ValueError(f"{first} and {second} ask different things as {a.key!r}.")
    return pairs, len(set(answers[0]) ^ set(answers[1]))


def _rules(settings: Mapping[str, Any], folder: Path) -> Rules:
    try:
        names = find_benchmark(settings["benchmark"]).names
        return Rules(**{**settings["rules"], "names": names})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no finished settings of a run ({error}).") from error


def _change(pair: tuple[AnswerRecord, AnswerRecord], unit: Unit) -> float:
    return question_giou(pair[1], unit) - question_giou(pair[0], unit)


def _compare_scores(
    pairs: Sequence[tuple[AnswerRecord, AnswerRecord]], rules: tuple[Rules, Rules]
) -> dict[str, tuple[Estimate, Estimate, Difference]]:
    """Scores that both runs have, resampled over the same images."""
    tables, names = [], list[str]()
    for run in (0, 1):
        rows = [image_ratios(asked, rules[run]) for asked in by_image(pair[run] for pair in pairs)]
        names = list(rows[0])
        tables.append(np.array([[row[name] for name in names] for row in rows], dtype=np.float64))
    first, second = bootstrap(tables)
    changes = {name: second.minus(first, column) for column, name in enumerate(names)}
    return {
        name: (first.estimate(column), second.estimate(column), changes[name])
        for column, name in enumerate(names)
        if changes[name].value is not None
    }


def _cards(comparison: Comparison, fetch_image: FetchImage) -> list[Card]:
    """The answers that moved most, of both runs beside the truth."""
    cards = []
    for a, b in comparison.pairs[: 3 * EACH]:
        change = _change((a, b), comparison.unit)
        if not change:
            break  # they are in order: nothing moved from here on
        image = fetch_image(b)
        panels = (
            predicted_panel(a, image, "A"),
            predicted_panel(b, image, "B"),
            true_panel(b, image),
        )
        ious = (question_giou(one, comparison.unit) for one in (a, b))
        title = "IoU {:.2f} to {:.2f}".format(*ious)
        sort = "better in B" if change > 0 else "worse in B"
        cards.append(build_card(sort, title, b, panels))
    return cards
