"""The commands ``pixellm segment`` and ``chat``: one image, answered and shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from pixellm.cli.console import open_console, say, tell_over
from pixellm.cli.export import Classes, ExportTo, export_answer, plan_exports
from pixellm.cli.options import Json, MinScore, ModelOptions, spread
from pixellm.cli.predict import predict

if TYPE_CHECKING:
    from pixellm.answer_files import Destinations
    from pixellm.types import Prediction

_IMAGE_HELP = "File or URL of an image"
_OUT_HELP = (
    "Image with the masks; IMAGE_pixellm.png where neither this nor --json or --masks is given; "
    "- for a PNG on standard output."
)

app = typer.Typer()


@app.command(
    epilog='Examples:\n\n    pixellm segment photo.jpg "What could I cut the rope with?"'
    '\n\n    pixellm segment photo.jpg "All the fruit, please." --out fruit.png --masks fruit'
    '\n\n    pixellm segment photo.jpg "the left cup" --json - | jq .segments'
    '\n\n    pixellm segment --batch photos "All the cups, please." --json answers.jsonl'
)
@spread
def segment(
    options: ModelOptions,
    image: Annotated[str, Argument(help=f"{_IMAGE_HELP}; - for standard input.")] = "",
    question: Annotated[str, Argument(help="As you would ask a person.")] = "",
    batch: Annotated[
        Path | None,
        Option(
            help="Instead of IMAGE: a folder of images, or JSONL of image and question; "
            "the answers go to --json as JSONL."
        ),
    ] = None,
    out: Annotated[Path | None, Option(help=_OUT_HELP, metavar="FILE")] = None,
    json: Json = "",
    masks: Annotated[Path | None, Option(help="Folder for one PNG per mask.")] = None,
    classes: Classes = "",
    export: ExportTo = None,
    min_score: MinScore = None,
) -> None:
    """Answer a question about an image, with a mask for every object that the answer names."""
    if batch is not None:
        if question or out or masks:
            raise ValueError(
                "With --batch there is one question at most, and the answers go to a --json FILE; "
                "leave out IMAGE, --out and --masks."
            )
        chosen: Any = {"min_score": min_score, "classes": classes, "export": export}
        return predict(batch, options, image, Path(json) if json else None, **chosen)
    from pixellm.answer_files import overlay_bytes, prediction_to_json, write_answer
    from pixellm.cli.images import file_of, name_of, read_image
    from pixellm.types import Request

    if not image or not question.strip() or classes:
        raise ValueError("Name an image and a question, or many images with --batch.")
    file, name = file_of(image), name_of(image)
    if export and file is None:
        raise ValueError("--export copies the file of the image; save it as one first.")
    destinations = _destinations(file, name, out, json, masks)
    folders = plan_exports(export, Path(f"{name.stem}_pixellm.json"))
    Request(name, question)  # refuses a damaged one before a model is loaded
    loaded = read_image(image)
    engine = options.load(min_mask_score=min_score)
    prediction = engine.predict(loaded, question, **options.of_answer())
    values = prediction_to_json(prediction, image, options.model)
    aside = "-" in (json, str(out))
    _show_answer(prediction, values, as_json=json == "-", aside=aside)
    if str(out) == "-":
        typer.echo(overlay_bytes(loaded, prediction, ".png"), nl=False)
    for path in write_answer(prediction, loaded, values, destinations):
        say(f"Wrote {path}", err=aside)
    export_answer(values, name, folders, quiet=aside)
    return tell_over()


@app.command(epilog="Example:\n\n    pixellm chat photo.jpg")
@spread
def chat(image: Annotated[str, Argument(help=f"{_IMAGE_HELP}.")], options: ModelOptions) -> None:
    """Talk about an image in several turns; /help lists the commands."""
    from pixellm.cli.chat import Chat, open_image

    loaded = open_image(image)
    consoles = open_console(), open_console(stderr=True)
    Chat(options.load(), image, loaded, *consoles, **options.of_answer()).run()


def _destinations(
    file: Path | None, name: Path, out: Path | None, json: str, masks: Path | None
) -> Destinations:
    """What to write; the overlay alone, in the current folder, where nothing is asked for."""
    from pixellm.answer_files import Destinations, check_destinations
    from pixellm.cli.images import overlay_name
    from pixellm.files import STANDARD

    overlay = overlay_name(name) if not (out or json or masks) else out
    if str(overlay) == json == STANDARD:
        raise ValueError("--out and --json can't both go to standard output; name a file.")
    chosen = Destinations(
        None if str(overlay) == STANDARD else overlay,
        Path(json) if json not in ("", STANDARD) else None,
        masks,
    )
    check_destinations(chosen, original=file)
    return chosen


def _show_answer(
    prediction: Prediction, values: dict[str, Any], *, as_json: bool, aside: bool
) -> None:
    if as_json:
        from pixellm.files import json_bytes

        typer.echo(json_bytes(values), nl=False)
    else:
        from pixellm.cli.display import print_answer

        print_answer(open_console(stderr=aside), prediction)
