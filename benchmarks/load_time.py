"""How long a model takes to load in a fresh interpreter, what of that is not ours, and commands.

    python benchmarks/load_time.py [--model nano-scenes] [--repeats 5] [--before TREE] [--json FILE]
    python benchmarks/load_time.py --only "pixellm segment" --before TREE

Every run is a process of its own. "import torch" and "import transformers" (its model base
class) are a floor that any program on top of them stands on; "load" is everything from the first
import to a model that can answer. Commands are timed from the start of their process to its end.
With --before all is measured with an earlier source tree too (a folder that holds src), in turn.
Prints medians in seconds, wall clock and processor time, with their range, the machine's cores and
the versions they were measured with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pixellm

STEPS = {
    "import torch": "import torch",
    "import transformers": "import transformers.modeling_utils",
    "import pixellm.load": "from pixellm import load",
    "load": "from pixellm import load; load({model!r}, device='cpu')",
}
IMAGE = str(Path(pixellm.__file__).parent / "examples" / "coffee.jpg")
QUESTION = "Where are the table and the cup?"
COMMANDS = {
    "pixellm segment": ("segment", IMAGE, QUESTION, "--model", "{model}", "--json", "-"),
    "pixellm --help": ("--help",),
    "pixellm eval scenes --help": ("eval", "scenes", "--help"),
    "no such image": ("segment", "missing.jpg", QUESTION),
    "no such model": ("segment", IMAGE, QUESTION, "--model", "missing"),
    "no such questions": ("predict", "missing.jsonl"),
}
CLOCKS = ("wall", "processor")
TIMED = """
import time
started = time.perf_counter(), time.process_time()
{step}
print(time.perf_counter() - started[0], time.process_time() - started[1])
"""


def time_step(step: str, tree: Path) -> dict[str, float]:
    """Seconds by each clock that a fresh interpreter takes for one statement."""
    program = TIMED.format(step=step)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, check=True, env=environment(tree))
    return dict(zip(CLOCKS, map(float, done.stdout.split()[-2:]), strict=True))


def time_command(arguments: Sequence[str], tree: Path) -> dict[str, float]:
    """Seconds by each clock of one command, from the start of its process to the end."""
    command = [sys.executable, "-m", "pixellm", *arguments]
    begun = time.perf_counter()
    hidden = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=hidden, stderr=hidden, env=environment(tree))
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0  # it has been waited for
    times = time.perf_counter() - begun, used.ru_utime + used.ru_stime
    return dict(zip(CLOCKS, times, strict=True))


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree / "src")}


def measure(
    model: str, repeats: int, trees: dict[str, Path], only: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Median and range of every step; the steps take turns, so that all meet the same machine."""
    runs: dict[str, list[dict[str, float]]] = {}
    for _, (when, tree) in product(range(repeats), trees.items()):
        for name, step in _chosen(STEPS, only):
            runs.setdefault(name + when, []).append(time_step(step.format(model=model), tree))
        for name, words in _chosen(COMMANDS, only):
            arguments = [word.format(model=model) for word in words]
            runs.setdefault(name + when, []).append(time_command(arguments, tree))
    return {
        name: {clock: _summary([one[clock] for one in found]) for clock in CLOCKS}
        for name, found in runs.items()
    }


def _chosen(named: Mapping[str, Any], only: Sequence[str]) -> list[tuple[str, Any]]:
    return [(name, one) for name, one in named.items() if not only or name in only]


def _summary(values: list[float]) -> dict[str, float]:
    middle = statistics.median(values)
    named = {"median": middle, "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in named.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano-scenes", help="embedded name or directory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--before", type=Path, help="an earlier source tree")
    known = (*STEPS, *COMMANDS)
    parser.add_argument("--only", nargs="+", choices=known, default=(), help="of what it times")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trees = {"": Path(__file__).parents[1]}
    if options.before:
        trees = {", before": options.before.resolve(), **trees}
    report: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/load_time.py", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "seconds": measure(options.model, options.repeats, trees, options.only),
    }
    for name, found in report["seconds"].items():
        columns = [
            f"{clock} {values['median']:6.2f} s ({values['min']:.2f} to {values['max']:.2f})"
            for clock, values in found.items()
        ]
        print(f"{name:34} " + "   ".join(columns))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
