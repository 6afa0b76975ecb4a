"""How long an embedded model takes: loading, and answering the example question about one image.

    python benchmarks/nano_latency.py [--model nano] [--repeats 9] [--json FILE]

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
    "import sys, time; start = time.perf_counter(); import pixellm;"
    " pixellm.load(sys.argv[1], device='cpu');"
    " print(time.perf_counter() - start)"
)
ASKED = {
    "nano": ("src/pixellm/examples/coffee.jpg", "src/pixellm/examples/question.txt"),
    "nano-scenes": ("examples/scene.png", "examples/scene_question.txt"),
}
"""Image and question of each model."""


def time_loading(model: str, repeats: int) -> list[float]:
    """Seconds from a fresh interpreter's first import to a model that can answer."""
    runs = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", LOAD, model], capture_output=True, check=True)
        runs.append(float(done.stdout.split()[-1]))
    return runs


def time_answers(model: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of an answer with the image encoded anew, and with it cached."""
    import pixellm

    keeping = pixellm.load(model, device="cpu")
    forgetting = pixellm.Engine(keeping.model, keeping.processor, cached_images=0)
    image, text = (ROOT / path for path in ASKED[model])
    question = text.read_text(encoding="utf-8").strip()
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
    parser.add_argument("--model", choices=list(ASKED), default="nano")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import torch
    import transformers

    loading = time_loading(options.model, options.repeats)
    figures = {"load": loading, **time_answers(options.model, options.repeats)}
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
