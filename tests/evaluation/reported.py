"""What `pixellm eval` does with a benchmark: answers, scores, and a report in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixellm.evaluation.evaluate import BenchmarkRun, evaluate
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.report import report_of
from pixellm.evaluation.summary import Summary
from pixellm.report.page import check_report, write_report


def run_benchmark(
    run: BenchmarkRun,
    folder: Path,
    load: Callable[[], Any],
    *,
    report: bool = False,
    **options: Any,
) -> tuple[Summary, list[AnswerRecord]]:
    """The scores and the answers; the report, which takes longest, where it is looked at."""
    if report:
        check_report(folder, "report", ("settings", "headline"))
    evaluation = evaluate(run, folder, load, **options)
    if report:
        write_report(folder, "report", report_of(evaluation))
    return evaluation.summary, evaluation.records
