"""What a run tells the outside: events for a display, lines in a log, means over a few steps.

Knows figures and names only; it neither prints nor decides anything.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixellm.files import LineLog


@dataclass(frozen=True, slots=True)
class TrainEvent:
    """What happened, for a progress display.

    Attributes:
        kind: "resume", "stage" (values: its steps and minutes at most, `groups`, what trains),
            "step" (losses, rates, time left in the stage), "time_limit", "evaluation",
            "checkpoint" or "end".
        step: optimizer steps done in the run.
        total_steps: of the whole run, as now planned; where stages are limited by time, what the
            pace so far makes likely.
        stage: name of the stage.
        values: figures of the event; losses are means over the steps since the last one.
    """

    kind: str
    step: int
    total_steps: int
    stage: str
    values: Mapping[str, Any]


EventCallback = Callable[[TrainEvent], None]


@dataclass
class Meter:
    """Means of losses and speed since the last log line."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    images: int = 0
    tokens: int = 0
    dropped_turns: int = 0
    dropped_rows: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, losses: Mapping[str, Tensor], images: int, tokens: int) -> None:
        """Counts one step in: images of all processes, tokens of this one."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.steps += 1
        self.images += images
        self.tokens += tokens

    def means(self) -> tuple[list[str], Tensor]:
        """Names, and the mean of each over the steps, still on the device."""
        names = list(self.sums)
        return names, torch.stack([self.sums[name].float() for name in names]) / self.steps

    def seconds(self) -> float:
        """Time since the last log line."""
        return max(time.monotonic() - self.started, 1e-9)


def peak_memory(device: torch.device) -> int:
    """Highest memory so far in bytes: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class RunLog:
    """The run's JSONL file: one object a line, appended; a resumed run repeats lost steps.

    Where steps repeat after a resume, the later lines count.

    Args:
        path: file, created with its folder at the first line. A last line that a kill has cut
            short is dropped then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log: LineLog | None = None

    def write(self, entry: dict[str, Any]) -> None:
        """Appends one line."""
        if self._log is None:
            self._log = LineLog(self.path)
        self._log.append((json.dumps(entry) + "\n").encode("ascii"))

    def close(self) -> None:
        """Closes the file."""
        if self._log is not None:
            self._log.close()
            self._log = None
