"""Servers in processes of their own, forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from typing import Any


def fork(target: Any, said: Path, *arguments: Any) -> Any:
    """Begin a process; what it says goes into a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pixellm.serving.app", "pixellm.serving.server", __name__])
    process = context.Process(target=target, args=(said, *arguments))
    process.start()
    return process


def serve_scripted(said: Path) -> None:
    """A server of scripted answers."""
    from scripted_engine import ScriptedEngine

    from pixellm.serving.app import create_app
    from pixellm.serving.server import bind, run
    from pixellm.serving.settings import Settings

    _say_into(said)
    settings = Settings(timeout=60)
    bound = bind("127.0.0.1", 0)
    print("Serving at", bound.getsockname()[1], flush=True)
    run(create_app(ScriptedEngine(0.05, max_batch=2), "scripted", settings), bound, settings)


def serve_command(said: Path, words: list[str]) -> None:
    """`python -m pixellm` with words."""
    _say_into(said)
    sys.argv = ["pixellm", *words]
    runpy.run_module("pixellm", run_name="__main__", alter_sys=True)


def _say_into(said: Path) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
