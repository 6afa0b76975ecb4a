"""The commands that compare: ``score``, ``data questions``, ``ablate`` and ``export-lm``.

Reads options, shows progress and tables, and calls the library; how anything is scored or trained
is not its business. :func:`add_commands` puts the commands into the command line.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixellm.cli.console import check_json, import_quietly, open_console, say, write_json
from pixellm.cli.judge import (
    BaseUrl,
    JudgeCache,
    JudgeKind,
    JudgeModel,
    JudgeThreshold,
    MaxCost,
    ModelPrice,
    judge_bar,
    read_judge,
)

if TYPE_CHECKING:
    from pixellm.evaluation.benchmark_run import BenchmarkRun

_Benchmark = Annotated[
    str, typer.Option(help="scenes, muse, refcoco, reasonseg, coco ...; see `pixellm eval`.")
]
_Data = Annotated[Path, typer.Option(help="Folder that holds the data sets; not for scenes.")]
_Split = Annotated[str, typer.Option(help="Split of the benchmark; its usual one if empty.")]
_Num = Annotated[int, typer.Option(min=1, help="Images, where scenes are drawn.")]
_Dialogues = Annotated[int, typer.Option(min=1, help="Dialogues about each drawn image.")]
_Seed = Annotated[int, typer.Option(help="Of drawn scenes.")]
_Limit = Annotated[int, typer.Option(min=0, help="The first dialogues only; 0 for all.")]


def add_commands(app: typer.Typer, data_app: typer.Typer) -> None:
    """Add the commands to a command line; ``questions`` goes to its ``data`` group."""
    app.command(
        epilog="Examples:\n\n    pixellm score lisa.jsonl --benchmark muse --data data --split val"
        "\n\n    pixellm score lisa.jsonl --num 100 --protocol released --judge similarity"
        "\n\n    pixellm score lisa.jsonl --judge llm --judge-model gpt-4o-mini --max-cost 2 "
        "--base-url https://api.openai.com/v1"
    )(score)
    data_app.command(
        epilog="Example:\n\n    pixellm data questions --benchmark scenes --num 100 --out asked"
    )(questions)
    app.command(
        epilog="Examples:\n\n    pixellm ablate ablation --minutes 600"
        "\n\n    pixellm ablate ablation/base ablation/alpha_1 "
        "--seeds 5 --set stages.0.steps=2000"
    )(ablate)
    app.command(
        "export-lm",
        epilog="Example:\n\n    pixellm export-lm runs/mine --out mine-lm",
    )(export_lm)


def score(
    predictions: Annotated[Path, typer.Argument(help="JSONL; see docs/external-predictions.md.")],
    benchmark: _Benchmark = "scenes",
    data: _Data = Path("data"),
    split: _Split = "",
    num: _Num = 500,
    dialogues: _Dialogues = 4,
    seed: _Seed = 0,
    limit: _Limit = 0,
    protocol: Annotated[str, typer.Option(help="strict or released.")] = "strict",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Questions without a line count as no mask.")
    ] = False,
    judge: JudgeKind = "none",
    judge_model: JudgeModel = "",
    base_url: BaseUrl = "",
    judge_threshold: JudgeThreshold = 3.0,
    judge_cache: JudgeCache = Path("judge_cache.sqlite"),
    max_cost: MaxCost = None,
    price: ModelPrice = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder for a report that `pixellm compare` reads; new.")
    ] = None,
    json: Annotated[str, typer.Option(help="JSON file; - for standard output.")] = "",
) -> None:
    """Score any system's predictions, with 95 % intervals, with and without a judge."""
    from pixellm.cli.display import print_table
    from pixellm.evaluation.external import ExternalPredictions, score_predictions
    from pixellm.evaluation.external_report import (
        describe_scores,
        scores_to_dict,
        write_external_report,
    )
    from pixellm.evaluation.judge import open_judge
    from pixellm.files import check_new_folder

    check_json(json, ("settings", "num_missing", "headline"))
    if out is not None:
        check_new_folder(out)
    settings = read_judge(
        judge, judge_model, base_url, judge_threshold, judge_cache, max_cost, price
    )
    opened = open_judge(settings)
    answers = ExternalPredictions(predictions)
    run = _describe_run(
        benchmark, data, split, num, dialogues, seed, limit, predictions.stem, protocol
    )
    samples = run.open()
    with nullcontext() if opened is None else judge_bar(settings) as progress:
        scored = score_predictions(
            answers,
            samples,
            run.rules,
            judge=opened,
            threshold=judge_threshold,
            allow_missing=allow_missing,
            progress=progress,
        )
    console = open_console(stderr=json == "-")
    lead, tables = describe_scores(run, scored)
    console.print(lead, highlight=False, soft_wrap=True, markup=False)
    for table in tables:
        print_table(console, table)
    write_json(scores_to_dict(run, scored), json)
    if out is not None:
        write_external_report(out, run, scored, samples)
        say(f"Wrote {out / 'report.html'}, report.md and report.json", err=json == "-")


def questions(
    out: Annotated[Path, typer.Option(help="Folder for questions.jsonl; new or empty.")],
    benchmark: _Benchmark = "scenes",
    data: _Data = Path("data"),
    split: _Split = "",
    num: _Num = 500,
    dialogues: _Dialogues = 4,
    seed: _Seed = 0,
    limit: _Limit = 0,
) -> None:
    """Write a benchmark's questions for another system to answer; see `pixellm score`."""
    from pixellm.evaluation.external_questions import write_questions
    from pixellm.files import check_new_folder

    check_new_folder(out)
    run = _describe_run(benchmark, data, split, num, dialogues, seed, limit)
    written = write_questions(run.open(), out)
    say(f"{written} questions: {out / 'questions.jsonl'}")


def ablate(
    recipes: Annotated[
        list[Path],
        typer.Argument(help="YAML files, or bundled recipes: ablation, ablation_losses."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for runs, results and table.")] = Path(
        "runs/ablation"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each recipe.")] = 3,
    minutes: Annotated[
        float,
        typer.Option(min=0, help="What all runs may take together; 0 leaves the recipes' steps."),
    ] = 0.0,
    split: Annotated[str, typer.Option(help="Of the scenes that are scored.")] = "test",
    num: Annotated[int, typer.Option(min=1, help="Images that are scored.")] = 200,
    dialogues: _Dialogues = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 16,
    device: Annotated[str, typer.Option(help="For scoring: auto, cpu, cuda.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="For scoring: auto, float32, bfloat16, float16.")
    ] = "float32",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Change a setting of all recipes."),
    ] = None,
) -> None:
    """Train variants of a recipe, score them alike, write one table; goes on where it stopped."""
    from pixellm.cli.display import TrainDisplay
    from pixellm.scenes.dataset import ScenesDataset

    ScenesDataset(split, 0, num, dialogues)  # refuses what can't be drawn before anything trains
    library = import_quietly("pixellm.training.ablation")
    variants = library.load_variants(recipes, overrides or ())
    settings = library.AblationSettings(
        out, seeds, minutes or None, split, num, dialogues, batch_size, device, dtype
    )
    try:
        with TrainDisplay(open_console(stderr=True)) as display:
            table = library.ablate(variants, settings, on_event=display, on_run=_say_run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped; the same command goes on from here.") from None
    say(table.read_text(encoding="utf-8"))
    say(f"Wrote {table} and {table.with_suffix('.json')}")


def export_lm(
    checkpoint: Annotated[str, typer.Argument(help="nano, a folder, a run's folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write a model's language model alone, for lm-evaluation-harness, VLMEvalKit and others."""
    from pixellm.files import check_new_folder

    check_new_folder(out)
    pick_dtype = import_quietly("pixellm.engine").pick_dtype
    library = import_quietly("pixellm.checkpoint.export_lm")
    import torch

    chosen = pick_dtype(dtype, torch.device("cpu"))
    say(f"Wrote {library.export_language_model(checkpoint, out, dtype=chosen)}")


def _describe_run(
    benchmark: str,
    data: Path,
    split: str,
    num: int,
    dialogues: int,
    seed: int,
    limit: int,
    system: str = "",
    protocol: Any = "strict",
) -> BenchmarkRun:
    """The questions that the options describe, answered by a system of that name."""
    from pixellm.evaluation.benchmark_run import BenchmarkRun
    from pixellm.evaluation.benchmarks import find_benchmark

    if protocol == "released" and find_benchmark(benchmark).released != "muse":
        raise ValueError(
            f"The release has no scorer of its own for {benchmark}; use --protocol strict."
        )
    return BenchmarkRun(
        benchmark,
        system,
        split,
        data,
        mode="free",
        protocol=protocol,
        limit=limit,
        seed=seed,
        num_scenes=num,
        dialogues_per_image=dialogues,
    )


def _say_run(name: str, seed: int, number: int, total: int) -> None:
    say(f"Run {number} of {total}: {name}, seed {seed}", err=True)
