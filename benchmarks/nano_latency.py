"""How long the embedded model takes: loading, and answering about one image.

    python benchmarks/nano_latency.py [--repeats 9] [--json FILE]

Prints medians with their range, the machine's cores and the versions they were measured with.
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
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOAD = (
    "import time; start = time.perf_counter(); import pixellm;"
    " pixellm.load('nano-scenes', device='cpu');"
    " print(time.perf_counter() - start)"
)


def time_loading(repeats: int) -> list[float]:
    """Seconds from a fresh interpreter's first import to a model that can answer."""
    runs = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, check=True)
        runs.append(float(done.stdout.split()[-1]))
    return runs


def time_answers(repeats: int) -> dict[str, list[float]]:
    """Seconds of an answer with the image encoded anew, and with it cached."""
    import pixellm

    keeping = pixellm.load("nano-scenes", device="cpu")
    forgetting = pixellm.Engine(keeping.model, keeping.processor, cached_images=0)
    image = ROOT / "examples" / "scene.png"
    question = (ROOT / "examples" / "scene_question.txt").read_text(encoding="utf-8").strip()
    fresh, cached = [], []
    keeping.predict(image, question)
    for _ in range(repeats):
        for engine, runs in ((forgetting, fresh), (keeping, cached)):
            start = time.perf_counter()
            engine.predict(image, question)
            runs.append(time.perf_counter() - start)
    return {"answer": fresh, "answer, image cached": cached}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import torch
    import transformers

    figures = {"load": time_loading(options.repeats), **time_answers(options.repeats)}
    report = {
        "command": "python " + " ".join(["benchmarks/nano_latency.py", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seconds": {
            name: {
                "median": round(statistics.median(runs), 4),
                "min": round(min(runs), 4),
                "max": round(max(runs), 4),
            }
            for name, runs in figures.items()
        },
    }
    for name, values in report["seconds"].items():
        print(f"{name:24} {values['median']:.3f} s  ({values['min']:.3f} to {values['max']:.3f})")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
