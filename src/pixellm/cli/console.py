"""What commands have in common: consoles, quiet imports, JSON.

Light to import; rich, torch and transformers are reached only when something is called.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

_LIBRARIES = r"(transformers|torch|torchao|peft|accelerate)(\.|$)"


def open_console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error."""
    from rich.console import Console

    return Console(stderr=stderr)


def printable(text: object) -> str:
    """Text that can't steer a terminal: control characters are shown as a replacement character.

    Names of files and answers of models are printed, and they may hold anything.
    """
    return "".join(
        one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for one in str(text)
    )


def say(text: object, *, err: bool = False) -> None:
    """Print a line, or on standard error, with nothing in it that steers a terminal."""
    typer.echo(printable(text), err=err)


@contextmanager
def resumable() -> Iterator[None]:
    """Let Ctrl-C say that the same command goes on where it stopped."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped; the same command goes on from here.") from None


def import_quietly(name: str) -> Any:
    """Import one of our modules that needs transformers, whose own bars and notes are hidden.

    So are warnings that its names and torch's will change: whoever types a command can't mend that.
    """
    with _uncollected() if name not in sys.modules else nullcontext():
        _import_libraries()
        module = importlib.import_module(name)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=_LIBRARIES)
    notes = importlib.import_module("transformers.utils.logging")
    notes.disable_progress_bar()
    notes.set_verbosity_error()
    return module


def _import_libraries() -> None:
    """Import transformers' index of its models while the system loads torch's library.

    The one is Python's work alone, hundreds of files that are read, and the other is none of it.
    """
    if "torch" in sys.modules:
        return
    importlib.import_module("transformers")  # has no need of torch yet
    loading = threading.Thread(target=_load_torch_library)
    loading.start()
    try:
        importlib.import_module("transformers.models")
    finally:
        loading.join()


def _load_torch_library() -> None:
    """What importing torch begins with; left to it on other systems, and in builds for GPUs."""
    import ctypes

    torch = importlib.util.find_spec("torch")
    for folder in (torch and torch.submodule_search_locations) or ():
        library = Path(folder, "lib", "libtorch_cpu.so")
        others = (library.with_name(f"libtorch_{name}.so") for name in ("cuda", "hip", "xpu"))
        if library.is_file() and not any(map(Path.exists, others)):
            # A function of C, during which Python goes on; CDLL(library) would hold it up. Where
            # Python itself can't be asked for it, nothing is lost: importing torch loads the same.
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).dlopen(os.fsencode(library), os.RTLD_NOW)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage while libraries are imported, nor later among what they brought.

    Hundreds of thousands of objects that live as long as the process would be walked over again
    and again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


_over = threading.Event()


def tell_over() -> None:
    """Say that a command has succeeded, with all written and closed; see :func:`end_at_once`."""
    _over.set()


def end_at_once() -> None:
    """End the process, once a command is over, without taking apart all that it had loaded.

    To be called last of all that is done at the exit, in a process that is the command's alone: it
    would hide what becomes of a program that goes on after the command.
    """
    if _over.is_set():
        with suppress(OSError, ValueError):  # a reader that has gone is told of as ever
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(0)


def check_json(target: str, keys: Sequence[str]) -> None:
    """Refuse a place where :func:`write_json` can't write, or would replace a foreign file.

    A file may be replaced that has the ``keys`` of such a document.
    """
    from pixellm.files import check_file

    if target not in ("", "-"):
        check_file(Path(target), keys)


def write_json(values: dict[str, Any], target: str) -> None:
    """To a file, to standard output for "-", nowhere for ""."""
    from pixellm.files import json_bytes, write_files

    if target == "-":
        typer.echo(json_bytes(values), nl=False)
    elif target:
        write_files({Path(target): json_bytes(values)})
        say(f"Wrote {target}")
