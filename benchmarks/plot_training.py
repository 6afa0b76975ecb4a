"""The curve of a training run, from its log.

    python benchmarks/plot_training.py runs/nano/train_log.jsonl docs/nano/curve.png

Needs matplotlib, which the extra `curate` brings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SHOWN = ("patch_class", "text", "mask", "dice")


def read_steps(log: Path) -> list[dict[str, Any]]:
    """The log's step lines, in order; steps repeated by a resume keep their last line."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    by_step = {line["step"]: line for line in lines if line["event"] == "step"}
    return [by_step[step] for step in sorted(by_step)]


def main() -> None:
    """Draw one panel a loss, stages told apart by colour."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = read_steps(options.log)
    figure, panels = pyplot.subplots(1, len(SHOWN), figsize=(4 * len(SHOWN), 3.2))
    for panel, name in zip(panels, SHOWN, strict=True):
        for stage in dict.fromkeys(line["stage"] for line in steps):
            chosen = [line for line in steps if line["stage"] == stage and name in line]
            panel.plot([s["step"] for s in chosen], [s[name] for s in chosen], label=stage)
        panel.set(title=name, xlabel="step", yscale="log")
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(options.picture, dpi=100)


if __name__ == "__main__":
    main()
