"""Threads of a process: how many it may run, how many pay, and that waiting ones let others work.

Threads of OpenMP spin while they wait for their next piece of work. Where others hold the cores
that costs fifty times more than it gains, so it is bounded before torch is loaded, which reads
these settings once. What a user has set stays. Depends on nothing; it is for others to tell torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from math import ceil
from pathlib import Path

SPIN_SETTINGS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""Variables of GNU's OpenMP (turns of a loop) and of LLVM's and Intel's (milliseconds)."""

_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

_ONE_THREAD_UP_TO = 8_000_000
"""Parameters below which a second thread costs more in waiting than it takes off: measured with 6
and 8 million (docs/benchmarks.md). Threads that spin for long gain more, and lose it tenfold where
others hold the cores."""

_IS_OWN_PROCESS = "torch" not in sys.modules
"""Whether torch came after this package: else the program around it has chosen for itself."""


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Bound how long waiting threads spin, in this process and those that it starts.

    Does nothing where torch is loaded already, or where the user has set how threads wait.
    """
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in environment:
        return
    for name, value in SPIN_SETTINGS.items():
        environment.setdefault(name, value)


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those it is bound to, within its control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        bound = len(os.sched_getaffinity(0))
    else:
        bound = os.cpu_count() or 1
    quota = _quota(root)
    return bound if quota is None else max(1, min(bound, ceil(quota)))


def threads_that_pay(parameters: int, workers: int = 0) -> int:
    """Threads for a model of that many parameters, beside so many working processes."""
    return 1 if parameters <= _ONE_THREAD_UP_TO else max(1, usable_cores() - workers)


def choose_threads(parameters: int, wanted: int | None = None, workers: int = 0) -> int | None:
    """Threads of a CPU that torch is to be set to for a model; None leaves torch's own, as 0 does.

    Where no number is wanted they are as many as pay beside ``workers`` busy processes, unless
    OMP_NUM_THREADS or MKL_NUM_THREADS is set or the program had loaded torch before this package.
    """
    if wanted is not None:
        return wanted or None
    if not _IS_OWN_PROCESS or any(name in os.environ for name in _THREAD_SETTINGS):
        return None
    return threads_that_pay(parameters, workers)


def _quota(root: Path) -> float | None:
    """Cores' worth of time that the control groups of this process grant; None for all."""
    quotas = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / path.lstrip("/")
        # A container may see its own group as the root while the file names it by its full path.
        for place in (group, *group.parents):
            quotas += [q for q in (_quota_of(place),) if q is not None]
            if place == mount:
                break
    return min(quotas, default=None)


def _quota_of(group: Path) -> float | None:
    """The quota of one group, of either version of control groups."""
    limit = _lines(group / "cpu.max")  # version 2: "quota period", or "max period"
    if limit:
        values = limit[0].split()
    else:
        values = [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
    try:
        quota, period = map(int, values)
    except ValueError:  # no such files, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split("\n")[:-1]
    except (OSError, ValueError):
        return []
