"""The commands ``pixellm eval BENCHMARK`` and ``pixellm compare``.

Reads options, shows progress and tables, and calls :mod:`pixellm.evaluation`; how answers are
scored is not its business. :func:`add_commands` puts the commands into the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixellm.cli.console import (
    check_json,
    import_quietly,
    load_engine,
    open_console,
    say,
    write_json,
)
from pixellm.cli.judge import (
    BaseUrl,
    JudgeCache,
    JudgeKind,
    JudgeModel,
    JudgeThreshold,
    MaxCost,
    ModelPrice,
    judge_bar,
    open_run_judge,
    read_judge,
)

if TYPE_CHECKING:
    from pixellm.engine import Engine
    from pixellm.engine.jobs import ProcessGroup
    from pixellm.evaluation.baselines import ObjectGuesser
    from pixellm.evaluation.benchmark_run import BenchmarkRun
    from pixellm.evaluation.judge import JudgeSettings
    from pixellm.evaluation.report.judged import JudgedScores
    from pixellm.evaluation.scenes_report import ScenesReport
    from pixellm.evaluation.summary import Summary

_ASKED = {
    "refcoco": "refCOCO: one expression, one mask.",
    "refcoco+": "refCOCO+: one expression without places, one mask.",
    "refcocog": "refCOCOg: one longer expression, one mask.",
    "multi-refcoco": "multi-refCOCO: several expressions about an image, asked together.",
    "multi-refcoco+": "multi-refCOCO+: several expressions without places, asked together.",
    "multi-refcocog": "multi-refCOCOg: several longer expressions, asked together.",
    "grefcoco": "gRefCOCO: expressions for none, one or several objects.",
    "reasonseg": "ReasonSeg: one question that needs reasoning, one mask.",
    "muse": "MUSE: questions that need reasoning about several objects.",
    "coco": "COCO categories: every instance of each category that a photo shows.",
    "photos": "Photos in COCO format: names, places, sizes, kinds, uses, what is not there.",
    "coco-expressions": "Own photos in COCO format: the description of each annotation.",
    "labelme": "Own LabelMe photos: every instance of each label that a photo shows.",
    "jsonl": "Own dialogues, one a line: the first question of each.",
}
"""Benchmark with files -> what it asks, for ``--help``. The table of benchmarks is not imported
for that: it would cost NumPy."""

_SPLITS = {
    "refcoco": "val, testA, testB",
    "refcoco+": "val, testA, testB",
    "refcocog": "val, test",
    "multi-refcoco": "val, testA, testB",
    "multi-refcoco+": "val, testA, testB",
    "multi-refcocog": "val, test",
    "grefcoco": "val, testA, testB",
    "reasonseg": "val, test",
    "muse": "val, test_less, test_many",
    "coco": "val, train",
    "photos": "val, train, test",
    "coco-expressions": "val, train, test",
    "labelme": "val, train, test",
    "jsonl": "val, train, test",
}

_BESIDE = {
    "muse": "pixellm eval muse --data set/muse_val.json --images photos",
    "jsonl": "pixellm eval jsonl --data questions.jsonl",
}
"""Benchmark -> one more example, of a single file."""

_Model = Annotated[str, typer.Option(help="nano, a folder, a run's folder, or a hub id.")]
_Split = Annotated[str, typer.Option(help="Part of the data set.")]
_Data = Annotated[
    Path, typer.Option(help="Folder that holds the data sets; for muse and jsonl also a file.")
]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
_Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
_Mode = Annotated[
    str,
    typer.Option(help="free: the model writes its answers; forced: the true texts are given."),
]
_Protocol = Annotated[
    str, typer.Option(help="strict, or released: as the authors' code scores, defects included.")
]
_Limit = Annotated[int, typer.Option(min=0, help="The first dialogues only; 0 for all.")]
_BatchSize = Annotated[int, typer.Option(min=1, help="Dialogues answered, and written, together.")]
_Out = Annotated[
    Path | None,
    typer.Option(help="Folder for answers and report; the same command goes on where it stopped."),
]
_JUDGED_EXAMPLES = (
    "\n\n    pixellm eval muse --model nano --data data --judge similarity"
    "\n\n    pixellm eval muse --data data --judge llm --judge-model gpt-4o-mini "
    "--base-url https://api.openai.com/v1 --max-cost 2"
)


def add_commands(app: typer.Typer, evaluate_app: typer.Typer) -> None:
    """Add ``eval BENCHMARK`` for all benchmarks, and ``compare``, to a command line."""
    evaluate_app.command(
        "scenes",
        epilog="Examples:\n\n    pixellm eval scenes --split test --json scenes.json"
        "\n\n    pixellm eval scenes --model runs/nano --split test_style --num 100 --seed 7"
        "\n\n    pixellm eval scenes --num 100 --out scenes-report"
        "\n\n    pixellm eval scenes --model largest_object",
    )(evaluate_scenes)
    for name in _ASKED:
        evaluate_app.command(
            name,
            help=f"{_ASKED[name]} Writes a report with 95 % intervals and images. "
            f"Splits: {_SPLITS[name]}.",
            epilog=f"Examples:\n\n    pixellm eval {name} --model nano --data data"
            f"\n\n    pixellm eval {name} --model runs/mine --split val --limit 100 --out report"
            + (f"\n\n    {_BESIDE[name]}" if name in _BESIDE else "")
            + (_JUDGED_EXAMPLES if name == "muse" else ""),
        )(evaluate_muse if name == "muse" else _benchmark_command(name))
    app.command(
        epilog="Examples:\n\n    pixellm compare report-nano report-mine"
        "\n\n    pixellm compare report-nano report-mine --out difference"
    )(compare)


def _benchmark_command(name: str) -> Callable[..., None]:
    """The command of a benchmark with files."""

    def command(
        model: _Model = "nano",
        split: _Split = "val",
        data: _Data = Path("data"),
        mode: _Mode = "",
        protocol: _Protocol = "strict",
        limit: _Limit = 0,
        out: _Out = None,
        batch_size: _BatchSize = 16,
        device: _Device = "auto",
        dtype: _Dtype = "auto",
    ) -> None:
        run = _describe_run(name, model, split, mode, protocol, limit)
        run = replace(run, data=data)
        _run(run, out or Path(run.folder_name()), batch_size, device, dtype)

    return command


def evaluate_muse(
    model: _Model = "nano",
    split: _Split = "val",
    data: _Data = Path("data"),
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the photos, if not with the data sets or beside the file."),
    ] = None,
    mode: _Mode = "",
    protocol: _Protocol = "strict",
    limit: _Limit = 0,
    out: _Out = None,
    batch_size: _BatchSize = 16,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    judge: JudgeKind = "none",
    judge_model: JudgeModel = "",
    base_url: BaseUrl = "",
    judge_threshold: JudgeThreshold = 3.0,
    judge_cache: JudgeCache = Path("judge_cache.sqlite"),
    max_cost: MaxCost = None,
    price: ModelPrice = "",
) -> None:
    """Score a model on MUSE, without and with a judge."""
    judging = read_judge(
        judge, judge_model, base_url, judge_threshold, judge_cache, max_cost, price
    )
    run = _describe_run("muse", model, split, mode, protocol, limit)
    run = replace(run, data=data, images=images)
    _run(run, out or Path(run.folder_name()), batch_size, device, dtype, judging=judging)


def evaluate_scenes(
    model: Annotated[
        str,
        typer.Option(
            help="nano, a folder, a run's folder, or a hub id; or a guess that reads no question: "
            "largest_object, all_objects."
        ),
    ] = "nano-scenes",
    split: Annotated[
        str, typer.Option(help="train, val, test, test_combination, test_style.")
    ] = "test",
    num: Annotated[int, typer.Option(min=1, help="Images.")] = 500,
    dialogues: Annotated[int, typer.Option(min=1, help="Dialogues about each image.")] = 4,
    seed: Annotated[int, typer.Option(help="Another seed gives other scenes.")] = 0,
    mode: _Mode = "",
    protocol: _Protocol = "strict",
    limit: _Limit = 0,
    out: _Out = None,
    batch_size: _BatchSize = 16,
    json: Annotated[str, typer.Option(help="JSON file; - for standard output.")] = "",
    device: _Device = "auto",
    dtype: _Dtype = "auto",
) -> None:
    """Score a model on drawn scenes, with 95 % intervals; with --out, write a report too."""
    from pixellm.cli.display import scored_progress
    from pixellm.engine.jobs import ProcessGroup
    from pixellm.scenes.dataset import ScenesDataset

    check_json(json, ("benchmark", "split", "groups"))
    ScenesDataset(split, seed, num, dialogues)  # refuses what can't be drawn before a model loads
    if out is None and (mode or limit or protocol != "strict"):
        raise ValueError("--mode, --protocol and --limit make a report; add --out FOLDER.")
    run = _describe_run("scenes", model, split, mode, protocol, limit)
    run = replace(run, seed=seed, num_scenes=num, dialogues_per_image=dialogues)
    if out is not None:
        records = _run(run, out, batch_size, device, dtype, aside=json == "-")
        report = import_quietly("pixellm.evaluation.scenes").report_records(records, split, seed)
    else:
        engine = _open_predictor(run, device, dtype)
        scenes = import_quietly("pixellm.evaluation.scenes")
        with scored_progress(open_console(stderr=True), "scenes") as progress:
            report = scenes.evaluate_scenes(
                engine, split, seed, num, batch_size, progress, dialogues_per_image=dialogues
            )
    if ProcessGroup.from_environment().number == 0:
        _show_scenes(report, json, {"model": model, "dialogues_per_image": dialogues})


def compare(
    run_a: Annotated[Path, typer.Argument(help="Folder of the first run.")],
    run_b: Annotated[Path, typer.Argument(help="Folder of the second run.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for compare.json and compare.html.")
    ] = None,
) -> None:
    """Compare two runs: paired differences with intervals, and the answers that moved most."""
    from pixellm.cli.display import print_table
    from pixellm.evaluation.report.compare import check_comparison, compare_runs, write_comparison

    if out is not None:
        check_comparison(out)
    comparison = compare_runs(run_a, run_b)
    console = open_console()
    console.print(comparison.describe(), highlight=False, soft_wrap=True, markup=False)
    for table in (comparison.table(), comparison.moved()):
        print_table(console, table)
    if out is not None:
        from pixellm.evaluation.benchmark_run import image_source, run_of_folder

        run = run_of_folder(run_b)
        questions = run.open() if run.name == "scenes" else None
        for path in write_comparison(out, comparison, image_source(questions)):
            say(f"Wrote {path}")


def _describe_run(
    name: str, model: str, split: str, mode: str, protocol: str, limit: int
) -> BenchmarkRun:
    """The run that the options describe; bad ones are refused before anything is read."""
    from pixellm.evaluation.benchmark_run import BenchmarkRun

    chosen: Any = mode or None
    rules: Any = protocol
    return BenchmarkRun(name, model, split, mode=chosen, protocol=rules, limit=limit)


def _run(
    run: BenchmarkRun,
    out: Path,
    batch_size: int,
    device: str,
    dtype: str,
    *,
    aside: bool = False,
    judging: JudgeSettings | None = None,
) -> Any:
    """Run a benchmark with a bar, judge it where asked to, show it, and give back its records.

    With ``aside`` the tables go to standard error, as standard output is to hold JSON.
    """
    from pixellm.cli.display import scored_progress
    from pixellm.engine.jobs import ProcessGroup
    from pixellm.evaluation.benchmark_run import run_benchmark
    from pixellm.evaluation.judged_run import judge_run

    group = ProcessGroup.from_environment()
    device = _own_device(device, group)
    judge = judged = None
    if judging is not None and group.number == 0:
        judge = open_run_judge(run, judging)
    run = _with_numbers(run, device, dtype)
    try:
        bar = scored_progress(open_console(stderr=True), "dialogues")
        with bar if group.number == 0 else nullcontext() as progress:
            summary, records = run_benchmark(
                run,
                out,
                lambda: _open_predictor(run, device, dtype),
                batch_size=batch_size,
                group=group,
                progress=progress,
            )
        if judging is not None and judge is not None:
            with judge_bar(judging) as rated:
                judged = judge_run(run, out, records, summary, judge, judging, rated)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped; the same command goes on from here.") from None
    if group.number == 0:
        _show_run(run, out, summary, judged, aside=aside)
        say(f"Wrote {out / 'report.html'}, report.md and report.json", err=aside)
    return records


def _with_numbers(run: BenchmarkRun, device: str, dtype: str) -> BenchmarkRun:
    """The run with what decides a model's numbers: its floating type and longest answer."""
    from pixellm.evaluation.baselines import GUESSES

    if run.model in GUESSES:
        return run
    engine = import_quietly("pixellm.engine")
    floating = str(engine.model_dtype(run.model, engine.pick_device(device), dtype))
    return replace(run, dtype=floating.removeprefix("torch."), max_new_tokens=engine.MAX_NEW_TOKENS)


def _open_predictor(run: BenchmarkRun, device: str, dtype: str) -> Engine | ObjectGuesser:
    """The model of a run, or its guess."""
    from pixellm.evaluation.baselines import GUESSES

    return run.guesser() if run.model in GUESSES else load_engine(run.model, device, dtype)


def _show_run(
    run: BenchmarkRun, out: Path, summary: Summary, judged: JudgedScores | None, *, aside: bool
) -> None:
    """One sentence and the tables of a run, the judge's effect first."""
    from pixellm.cli.display import print_table
    from pixellm.evaluation.report.judged import describe_judge, effect_table
    from pixellm.evaluation.report.tables import all_tables, describe_run
    from pixellm.evaluation.run_folder import read_settings

    headline = run.headline
    lead = describe_run(read_settings(out), summary)
    tables = all_tables(summary, headline)
    if judged is not None:
        lead = f"{lead} {describe_judge(judged)}"
        tables.insert(0, effect_table(judged, headline))
    console = open_console(stderr=aside)
    console.print(lead, highlight=False, soft_wrap=True, markup=False)
    for table in tables:
        print_table(console, table)


def _show_scenes(report: ScenesReport, target: str, about: dict[str, Any]) -> None:
    """Tables of a report on scenes, and its JSON where that is wanted."""
    from pixellm.cli.display import print_scenes_report

    print_scenes_report(open_console(stderr=target == "-"), report)
    write_json({**about, **report.to_dict()}, target)


def _own_device(device: str, group: ProcessGroup) -> str:
    """With several processes and GPUs each takes its own."""
    if group.count > 1 and device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            return f"cuda:{group.local % torch.cuda.device_count()}"
    return device
