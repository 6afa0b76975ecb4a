"""``pixellm curate``: the generator on the command line.

Thin: every command reads its options, calls one function of this package and says what came of
it. Bad input ends in one sentence and exit code 2, an unfinished run in exit code 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from pixellm.cli.console import open_console, resumable, say
from pixellm.cli.options import number

if TYPE_CHECKING:
    from pixellm.curation.ledger import FinishedRun, Ledger
    from pixellm.curation.photos import Shard
    from pixellm.curation.pipeline import Source
    from pixellm.curation.proposal import Writing
    from pixellm.llm.client import Client
    from pixellm.llm.prices import Price
    from pixellm.llm.run import RunLimits

app = typer.Typer(
    no_args_is_help=True,
    help="Make multi-target reasoning data (MUSE format) from annotated photos.",
)

_Dir = Annotated[Path, Argument(help="A run's folder, or one with MUSE files.")]
_Images = Annotated[Path | None, Option(help="Folder of the photos.")]
_RUN_EXAMPLES = """Example without a model:\n
    pixellm curate run --annotations instances_train.json --images train/images --out muse
      --model template\n
Example with a local server:\n
    pixellm curate run --annotations instances.json --images photos --captions captions.json
      --out muse --model Qwen2.5-VL-7B-Instruct --base-url http://localhost:8000/v1\n
Stop it any way you like; the same command goes on where it stood."""


@app.command(epilog=_RUN_EXAMPLES)
def run(
    annotations: Annotated[Path, Option(help="COCO or LVIS instances JSON.")],
    images: Annotated[Path, Option(help="Folder of the photos.")],
    out: Annotated[Path, Option(help="Folder for the ledger and the set.")],
    model: Annotated[str, Option(help="Name at the server; 'template' needs no model.")],
    captions: Annotated[Path | None, Option(help="COCO captions JSON.")] = None,
    base_url: Annotated[str | None, Option(envvar="OPENAI_BASE_URL")] = None,
    key_env: Annotated[str, Option(help="Variable with the API key.")] = "OPENAI_API_KEY",
    text_only: Annotated[bool, Option(help="Send captions, no photo.")] = False,
    check_model: Annotated[str, Option(help="Model that checks descriptions.")] = "",
    questions: Annotated[int, Option(min=1, max=6, help="Asked for per photo.")] = 2,
    max_images: Annotated[int | None, Option(min=1, help="Best so many photos.")] = None,
    workers: Annotated[int, Option(min=1, help="Requests in flight.")] = 16,
    max_cost: Annotated[float, number("Hard stop, in USD.", min=0)] = 25.0,
    price: Annotated[str, Option(help="INPUT,OUTPUT in USD per million tokens.")] = "",
    timeout: Annotated[float, number("Seconds per attempt.", min=0.1)] = 120.0,
    batch: Annotated[bool, Option(help="Use the Batch API, at half the price.")] = False,
    shard: Annotated[str, Option(help="K/N: only the K-th of N shares of the photos.")] = "",
    split: Annotated[str, Option(help="Shares TRAIN,VAL; the rest is test.")] = "0.97,0.012",
    max_repeats: Annotated[int, Option(min=1, help="Of one question in the set.")] = 3,
    seed: Annotated[int, Option(help="For choice, styles and splits.")] = 0,
) -> None:
    """Generate a set: select, propose, verify, repair, deduplicate, split, write."""
    from pixellm.curation.ledger import Ledger
    from pixellm.curation.pipeline import Source, select
    from pixellm.curation.template import styles_for
    from pixellm.curation.write import WriteSettings, check_set
    from pixellm.llm.run import RunLimits

    if batch and model == "template":
        raise ValueError("--batch goes with a hosted model; templates need no server.")
    if check_model == "template":
        raise ValueError("--check-model takes a vision model; templates see no photo.")
    source = Source(
        annotations, images, model, captions, check_model, text_only, questions, seed, _shard(shard)
    )
    shares = _numbers(split, "--split")
    layout: dict[str, Any] = {"train": shares[0], "val": shares[1]}
    layout |= {"max_repeats": max_repeats, "seed": seed}
    WriteSettings(**layout)  # refused before anything is done
    check_set(out)
    names = {"": model, **({"fit": check_model} if check_model else {})}
    prices = _prices(price, names.values(), base_url)
    server = {"base_url": base_url, "timeout": timeout, "key_variable": key_env}
    clients = {kind: _client(name, source, server) for kind, name in names.items()}
    with closing(Ledger(out, create=True)) as ledger, resumable():
        fitting = styles_for if model == "template" else None
        writing = select(ledger, source, max_images, fitting)
        ledger.put("run", source.identity())
        ledger.put("layout", layout)
        ledger.put("images", str(images.resolve()))
        stopped = _propose(ledger, writing, clients, prices, RunLimits(workers, max_cost), batch)
        failed, reason = ledger.failures()
        _write(ledger, out, layout)
    if failed and not stopped:
        stopped = (
            f"{failed} question{'s' if failed > 1 else ''} got no reply ({reason}); the same "
            "command asks again."
        )
    if stopped:
        say(stopped, err=True)
        raise typer.Exit(1)


@app.command(
    epilog="Examples:\n\n    pixellm curate write muse --split 1,0"
    "\n\n    pixellm curate write shard1 shard2 --out muse"
)
def write(
    folders: Annotated[list[Path], Argument(help="A run's folder, or those of its shards.")],
    out: Annotated[Path | None, Option(help="Folder of the set of several shards.")] = None,
    split: Annotated[str, Option(help="Shares TRAIN,VAL; as before where not given.")] = "",
    marks: Annotated[Path | None, Option(help="marks.json saved from a gallery.")] = None,
) -> None:
    """Write the set of a run again, without the rows that reviewers rejected."""
    from pixellm.curation.ledger import Ledger, ShardLedgers
    from pixellm.curation.write import change_marks, check_set, load_marks

    with ExitStack() as opened:
        if (len(folders) > 1) != (out is not None):
            raise ValueError("Give --out DIR with the folders of several shards, and only then.")
        folder = out or folders[0]
        check_set(folder)
        ledgers = [opened.enter_context(closing(Ledger(one))) for one in folders]
        finished = ledgers[0] if out is None else ShardLedgers(ledgers)
        folder.mkdir(parents=True, exist_ok=True)
        if marks is not None:
            change_marks(folder, load_marks(marks))
        settings = dict(finished.get("layout") or {})
        if split:
            settings["train"], settings["val"] = _numbers(split, "--split")
        _write(finished, folder, settings)


@app.command(epilog="Example:\n\n    pixellm curate stats muse --out plots")
def stats(
    folder: _Dir, out: Annotated[Path | None, Option(help="Folder of the plots; DIR/plots.")] = None
) -> None:
    """Print the figures of a set and draw them."""
    from pixellm.curation.statistics import check_plots, gather, plot

    target = out or (folder if folder.is_dir() else folder.parent) / "plots"
    check_plots(target)
    figures = gather(folder)
    plots = plot(figures, target)
    for name, value in figures.summary().items():
        say(f"{name:28} {value:,.6g}")
    say(f"Plots: {', '.join(path.name for path in plots)} in {target}")


@app.command(epilog="Example:\n\n    pixellm curate view muse --serve")
def view(
    folder: _Dir,
    images: _Images = None,
    out: Annotated[Path | None, Option(help="The page; DIR/gallery.html.")] = None,
    num: Annotated[int, Option(min=1, help="Rows to show, a seeded choice.")] = 300,
    seed: Annotated[int, Option(help="For the choice.")] = 0,
    serve: Annotated[bool, Option(help="Open a review that saves every mark.")] = False,
) -> None:
    """Make a gallery with masks, search, and marks to accept or reject rows."""
    from pixellm.curation.review import ReviewServer, write_gallery

    if serve and out is not None:
        raise ValueError("--serve writes no page; leave out --out, or --serve.")
    photos = images or _images_of(folder)
    if not serve:
        page = out or folder / "gallery.html"
        shown = write_gallery(folder, photos, page, num, seed)
        say(f"{shown} rows in {page}")
        return
    server = ReviewServer(folder, photos, num, seed=seed)
    say(f"Review at {server.url} until Ctrl-C; `pixellm curate write` respects marks.")
    with server:
        server.serve_forever()


@app.command(epilog="Example:\n\n    pixellm curate validate muse_train.json --images coco")
def validate(
    folder: Annotated[Path, Argument(help="A MUSE file, or a folder of them.")],
    images: _Images = None,
    limit: Annotated[int, Option(min=1, help="Problems to print.")] = 100,
) -> None:
    """Check any MUSE file; exit code 1 if anything is wrong."""
    from collections import Counter

    from pixellm.data.muse import validate as find_problems

    checks: Counter[str] = Counter()
    for problem in find_problems(folder, images):
        checks[problem.check] += 1
        if checks.total() <= limit:
            say(str(problem))
    say(", ".join(f"{n} {check}" for check, n in checks.items()) or "No problems found.")
    if checks:
        raise typer.Exit(1)


def _propose(
    ledger: Ledger,
    writing: Writing,
    clients: dict[str, Client],
    prices: dict[str, Price],
    limits: RunLimits,
    batch: bool,
) -> str:
    """Bring every task to its verdict; returns why the run stopped early, or ""."""
    from pixellm.cli.display import counted_progress
    from pixellm.curation.pipeline import work_all, work_in_batches
    from pixellm.llm.batch import BatchRunner
    from pixellm.llm.run import RequestRunner

    with counted_progress(open_console(stderr=True), "questions") as show:

        def progress(done: int, total: int, cost: float) -> None:
            show(done, total, f"{cost:.3f} USD")

        if batch:
            batches = BatchRunner(ledger, clients, prices, limits.max_cost)  # type: ignore[arg-type]
            return work_in_batches(ledger, writing, batches, progress)
        return work_all(ledger, writing, RequestRunner(ledger, clients, prices, limits), progress)


def _client(model: str, source: Source, server: dict[str, Any]) -> Client:
    from pixellm.curation.photos import photo_encoder
    from pixellm.curation.template import TemplateWriter
    from pixellm.llm.client import OpenAIClient

    if model == "template":
        return TemplateWriter(source.seed)
    return OpenAIClient(model, encode=photo_encoder(source.images), **server)


def _prices(price: str, models: Iterable[str], base_url: str | None) -> dict[str, Price]:
    from pixellm.llm.prices import price_of, read_price

    given = read_price(price)
    return {one: given or price_of(one, base_url) for one in models if one != "template"}


def _write(ledger: FinishedRun, folder: Path, layout: dict[str, Any]) -> None:
    from pixellm.curation.write import WriteSettings, write_set

    summary = write_set(ledger, folder, WriteSettings(**layout))
    questions = {name: counts["questions"] for name, counts in summary["splits"].items()}
    for title in ("photos", "tasks", "first", "final", "dropped"):
        row = ", ".join(f"{count} {name}" for name, count in summary[title].items())
        say(f"{title:8} {row or 'none'}")
    written = ", ".join(f"{count} {name}" for name, count in questions.items())
    say(f"Written to {folder}: {written} questions.")


def _images_of(folder: Path) -> Path:
    from pixellm.curation.ledger import LEDGER_NAME, Ledger

    if not (folder / LEDGER_NAME).is_file():
        raise ValueError(f"{folder} doesn't say where its photos are; give --images.")
    with closing(Ledger(folder, writing=False)) as ledger:
        return Path(ledger.get("images") or "")


def _numbers(text: str, option: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} takes two numbers with a comma, not {text!r}.") from None
    return first, second


def _shard(text: str) -> Shard:
    from pixellm.curation.photos import WHOLE, Shard

    number, _, count = text.partition("/")
    if not text:
        return WHOLE
    if not (number.isdecimal() and count.isdecimal()):
        raise ValueError(f"--shard takes K/N, such as 2/8, not {text!r}.")
    return Shard(int(number), int(count))
