"""How long a step of a recipe takes on this machine, and recipes of another length.

Runs a few steps in a folder that it throws away. It decides nothing: how many steps fit into a
time is its caller's arithmetic.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from pixellm.training.config import RunConfig
from pixellm.training.trainer import TrainEvent, train

PACE_STEPS = 25
"""Steps that are run to measure; the first five are left out."""


def measure_pace(config: RunConfig) -> float:
    """Seconds a step of the last stage takes, the first ones left out."""
    moments: list[tuple[int, float]] = []

    def note(event: TrainEvent) -> None:
        if event.kind == "step":
            moments.append((event.step, time.monotonic()))

    last = config.stages[-1].model_copy(update={"steps": PACE_STEPS})
    with tempfile.TemporaryDirectory() as folder:
        changes = {"output_dir": Path(folder), "name": "pace", "log_every": 5}
        train(config.model_copy(update={**changes, "stages": (last,)}), on_event=note)
    (first_step, first), (last_step, end) = moments[0], moments[-1]
    return (end - first) / (last_step - first_step)


def with_steps(variants: Mapping[str, RunConfig], steps: int) -> dict[str, RunConfig]:
    """The recipes with another length of their last stage."""
    changed = {}
    for name, config in variants.items():
        *earlier, last = config.stages
        warmup = min(last.warmup_steps, steps // 5)
        stages = (*earlier, last.model_copy(update={"steps": steps, "warmup_steps": warmup}))
        changed[name] = config.model_copy(update={"stages": stages})
    return changed
