"""The commands ``pixellm data check``, ``preview``, ``pseudo-label`` and ``scenes``.

Reads options, calls :mod:`pixellm.data` and prints what came of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from pixellm.cli.console import open_console, printable, resumable, say
from pixellm.cli.options import Images, LoadOptions, With, image_options, number, spread

if TYPE_CHECKING:
    from pixellm.data.check import SplitReport
    from pixellm.labelling.label_run import LabelState


app = typer.Typer(no_args_is_help=True, help="Make, check and look at data.")


@app.command(
    epilog="Examples:\n\n    pixellm data check datasets"
    "\n\n    pixellm data check datasets --set refcoco --set ade20k --report bad.csv"
    "\n\n    pixellm data check curated --images train2017"
    "\n\n    pixellm data check mine.json --images photos"
)
def check(
    root: Annotated[Path, Argument(help="Folder of data sets, or one file.")],
    sets: Annotated[
        list[str] | None, Option("--set", help="Only this data set; may be repeated.")
    ] = None,
    splits: Annotated[
        list[str] | None, Option("--split", help="Only this split; may be repeated.")
    ] = None,
    images: Images = None,
    options: With = None,
    limit: Annotated[int, Option(min=0, help="Bad rows shown of each split.")] = 50,
    report: Annotated[
        Path | None, Option(help="CSV file for all bad rows; - for standard output.")
    ] = None,
    quick: Annotated[bool, Option("--quick", help="Open images without decoding them.")] = False,
) -> None:
    """Say which data sets are there, what they hold, and every row that can't be used.

    Ends with exit code 1 where a row is bad or a set is incomplete.
    """
    from pixellm.cli.display import counted_progress
    from pixellm.data.check import CSV_HEADER, absent_sets, bad_rows_to_csv, check_found, find_sets
    from pixellm.data.dataset import GUIDE
    from pixellm.data.other_layouts import advice_on
    from pixellm.files import STANDARD, check_file, write_files

    aside = str(report) == STANDARD
    if report is not None and not aside:
        check_file(report, start=CSV_HEADER)
    found = find_sets(root, sets or (), splits or (), image_options(images, options))
    if not found:
        advice = advice_on(root) or f"see {GUIDE}"
        raise ValueError(f"{root} holds no data set in a known layout; {advice}.")
    reports = []
    for one in found:
        unit = printable(f"images of {one.label} checked")
        with counted_progress(open_console(stderr=True), unit, transient=True) as progress:
            reports.append(check_found(one, decode=not quick, progress=progress))
        _show_report(reports[-1], limit, err=aside)
    if root.is_dir() and not sets:
        for reader in absent_sets(found):
            say(f"Not there: {reader.name} ({reader.title}): {reader.obtain}.", err=aside)
    if images is None and any("image is missing" in b.reason for r in reports for b in r.bad_rows):
        say("Where the images lie elsewhere, name their folder with --images.", err=aside)
    if aside:
        typer.echo(bad_rows_to_csv(reports), nl=False)
    elif report is not None:
        write_files({report: bad_rows_to_csv(reports)})
        say(f"Wrote {report}")
    if any(one.bad_rows for one in reports):
        raise typer.Exit(1)


@app.command(
    epilog="Examples:\n\n    pixellm data preview ade20k --data datasets --out look"
    "\n\n    pixellm data preview coco --data photos --with targets=regions --out look"
    "\n\n    pixellm data preview mine.jsonl --out look"
)
def preview(
    data: Annotated[str, Argument(metavar="SET", help="A data set's name, or one file.")],
    out: Annotated[Path, Option(help="Folder for the page and the sheet.")],
    root: Annotated[
        Path | None, Option("--data", "--root", help="Folder of data sets; this one.")
    ] = None,
    split: Annotated[str, Option(help="The set's training split where not given.")] = "",
    num: Annotated[int, Option(min=1, help="Dialogues to show.")] = 12,
    seed: Annotated[int, Option(help="Another seed shows others.")] = 0,
    images: Images = None,
    options: With = None,
) -> None:
    """Show a data set: images with masks, questions and answers, as a page and a sheet."""
    from pixellm.data.check import find_sets
    from pixellm.data.preview import gather_preview
    from pixellm.data.registry import READERS, open_reader, reader_class
    from pixellm.report.gallery import check_preview, write_preview

    check_preview(out)
    chosen = {**image_options(images, options), "seed": seed}
    if data not in READERS and Path(data).is_file():
        if root is not None or split:
            raise ValueError(f"{data} is one file; leave out --data and --split.")
        (found,) = find_sets(Path(data), options=chosen)
        reader = found.open()
    else:
        reader = open_reader(data, root or Path(), split or reader_class(data).splits[0], **chosen)
    entries, problems = gather_preview(reader, num)
    page, sheet = write_preview(out, f"{data} {reader.split}", entries)
    for problem in problems:
        say(f"Not shown: {problem}", err=True)
    say(f"To look at: {page} and {sheet}")


@app.command(
    "pseudo-label",
    epilog="Examples:\n\n    pixellm data pseudo-label photos --out labels"
    " --class dog --class cat"
    "\n\n    pixellm data pseudo-label photos --out labels --boxes boxes.json --min-score 0.5",
)
@spread
def pseudo_label(
    images: Annotated[Path, Argument(help="Folder of photos.")],
    options: LoadOptions,
    out: Annotated[
        Path, Option(help="Folder for instances.json; the same command goes on where it stopped.")
    ],
    boxes: Annotated[
        Path | None,
        Option(help="COCO file with proposed boxes and their scores, as detectors write."),
    ] = None,
    classes: Annotated[
        list[str] | None,
        Option("--class", help="Look for this; may be repeated. COCO's 80 if not given."),
    ] = None,
    min_score: Annotated[float, number("Keep masks that are as sure as this.", min=0, max=1)] = 0.6,
    doubt: Annotated[
        float, number("Mark what is as sure as this as a crowd, not as absent.", min=0, max=1)
    ] = 0.3,
    overlap: Annotated[
        float, number("Least IoU of a mask's box with a proposed one.", min=0, max=1)
    ] = 0.5,
    limit: Annotated[int, Option(min=0, help="The first photos only; 0 for all.")] = 0,
    shown: Annotated[int, Option(min=0, help="Photos on the sheet to look at.")] = 24,
    batch_size: Annotated[int, Option(min=1, help="Questions answered together.")] = 16,
) -> None:
    """Let a model draw the masks of photos that nobody annotated: a COCO file to train on."""
    from pixellm.cli.display import counted_progress
    from pixellm.labelling.label_run import COCO_FILE, SHEET_FILE, LabelRun, run_labels
    from pixellm.labelling.pseudo_labels import LabelRules

    rules = LabelRules(min_score, doubt, overlap)
    run = LabelRun(images, out, options.model, rules, boxes, classes or (), limit)

    def describe(state: LabelState) -> None:
        show(state.done, state.total, f"{state.masks} masks")

    with resumable(), counted_progress(open_console(stderr=True), "photos") as show:
        state = run_labels(run, options.load, batch_size, describe, shown)
    typer.echo(
        f"Wrote {out / COCO_FILE}: {state.masks:,} masks in {state.done - state.bad:,} photos, "
        f"{state.doubts:,} regions in doubt."
    )
    if state.bad:
        say(f"Without labels, and left out: {state.bad}. The first: {state.reason}", err=True)
    if shown and state.masks + state.doubts:
        typer.echo(f"To look at: {out / SHEET_FILE}")
    if state.bad == state.done:
        raise typer.Exit(1)


@app.command(epilog="Example:\n\n    pixellm data scenes --split test --num 20 --out scenes")
def scenes(
    out: Annotated[Path, Option(help="Folder for images, JSON and contact sheet.")],
    split: Annotated[str, Option(help="train, val, test, test_combination, test_style.")] = "test",
    num: Annotated[int, Option(min=1, help="Images.")] = 20,
    seed: Annotated[int, Option(help="Another seed gives other scenes.")] = 0,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace files in OUT.")] = False,
) -> None:
    """Draw scenes with questions and answers (MUSE format), and a sheet to look at."""
    from pixellm.data.scene_export import export_scenes
    from pixellm.scenes.dataset import ScenesDataset

    dataset = ScenesDataset(split=split, seed=seed, length=num)
    written = export_scenes(dataset, out, num, overwrite=overwrite)
    say(f"{len(written.images)} images with questions: {written.annotations}")
    say(f"To look at: {written.contact_sheet}")


def _show_report(report: SplitReport, limit: int, *, err: bool) -> None:
    counts = ", ".join(f"{number:,} {name}" for name, number in report.counts.items())
    state = f"{len(report.bad_rows):,} bad rows" if report.bad_rows else "no bad row"
    say(f"{report.found.label}: {counts or 'not readable'}; {state}", err=err)
    for bad in report.bad_rows[:limit]:
        say(f"  {bad}", err=err)
    if len(report.bad_rows) > limit:
        say(f"  and {len(report.bad_rows) - limit:,} more; --report lists them all", err=err)
