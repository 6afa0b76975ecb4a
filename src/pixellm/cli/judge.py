"""The options of a judge, and the bar over its work.

What commands that judge have in common. How answers are rated and scored is the library's
business; which command has which options is that of the command's module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixellm.cli.console import open_console, say

if TYPE_CHECKING:
    from pixellm.evaluation.benchmark_run import BenchmarkRun
    from pixellm.evaluation.judge import Judge, JudgeSettings
    from pixellm.llm.run import RequestProgress

JudgeKind = Annotated[
    str,
    typer.Option(
        help="Rates whether each mask shows what the words in front of it say: none, similarity "
        "(compares words, offline and free), llm (asks a language model)."
    ),
]
JudgeModel = Annotated[str, typer.Option(help="Name of the llm judge at its server.")]
BaseUrl = Annotated[
    str,
    typer.Option(
        help="Address of the llm judge's server, any OpenAI-compatible one. Its key comes from "
        "the environment variable OPENAI_API_KEY; a server on the local network needs none."
    ),
]
JudgeThreshold = Annotated[
    float, typer.Option(help="Masks rated below it, 1 to 10, count with intersection 0.")
]
JudgeCache = Annotated[
    Path, typer.Option(help="SQLite file of the llm judge's ratings; none is paid for twice.")
]
MaxCost = Annotated[
    float | None,
    typer.Option(
        help="USD that all ratings in the cache may cost; 0 takes what the cache holds. No cap "
        "where not given."
    ),
]
ModelPrice = Annotated[
    str, typer.Option(help="INPUT,OUTPUT in USD per million tokens, of a model not listed.")
]


def read_judge(
    kind: str,
    model: str,
    base_url: str,
    threshold: float,
    cache: Path,
    max_cost: float | None,
    price: str,
) -> JudgeSettings:
    """The judge that the options describe.

    Raises:
        ValueError: bad options, or some that belong to another judge.
    """
    from pixellm.evaluation.judge import JudgeSettings, read_price

    chosen: Any = kind
    server = base_url or None
    settings = JudgeSettings(chosen, threshold, model, server, cache, max_cost, read_price(price))
    if kind == "llm" and not (model and base_url):
        raise ValueError(
            "--judge llm needs --judge-model NAME and --base-url ADDRESS, such as "
            "https://api.openai.com/v1."
        )
    if kind != "llm" and (model or base_url or price or max_cost is not None):
        raise ValueError(
            "--judge-model, --base-url, --max-cost and --price are for --judge llm, not "
            f"--judge {kind}."
        )
    return settings


def open_run_judge(run: BenchmarkRun, settings: JudgeSettings) -> Judge | None:
    """The judge of a run, ready before a model is loaded; None for none.

    Raises:
        ValueError: there is nothing to judge, or the judge lacks a price or a key.
        OSError: its cache can't be opened.
    """
    if settings.kind == "none":
        return None
    from pixellm.evaluation.judge import open_judge
    from pixellm.evaluation.judged_run import check_judging

    check_judging(run)
    return open_judge(settings)


@contextmanager
def judge_bar(settings: JudgeSettings) -> Iterator[RequestProgress]:
    """A bar over the answers that a judge rates; at its end, what all of its ratings have cost."""
    from pixellm.cli.display import judge_progress

    spent = 0.0
    with judge_progress(open_console(stderr=True)) as bar:

        def show(done: int, total: int, usd: float) -> None:
            nonlocal spent
            spent = usd
            bar(done, total, usd)

        yield show
    if settings.kind == "llm":
        say(f"All ratings in {settings.cache} have cost {spent:.4f} USD.", err=True)
