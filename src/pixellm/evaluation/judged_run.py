"""A run that is answered, and then judged: scores without and with a judge in one report.

The answers of a run stay as they are; another judge, or none, can be tried on the same folder. It
knows no language model and prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pixellm.evaluation.benchmark_run import BenchmarkRun, image_source
from pixellm.evaluation.judge import Judge, JudgeSettings
from pixellm.evaluation.judgement import judge_records
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.report import write_report
from pixellm.evaluation.report.judged import JudgedScores
from pixellm.evaluation.run_folder import read_settings
from pixellm.evaluation.summary import Summary, summarize
from pixellm.files import locked
from pixellm.llm.run import RequestProgress


def check_judging(run: BenchmarkRun) -> None:
    """Make sure that a judge has something to say about a run.

    Raises:
        ValueError: texts are given, or masks are not counted one by one.
    """
    if run.rules.mode != "free":
        raise ValueError(
            f"With --mode {run.rules.mode} the texts are given, so there is nothing to judge; "
            "use --mode free or --judge none."
        )
    if run.rules.unit != "slots":
        raise ValueError(f"{run.name} joins the masks of an answer, so no judge rates each.")


def judge_run(
    run: BenchmarkRun,
    folder: Path,
    records: Sequence[AnswerRecord],
    summary: Summary,
    judge: Judge,
    settings: JudgeSettings,
    progress: RequestProgress | None = None,
) -> JudgedScores:
    """Judge the answers of a run, and write its report again with both scores.

    Scores of the released protocol come from logits, which a run does not keep: the judge's
    effect is always counted strictly.

    Args:
        run: what was evaluated.
        folder: of the run.
        records: all of its answers, as :func:`~pixellm.evaluation.benchmark_run.run_benchmark`
            gives them.
        summary: their scores.
        judge: rates.
        settings: of the judge, for the threshold and the report.
        progress: told about the judge's work.

    Returns:
        The scores without and with the judge.

    Raises:
        ValueError: nothing to judge, see :func:`check_judging`, or the judge's money is spent.
        OSError: the judge can't be asked, the report not be written, or another process writes in
            the folder.
    """
    check_judging(run)
    questions = run.open()
    with locked(folder):
        judgement = judge_records(judge, records, questions, settings.threshold, progress)
        rules, by_kind = replace(run.rules, protocol="strict"), run.benchmark.classes_are_kinds
        plain = summary
        if run.rules != rules:
            plain = summarize(records, rules, classes_are_kinds=by_kind)
        with_judge = summarize(judgement.records, rules, classes_are_kinds=by_kind)
        judged = JudgedScores(settings.describe(), judgement, plain, with_judge)
        headline, source = run.headline, image_source(questions)
        write_report(folder, read_settings(folder), summary, records, headline, source, judged)
    return judged
