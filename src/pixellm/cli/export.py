"""The command ``pixellm export``, and the options ``--classes`` and ``--export`` of others.

Reads options and calls :mod:`pixellm.export`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from pixellm.cli.console import say
from pixellm.cli.options import number

if TYPE_CHECKING:
    from pixellm.data.rows import JobRow
    from pixellm.export import Categories, Labels

_FORMATS = "coco, coco-polygons, yolo, labelme, label-studio, png or overlay"

Classes = Annotated[
    str, Option(metavar="A,B,...", help="Ask each image for each of these classes, one by one.")
]
ExportTo = Annotated[
    list[str] | None,
    Option(
        "--export",
        metavar="FORMAT",
        help=f"Also write the answers as {_FORMATS}, into a folder called after the answers; "
        "repeatable.",
    ),
]


app = typer.Typer()


@app.command(
    epilog="Examples:\n\n    pixellm export photos_pixellm.jsonl --images photos --to coco "
    "--out labels"
    '\n\n    pixellm export answers.jsonl --to yolo --out cups --classes "cup,plate"'
)
def export(
    answers: Annotated[
        Path, Argument(help="JSONL of `pixellm predict`, or JSON of `pixellm segment`.")
    ],
    to: Annotated[str, Option(metavar="FORMAT", help=f"{_FORMATS}.")],
    out: Annotated[Path, Option(help="Folder to write; new, empty or an earlier export.")],
    images: Annotated[
        Path | None,
        Option(help="Folder that the images' names start from; that of ANSWERS if not given."),
    ] = None,
    classes: Annotated[
        str,
        Option(
            metavar="A,B,...", help="Keep masks of these classes alone; else phrases are classes."
        ),
    ] = "",
    min_score: Annotated[float, number("Leave out masks of a lower score.", min=0, max=1)] = 0.0,
) -> None:
    """Write answers as annotations for other programs."""
    from pixellm.answer_files import read_answers
    from pixellm.export import check_export, gather_labels

    check_export(out, to)
    labels = gather_labels(read_answers(answers), categories_of(classes), min_score)
    _write(labels, {to: out}, _finder(answers, images))


def parse_classes(classes: str) -> list[str]:
    """Names of classes as typed, without those that come again."""
    names = [" ".join(name.split()) for name in classes.split(",")] if classes else []
    if not all(names):
        raise ValueError(
            f'--classes takes names with commas between, "cup,plate", not {classes!r}.'
        )
    known: dict[str, str] = {}
    for name in names:
        known.setdefault(name.casefold(), name)
    return list(known.values())


def categories_of(classes: str) -> Categories:
    """The classes typed; without any, classes are what the phrases say."""
    from pixellm.data.questions import plain_instances_question
    from pixellm.export import Categories

    names = parse_classes(classes)
    asked = {plain_instances_question(name): name for name in names}
    return Categories(names, closed=bool(names), asked=asked)


def ask_classes(rows: Iterable[JobRow], classes: str) -> list[JobRow]:
    """A row for each image and class, in place of what the rows ask."""
    from dataclasses import replace

    questions = list(categories_of(classes).asked)
    images = list({row.image or row.number: row for row in rows}.values())
    asked = ((row, question) for row in images for question in questions)
    return [
        replace(row, number=number, question=question, history=(), id="")
        for number, (row, question) in enumerate(asked)
    ]


def plan_exports(formats: Sequence[str] | None, answers: Path) -> dict[str, Path]:
    """Where the answers of a file are exported to, by format; checked before anything is asked."""
    if not formats:
        return {}
    from pixellm.export import check_export
    from pixellm.files import is_stream

    if is_stream(answers):
        raise ValueError("--export reads the answers again; let them go to a file.")
    folders = {name: answers.with_name(f"{answers.stem}_{name}") for name in formats}
    for name, folder in folders.items():
        check_export(folder, name)
    return folders


def export_rows(
    rows: Sequence[JobRow], answers: Path, folders: Mapping[str, Path], classes: str
) -> None:
    """Export the answers that a job wrote about rows."""
    from pixellm.answer_files import read_answers
    from pixellm.export import gather_labels

    if folders:
        sources = {row.image: row.source for row in rows if isinstance(row.source, Path)}
        labels = gather_labels(read_answers(answers), categories_of(classes))
        _write(labels, folders, sources.__getitem__)


def export_answer(
    values: Mapping[str, Any], image: Path, folders: Mapping[str, Path], *, quiet: bool
) -> None:
    """Export the answer about one image; ``quiet`` leaves standard output to something else."""
    from pixellm.answer_files import read_answer
    from pixellm.export import gather_labels

    if folders:
        answer = read_answer({**values, "image": image.name})
        labels = gather_labels([answer], categories_of(""))
        _write(labels, folders, lambda name: image, err=quiet)


def _write(
    labels: Labels, folders: Mapping[str, Path], find: Callable[[str], Path], *, err: bool = False
) -> None:
    """Write labels in each format, and say what was written and what was not."""
    from pixellm.export import write_export

    for name, folder in folders.items():
        write_export(labels, folder, name, find)
        say(
            f"Wrote {folder}: {labels.num_objects} objects of {len(labels.categories)} classes in "
            f"{len(labels.images)} images.",
            err=err,
        )
    if labels.failed:
        say(f"Without an answer, and not in it: {labels.failed}.", err=True)
    if labels.unclassed:
        say(f"Masks of none of the classes, not in it: {labels.unclassed}.", err=True)


def _finder(answers: Path, images: Path | None) -> Callable[[str], Path]:
    """Where images lie: below the folder given, else as seen from the answers or from here."""
    folders = [images] if images is not None else [answers.parent, Path()]

    def find(name: str) -> Path:
        places = [folder / name for folder in folders]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"There is no image {places[0]}; name the folder that holds {name} with --images."
            )
        return found

    return find
