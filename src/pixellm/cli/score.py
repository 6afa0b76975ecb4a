"""The commands ``score`` and ``data questions``: other systems' predictions of a benchmark."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from pixellm.cli import data
from pixellm.cli.console import check_json, say, write_json
from pixellm.cli.evaluate import Limit, Protocol, Split, judge_bar, show, write_run_report
from pixellm.cli.options import FileOptions, Json, JudgeOptions, SceneOptions, spread

if TYPE_CHECKING:
    from pixellm.evaluation.evaluate import BenchmarkRun

app = typer.Typer()

_Benchmark = Annotated[
    str, Option(help="scenes, muse, refcoco, reasonseg, coco ...; see `pixellm eval`.")
]


@app.command(
    epilog="Examples:\n\n    pixellm score lisa.jsonl --benchmark muse --data data --split val"
    "\n\n    pixellm score lisa.jsonl --num 100 --protocol released --judge similarity"
    "\n\n    pixellm score lisa.jsonl --judge llm --judge-model gpt-4o-mini --max-cost 2 "
    "--base-url https://api.openai.com/v1"
)
@spread
def score(
    predictions: Annotated[
        Path,
        Argument(help="JSONL; its form: https://pixellm.github.io/pixellm/external-predictions/"),
    ],
    drawn: SceneOptions,
    place: FileOptions,
    judging: JudgeOptions,
    benchmark: _Benchmark = "scenes",
    split: Split = "",
    limit: Limit = 0,
    protocol: Protocol = "strict",
    allow_missing: Annotated[
        bool, Option("--allow-missing", help="Questions without a line count as no mask.")
    ] = False,
    out: Annotated[
        Path | None, Option(help="Folder for a report that `pixellm compare` reads; new.")
    ] = None,
    json: Json = "",
) -> None:
    """Score any system's predictions, with 95 % intervals, with and without a judge."""
    from pixellm.engine.run_folder import open_run
    from pixellm.evaluation.evaluate import Evaluation
    from pixellm.evaluation.external import ExternalPredictions, score_predictions, scores_to_dict
    from pixellm.evaluation.records import RunAnswers, write_run
    from pixellm.files import check_new_folder

    check_json(json, ("settings", "num_missing", "headline"))
    if out is not None:
        check_new_folder(out)
    judge = judging.open()
    answers = ExternalPredictions(predictions)
    run = _questions_of(benchmark, split, limit, place, drawn, predictions.stem, protocol)
    samples = run.open()
    with nullcontext() if judge is None else judge_bar(judge) as progress:
        scored = score_predictions(
            answers, samples, run.rules, judge=judge, allow_missing=allow_missing, progress=progress
        )
    records = scored.records
    scores = run.summarize(records)
    evaluation = Evaluation(run, run.settings(), samples, records, scores, scored.left_out)
    judged = scored.judged(evaluation)
    show(evaluation, judged, aside=json == "-", missing=scored.num_missing)
    write_json(scores_to_dict(evaluation, judged, scored.num_missing), json)
    if out is not None:  # a folder as of a run of our own
        open_run(out, evaluation.settings)
        write_run(out, RunAnswers(records, scored.left_out), run.model)
        write_run_report(out, evaluation)
        say(f"Wrote {out / 'report.html'}, report.md and report.json", err=json == "-")


@data.app.command(
    epilog="Example:\n\n    pixellm data questions --benchmark scenes --num 100 --out asked"
)
@spread
def questions(
    out: Annotated[Path, Option(help="Folder for questions.jsonl; new or empty.")],
    drawn: SceneOptions,
    place: FileOptions,
    benchmark: _Benchmark = "scenes",
    split: Split = "",
    limit: Limit = 0,
) -> None:
    """Write a benchmark's questions for another system to answer; see `pixellm score`."""
    from pixellm.evaluation.external import write_questions
    from pixellm.evaluation.left_out import describe_left_out
    from pixellm.files import check_new_folder

    check_new_folder(out)
    run = _questions_of(benchmark, split, limit, place, drawn)
    written, left_out = write_questions(run.open(), out)
    say(f"{written} questions: {out / 'questions.jsonl'}")
    if left_out:
        say(describe_left_out(left_out), err=True)


def _questions_of(
    benchmark: str,
    split: str,
    limit: int,
    place: FileOptions,
    drawn: SceneOptions,
    system: str = "",
    protocol: Any = "strict",
) -> BenchmarkRun:
    """The questions that the options describe, answered by a system of that name."""
    from pixellm.evaluation.benchmarks import find_benchmark
    from pixellm.evaluation.evaluate import BenchmarkRun

    if protocol == "released" and find_benchmark(benchmark).released != "muse":
        raise ValueError(
            f"The release has no scorer of its own for {benchmark}; use --protocol strict."
        )
    if benchmark == "scenes" and place != FileOptions():
        raise ValueError("Scenes are drawn; leave out --data, --images and --with.")
    if benchmark != "scenes" and drawn != SceneOptions():
        raise ValueError(f"--num, --dialogues and --seed are for scenes, not {benchmark}.")
    places = {**place.values(), **drawn.values()}
    how: Any = {"mode": "free", "protocol": protocol, "limit": limit}
    return BenchmarkRun(benchmark, system, split, **how, **places)
