"""The command ``pixellm predict``, and ``pixellm segment`` with ``--batch``: many images.

Reads options, shows a progress bar and calls :mod:`pixellm.engine.questions`, which knows how a job
goes on after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from pixellm.cli.console import open_console, resumable, say
from pixellm.cli.export import Classes, ExportTo, ask_classes, export_rows, plan_exports
from pixellm.cli.options import Images, MinScore, ModelOptions, With, image_options, spread

if TYPE_CHECKING:
    from pixellm.data.rows import JobRow
    from pixellm.engine.jobs import JobState

_Question = Annotated[
    str, Argument(help="Asked about each image of a folder, and where a line has none.")
]
_Out = Annotated[
    Path | None,
    Option(
        help="JSONL file of answers; DATASET_pixellm.jsonl where not given, of a data set "
        "DATASET_SPLIT_pixellm.jsonl."
    ),
]
_Data = Annotated[
    Path | None,
    Option(
        metavar="ROOT", help="DATASET is a data set in this folder of them; data where not given."
    ),
]
_Split = Annotated[
    str, Option(help="Part of the data set; its benchmark's, val or the first where not given.")
]
_Ray = Annotated[
    int,
    Option(
        min=0,
        metavar="WORKERS",
        help="Answer on a Ray cluster with so many engines, on a GPU each where there are any.",
    ),
]


app = typer.Typer()


def predict(
    dataset: Annotated[
        Path,
        Argument(
            help="JSONL of image and question, a folder of images, or a data set's name, such "
            "as refcoco, muse or scenes; a wrong name lists all."
        ),
    ],
    model: ModelOptions,
    question: _Question = "",
    out: _Out = None,
    data: _Data = None,
    split: _Split = "",
    images: Images = None,
    options: With = None,
    batch_size: Annotated[
        int, Option(min=1, help="Questions answered, and written to OUT, together.")
    ] = 32,
    min_score: MinScore = None,
    ray: _Ray = 0,
    classes: Classes = "",
    export: ExportTo = None,
) -> None:
    """Answer questions about many images; the same command goes on where a stopped one was."""
    from pixellm.files import STANDARD, is_same_file

    rows: Sequence[JobRow]
    if out is not None and str(out) != STANDARD and is_same_file(out, dataset):
        raise ValueError(f"{out} holds the questions; choose another file for the answers.")
    asked, chosen = classes or question, image_options(images, options)
    if str(dataset) != STANDARD and (data or split or chosen or _names_a_set(dataset, asked)):
        if export or classes:
            raise ValueError(
                "--classes and --export are for a folder or a file of images; export a data set's "
                "answers with: pixellm export ANSWERS --images DIR"
            )
        rows, name = _open_set(str(dataset), question, data or Path("data"), split, chosen)
    else:
        rows = _read_rows(dataset, question, classes)
        name = "standard_input" if str(dataset) == STANDARD else dataset.resolve().stem
    target = out or Path(f"{name}_pixellm.jsonl")
    folders = plan_exports(export, target)
    _run_and_report(rows, target, model, min_score, batch_size, ray)
    export_rows(rows, target, folders, classes)


def _read_rows(dataset: Path, question: str, classes: str) -> list[JobRow]:
    """The rows of a file or folder; with classes, each image is asked for each of them."""
    from pixellm.data.rows import read_rows

    if not classes:
        return read_rows(dataset, question)
    if question:
        raise ValueError(f"--classes asks for each class; leave out {question!r}.")
    return ask_classes(read_rows(dataset, classes), classes)


def _names_a_set(dataset: Path, question: str) -> bool:
    """Whether a data set is meant; a file goes first, and a folder that is asked a question."""
    from pixellm.evaluation.benchmarks import SET_NAMES

    is_named = str(dataset) in SET_NAMES
    if dataset.exists():
        return dataset.is_dir() and is_named and not question
    if is_named:
        return True
    raise FileNotFoundError(
        f"There is no file or folder {dataset}, and no data set of that name; known: "
        f"{', '.join(SET_NAMES)}."
    )


def _open_set(
    name: str, question: str, root: Path, split: str, options: dict[str, Any]
) -> tuple[Sequence[JobRow], str]:
    """The questions of a data set, and what its file of answers is called."""
    from pixellm.evaluation.benchmarks import open_rows, usual_split

    if question:
        raise ValueError(f"The data set {name} has its own questions; leave out {question!r}.")
    split = split or usual_split(name)
    with open_console(stderr=True).status(f"Opening {name} {split}"):
        return open_rows(name, root, split, options), f"{name}_{split}"


def _run_and_report(
    rows: Sequence[JobRow],
    target: Path,
    options: ModelOptions,
    min_score: float | None,
    batch_size: int,
    ray_workers: int,
) -> None:
    """Run a job with a progress bar; say at the end what was written and what went wrong."""
    from pixellm.cli.display import counted_progress
    from pixellm.engine.questions import answer_ahead, answer_rows
    from pixellm.engine.ray import answer_on_ray
    from pixellm.files import STANDARD, is_stream

    model, temperature = options.model, options.temperature
    if ray_workers:
        device = _device_of_workers(options.device)
        gpus = 1.0 if device == "cuda" else 0.0
        load = partial(replace(options, device=device).load, min_mask_score=min_score)
        answered = answer_on_ray(load, model, ray_workers, gpus, temperature)
    else:
        load = partial(options.load, min_mask_score=min_score)
        answered = answer_ahead(load, model, temperature)

    def describe(state: JobState) -> None:
        speed = f"{state.images / state.seconds:.2f}" if state.seconds else "-"
        show(state.done, state.total, f"{speed} images/s")

    with resumable(), counted_progress(open_console(stderr=True), "questions") as show:
        state = answer_rows(rows, target, model, answered, batch_size, describe)
    aside = str(target) == STANDARD
    where = "" if aside else f"Wrote {target}: "
    say(
        f"{where}{state.done - state.bad} answers. {state.bad} failed, {state.skipped} skipped as "
        f"done before, {state.seconds:.1f} s.",
        err=aside,
    )
    if state.bad:
        first = "" if is_stream(target) else f" The first: {_first_error(target)}"
        say(f'Without an answer: {state.bad}; the "error" of a row says why.{first}', err=True)
    if state.bad == state.done:
        raise typer.Exit(1)


def _first_error(answers: Path) -> str:
    """Why the first row of a file that has no answer has none."""
    from pixellm.engine.answer_file import is_bad

    with answers.open("rb") as lines:
        return next(str(row["error"]) for row in map(json.loads, lines) if is_bad(row))


def _device_of_workers(device: str) -> str:
    """Where the engines of a cluster run: "cuda" is the one GPU that Ray lends a worker."""
    if device.startswith("cuda:"):
        raise ValueError(
            f"With --ray each worker is lent a GPU of its own: say --device cuda, not {device}."
        )
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "auto"


app.command(
    epilog="Examples:\n\n    pixellm predict questions.jsonl --out answers.jsonl"
    '\n\n    pixellm predict photos "All the cups, please." --batch-size 8'
    '\n\n    pixellm predict photos --classes "cup,plate" --export coco --export yolo'
    "\n\n    pixellm predict refcoco --data datasets --split val --out refcoco.jsonl"
    "\n\n    pixellm predict scenes --split test --with num=100"
    "\n\n    pixellm predict questions.jsonl --ray 4"
)(spread(predict))
