"""Tables, values and a report folder for another system's scores, with and without a judge.

Puts scored records into the forms of every benchmark's report, so that another system stands in
the same tables and ``pixellm compare`` reads both. It scores nothing and prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixellm.evaluation.benchmark_run import BenchmarkRun, image_source
from pixellm.evaluation.external import ExternalScores
from pixellm.evaluation.report import write_report
from pixellm.evaluation.report.tables import all_tables, describe_run
from pixellm.evaluation.run_folder import open_run, write_answers
from pixellm.evaluation.summary import Summary, summarize
from pixellm.files import check_new_folder
from pixellm.report.page import Table
from pixellm.types import Sample


def summarize_scores(run: BenchmarkRun, scored: ExternalScores) -> tuple[Summary, Summary | None]:
    """All scores without the judge, and with it where there was one."""
    options = {"classes_are_kinds": run.benchmark.classes_are_kinds}
    plain = summarize(scored.records, run.rules, **options)
    if scored.judgement is None:
        return plain, None
    return plain, summarize(list(scored.judgement.records), run.rules, **options)


def describe_scores(run: BenchmarkRun, scored: ExternalScores) -> tuple[str, list[Table]]:
    """What a terminal shows: one sentence, and the tables of a benchmark.

    Where there was a judge, the first table has the headline without and with it.
    """
    plain, judged = summarize_scores(run, scored)
    lead = describe_run(run.settings(), plain)
    if scored.num_missing:
        lead += f" {scored.num_missing} questions without a prediction count as no mask."
    tables = all_tables(plain, run.benchmark.headline)
    if judged is not None and scored.judgement is not None:
        summary = scored.judgement.summary
        names = run.benchmark.headline
        rows = [(name, str(plain.score(name)), str(judged.score(name))) for name in names]
        header = ("score", "without judge", f"with judge {summary['judge']}")
        tables.insert(0, Table("The judge's effect", [header, *rows], "judge"))
        counts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in summary.items())
        lead += f" {counts[0].upper()}{counts[1:]}."
    return lead, tables


def scores_to_dict(run: BenchmarkRun, scored: ExternalScores) -> dict[str, Any]:
    """Everything but the single answers, as values that JSON knows."""
    plain, judged = summarize_scores(run, scored)
    return {
        "settings": run.settings(),
        "num_missing": scored.num_missing,
        "headline": [*run.benchmark.headline],
        "without_judge": plain.to_dict(),
        "with_judge": None if judged is None else judged.to_dict(),
        "judge": None if scored.judgement is None else scored.judgement.summary,
    }


def write_external_report(
    folder: Path, run: BenchmarkRun, scored: ExternalScores, samples: Sequence[Sample]
) -> list[Path]:
    """Write the answers and the report of a benchmark's run; its scores are those without a judge.

    Args:
        folder: must be new or empty.
        run: the benchmark; its model is what the system is called.
        scored: the predictions.
        samples: the questions, for the images of the gallery.

    Returns:
        The report's files.

    Raises:
        FileExistsError: the folder is not empty.
        OSError: it can't be written to.
    """
    check_new_folder(folder)
    open_run(folder, run.settings())
    write_answers(folder, scored.records, run.model)
    summary, _ = summarize_scores(run, scored)
    return write_report(
        folder,
        run.settings(),
        summary,
        scored.records,
        run.benchmark.headline,
        image_source(samples),
    )
