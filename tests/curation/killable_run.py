"""Runs the generator in fresh processes that can be killed, without importing everything again.

Started as a script: for a line on standard input (a folder, an address) it forks a child that sees
a whole run through, and prints the child's number; at the next line it prints how the child ended.
Until then a child that has ended keeps its number, so that a kill can't hit anybody else.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path

import matplotlib.figure
import openai.resources.chat
import pyarrow.parquet
from curation_runs import client_of, run_all, source_of

from pixellm.llm.run import RunLimits

WORKERS = 3
WRITING_TAKES = 0.02
"""Seconds that each file waits before it takes its place, so that kills can come in between."""
PRELOADED = (matplotlib.figure, openai.resources.chat, pyarrow.parquet)


def run(folder: Path, url: str) -> None:
    replace = Path.replace

    def replace_late(self: Path, target: Path) -> Path:
        time.sleep(WRITING_TAKES)
        return replace(self, target)

    Path.replace = replace_late  # type: ignore[assignment, method-assign]
    source = source_of(folder, questions=3)
    _, stopped = run_all(
        source, folder / "out", {"": client_of(source, url)}, RunLimits(workers=WORKERS, wait=0.01)
    )
    os._exit(1 if stopped else 0)


def main() -> None:
    gc.freeze()  # what was imported is no garbage, in no child
    while line := sys.stdin.readline():
        folder, url = line.split()
        child = os.fork()
        if child == 0:
            try:
                run(Path(folder), url)
            finally:
                os._exit(3)
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
