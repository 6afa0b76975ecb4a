"""The curve of a training run, from its logs.

    python benchmarks/plot_training.py runs/nano-scenes/train_log.jsonl docs/nano-scenes/curve.png

Several logs are drawn one behind the other. Needs matplotlib, which the extra `curate` brings.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

LOSSES = (
    *("patch_class", "patch_box", "feature_class", "target_class"),
    *("text", "mask", "dice", "absent", "region", "choice"),
)
COLUMNS = 4
"""Panels side by side."""


def read_steps(log: Path) -> list[dict[str, Any]]:
    """The log's step lines, in order; steps repeated by a resume keep their last line."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    by_step = {line["step"]: line for line in lines if line["event"] == "step"}
    return [by_step[step] for step in sorted(by_step)]


def read_all(logs: list[Path]) -> list[dict[str, Any]]:
    """The steps of all logs, numbered on from one log to the next."""
    steps: list[dict[str, Any]] = []
    for log in logs:
        start = steps[-1]["step"] if steps else 0
        steps += [line | {"step": start + line["step"]} for line in read_steps(log)]
    return steps


def main() -> None:
    """Draw one panel for each loss that was trained on, stages told apart by colour."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("image", type=Path)
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = read_all(options.logs)
    stages = list(dict.fromkeys(line["stage"] for line in steps))
    colors = pyplot.get_cmap("turbo", len(stages)) if len(stages) > 10 else pyplot.get_cmap("tab10")
    shown = [name for name in LOSSES if any(line.get(name, 0) > 0 for line in steps)]
    columns = min(len(shown), COLUMNS)
    rows = -(-len(shown) // columns)
    size = (4 * columns, 3 * rows + 0.6)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(shown) :]:
        panel.remove()
    lines = {}
    for panel, name in zip(panels.flat[: len(shown)], shown, strict=True):
        for stage, stretch in groupby(steps, key=lambda line: line["stage"]):
            points = [(line["step"], line[name]) for line in stretch if line.get(name, 0) > 0]
            if points:
                color = colors(stages.index(stage))
                (lines[stage],) = panel.plot(*zip(*points, strict=True), color=color, label=stage)
        panel.set(title=name, xlabel="step", yscale="log")
        panel.grid(alpha=0.3)
    handles = [lines[stage] for stage in stages if stage in lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * columns)
    figure.savefig(options.image, dpi=100)


if __name__ == "__main__":
    main()
