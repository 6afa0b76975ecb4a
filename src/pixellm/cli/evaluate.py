"""The commands ``eval BENCHMARK`` and ``compare``: runs of models.

Reads options, shows progress and tables, and calls :mod:`pixellm.evaluation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from pixellm.cli.console import check_json, import_quietly, open_console, say, write_json
from pixellm.cli.options import FileOptions, Json, JudgeOptions, ModelOptions, SceneOptions, spread

if TYPE_CHECKING:
    from pixellm.engine.jobs import ProcessGroup
    from pixellm.evaluation.benchmarks import Benchmark
    from pixellm.evaluation.evaluate import BenchmarkRun, Evaluation
    from pixellm.evaluation.judge import Judge
    from pixellm.evaluation.judgement import JudgedScores
    from pixellm.llm.run import RequestProgress
    from pixellm.report.page import Report, Table

app = typer.Typer()

_REPORT_KEYS = ("settings", "versions", "headline")

_EXAMPLES = {
    "scenes": (
        "--split test --json scenes.json",
        "--model runs/nano --split test_style --num 100 --seed 7",
        "--model largest_object",
    ),
    "muse": (
        "--model nano --data data",
        "--data set/muse_val.json --images photos",
        "--model nano --data data --judge similarity",
        "--data data --judge llm --judge-model gpt-4o-mini "
        "--base-url https://api.openai.com/v1 --max-cost 2",
    ),
    "jsonl": ("--data questions.jsonl",),
    "coco": (
        "--model nano --data photos",
        "--data cvat --with annotations=annotations/instances_default.json --images cvat/images",
    ),
}
_USUAL_EXAMPLES = ("--model nano --data data", "--model runs/mine --limit 100 --out report")

Split = Annotated[str, Option(help="Part of the data set; the benchmark's if not given.")]
Protocol = Annotated[
    str, Option(help="strict, or released: as the authors' code scores, defects included.")
]
Limit = Annotated[int, Option(min=0, help="The first dialogues only; 0 for all.")]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What of a benchmark is answered, how it is scored, and where that goes."""

    split: Split = ""
    mode: Annotated[
        str, Option(help="free: the model writes its answers; forced: the true texts are given.")
    ] = ""
    protocol: Protocol = "strict"
    limit: Limit = 0
    out: Annotated[
        Path | None,
        Option(
            help="Folder for answers and report; the same command goes on where it stopped. A "
            "name made of the settings if not given."
        ),
    ] = None
    json: Json = ""
    batch_size: Annotated[int, Option(min=1, help="Dialogues answered, and written, together.")] = (
        16
    )


def benchmark_commands() -> typer.Typer:
    """The commands ``eval BENCHMARK``, one for each row of the table of benchmarks."""
    from pixellm.evaluation.benchmarks import BENCHMARKS

    commands = typer.Typer()
    for benchmark in BENCHMARKS.values():
        examples = _EXAMPLES.get(benchmark.name, _USUAL_EXAMPLES)
        lines = (f"\n\n    pixellm eval {benchmark.name} {words}" for words in examples)
        commands.command(
            benchmark.name,
            help=f"{benchmark.asks} Writes a report with 95 % intervals and images. "
            f"Splits: {', '.join(benchmark.splits)}; {benchmark.split} if not given.",
            epilog=f"Examples:{''.join(lines)}",
        )(_command_of(benchmark))
    return commands


def _command_of(benchmark: Benchmark) -> Callable[..., None]:
    """The command of a benchmark, with the options that it has a use for."""

    def drawn(place: SceneOptions, model: ModelOptions, how: RunOptions) -> None:
        _evaluate(benchmark.name, place, model, how)

    def filed(place: FileOptions, model: ModelOptions, how: RunOptions) -> None:
        _evaluate(benchmark.name, place, model, how)

    def judged(
        place: FileOptions, model: ModelOptions, how: RunOptions, judge: JudgeOptions
    ) -> None:
        _evaluate(benchmark.name, place, model, how, judge)

    if benchmark.name == "scenes":
        return spread(drawn, model="nano-scenes")
    return spread(judged if benchmark.name == "muse" else filed)


@app.command(
    epilog="Examples:\n\n    pixellm compare report-nano report-mine"
    "\n\n    pixellm compare report-nano report-mine --out difference"
)
def compare(
    run_a: Annotated[Path, Argument(help="Folder of the first run.")],
    run_b: Annotated[Path, Argument(help="Folder of the second run.")],
    out: Annotated[Path | None, Option(help="Folder for compare.json, .md and .html.")] = None,
) -> None:
    """Compare two runs: paired differences with intervals, and the answers that moved most."""
    from pixellm.evaluation.compare import KEYS, compare_runs, comparison_report
    from pixellm.report.page import check_report, write_report

    if out is not None:
        check_report(out, "compare", KEYS)
    comparison = compare_runs(run_a, run_b)
    _print(comparison.describe(), (comparison.table(), comparison.moved()))
    if out is not None:
        from pixellm.evaluation.cards import image_source
        from pixellm.evaluation.evaluate import run_of_folder

        run = run_of_folder(run_b)
        asked = run.open() if run.name == "scenes" else None
        report = comparison_report(comparison, image_source(asked))
        for path in write_report(out, "compare", report):
            say(f"Wrote {path}")


def _evaluate(
    name: str,
    place: FileOptions | SceneOptions,
    model: ModelOptions,
    how: RunOptions,
    judging: JudgeOptions | None = None,
) -> None:
    """Run a benchmark with a bar, judge it where asked to, report and show it."""
    from pixellm.cli.display import scored_progress
    from pixellm.engine.jobs import ProcessGroup
    from pixellm.evaluation.baselines import GUESSES
    from pixellm.evaluation.evaluate import evaluate, with_numbers
    from pixellm.evaluation.judgement import check_judging, judge_evaluation
    from pixellm.evaluation.left_out import NothingAnsweredError
    from pixellm.report.figures import check_plots
    from pixellm.report.page import check_report

    check_json(how.json, _REPORT_KEYS)
    run = _describe_run(name, place, model, how)
    out, group = how.out or Path(run.folder_name()), ProcessGroup.from_environment()
    model = replace(model, device=_own_device(model.device, group))
    judge = judged = None
    if group.number == 0:
        check_plots()
        check_report(out, "report", _REPORT_KEYS)
        if judging is not None:
            if judging.judge != "none":
                check_judging(run)
            judge = judging.open()
    questions = run.open()  # missing files are told before a model takes its seconds
    try:
        if run.model not in GUESSES:
            import_quietly("pixellm.engine.loading")
        run = with_numbers(run, model.device, model.dtype, model.max_new_tokens)
        bar = scored_progress(open_console(stderr=True), "dialogues")
        with bar if group.number == 0 else nullcontext() as progress:
            evaluation = evaluate(
                run,
                out,
                model.load,
                questions=questions,
                batch_size=how.batch_size,
                group=group,
                progress=progress,
            )
        if group.number == 0:
            report = write_run_report(out, evaluation)
        if judge is not None:
            with judge_bar(judge) as rated:
                judged = judge_evaluation(evaluation, judge, rated)
            report = write_run_report(out, evaluation, judged)
    except NothingAnsweredError as error:
        say(str(error), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped; the same command goes on from here.") from None
    if group.number == 0:
        aside = how.json == "-"
        show(evaluation, judged, aside=aside)
        say(f"Wrote {out / 'report.html'}, report.md and report.json", err=aside)
        write_json(dict(report.values), how.json)


def _describe_run(
    name: str, place: FileOptions | SceneOptions, model: ModelOptions, how: RunOptions
) -> BenchmarkRun:
    """The run that the options describe; bad ones are refused before anything is read."""
    from pixellm.evaluation.evaluate import BenchmarkRun

    mode: Any = how.mode or None
    protocol: Any = how.protocol
    return BenchmarkRun(
        name,
        model.model,
        how.split,
        mode=mode,
        protocol=protocol,
        limit=how.limit,
        quantize=model.quantize or "",
        temperature=model.temperature,
        **place.values(),
    )


def write_run_report(
    folder: Path, evaluation: Evaluation, judged: JudgedScores | None = None
) -> Report:
    """What a run's report says, which lies in its folder then."""
    from pixellm.evaluation.report import report_of
    from pixellm.report.page import write_report

    report = report_of(evaluation, judged)
    write_report(folder, "report", report)
    return report


def show(
    evaluation: Evaluation, judged: JudgedScores | None, *, aside: bool, missing: int = 0
) -> None:
    """One sentence and the tables of a run, the judge's effect first."""
    from pixellm.evaluation.judged import describe_judge, effect_table
    from pixellm.evaluation.tables import all_tables, describe_run

    headline = evaluation.run.headline
    bad_rows = evaluation.questions.bad_rows
    lead = describe_run(evaluation.settings, evaluation.summary, evaluation.left_out, bad_rows)
    if missing:
        lead += f" {missing} questions without a prediction count as no mask."
    tables = all_tables(evaluation.summary, headline)
    if judged is not None:
        lead = f"{lead} {describe_judge(judged)}"
        tables.insert(0, effect_table(judged, headline))
    _print(lead, tables, aside=aside)


def _print(lead: str, tables: Iterable[Table], *, aside: bool = False) -> None:
    """A sentence and tables, on standard error where standard output is for something else."""
    from pixellm.cli.display import print_table

    console = open_console(stderr=aside)
    console.print(lead, highlight=False, soft_wrap=True, markup=False)
    for table in tables:
        print_table(console, table)


@contextmanager
def judge_bar(judge: Judge) -> Iterator[RequestProgress]:
    """A bar over the answers that a judge rates; at its end, what all of its ratings have cost."""
    from pixellm.cli.display import judge_progress
    from pixellm.evaluation.judge import LLMJudge

    with judge_progress(open_console(stderr=True)) as bar:
        yield bar
    if isinstance(judge, LLMJudge):
        spent = judge.store.spent()
        say(f"All ratings in {judge.store.path} have cost {spent:.4f} USD.", err=True)


def _own_device(device: str, group: ProcessGroup) -> str:
    """With several processes and GPUs each takes its own."""
    if group.count > 1 and device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            return f"cuda:{group.local % torch.cuda.device_count()}"
    return device
