"""How long a model takes to load in a fresh interpreter, and what of that is not ours.

    python benchmarks/load_time.py [--model nano-scenes] [--repeats 5] [--json FILE]

Every run is a process of its own. "import torch" and "import transformers" (its model base
class) are a floor that any program on top of them stands on; "load" is everything from the first
import to a model that can answer. Prints medians in seconds, wall clock and processor time, with
their range, the machine's cores and the versions they were measured with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

STEPS = {
    "import torch": "import torch",
    "import transformers": "import transformers.modeling_utils",
    "import pixellm.load": "from pixellm import load",
    "load": "from pixellm import load; load({model!r}, device='cpu')",
}
CLOCKS = ("wall", "processor")
TIMED = """
import time
started = time.perf_counter(), time.process_time()
{step}
print(time.perf_counter() - started[0], time.process_time() - started[1])
"""


def time_step(step: str) -> dict[str, float]:
    """Seconds by each clock that a fresh interpreter takes for one statement."""
    program = TIMED.format(step=step)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return dict(zip(CLOCKS, map(float, done.stdout.split()[-2:]), strict=True))


def measure(model: str, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Median and range of every step; the steps take turns, so that all meet the same machine."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in STEPS}
    for _ in range(repeats):
        for name, step in STEPS.items():
            runs[name].append(time_step(step.format(model=model)))
    return {
        name: {clock: _summary([one[clock] for one in found]) for clock in CLOCKS}
        for name, found in runs.items()
    }


def _summary(values: list[float]) -> dict[str, float]:
    middle = statistics.median(values)
    named = {"median": middle, "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in named.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano-scenes", help="embedded name or directory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/load_time.py", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "seconds": measure(options.model, options.repeats),
    }
    for name, found in report["seconds"].items():
        columns = [
            f"{clock} {values['median']:6.2f} s ({values['min']:.2f} to {values['max']:.2f})"
            for clock, values in found.items()
        ]
        print(f"{name:22} " + "   ".join(columns))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
