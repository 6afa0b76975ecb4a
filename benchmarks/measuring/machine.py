"""The machine that a figure was measured on: its name, and what it can do at most.

Knows nothing of models.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices of the product that is timed."""
_WEIGHT_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
"""Of the weight that is multiplied with a vector; far more than any cache holds."""


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, versions, and the GPU where the device is one."""
    import transformers

    described: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    return described


def measure_limits(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> dict[str, float]:
    """What plain products reach.

    Returns:
        ``flops``: FLOP/s of a product of two square matrices; ``bandwidth``: bytes/s at which a
        weight is read that is multiplied with one vector, as a decoding step does.
    """
    side = _SIDE.get(device.type, 2048)
    square = torch.rand(side, side, device=device).to(dtype)
    product = median_seconds(lambda: square @ square, device, repeats)
    columns = 4096
    rows = _WEIGHT_BYTES.get(device.type, 1 << 28) // (columns * dtype.itemsize)
    weight = torch.rand(rows, columns, device=device).to(dtype)
    vector = torch.rand(columns, device=device).to(dtype)
    read = median_seconds(lambda: weight @ vector, device, repeats)
    return {"flops": 2 * side**3 / product, "bandwidth": rows * columns * dtype.itemsize / read}


def median_seconds(
    work: Callable[[], object], device: torch.device, repeats: int, warm_ups: int = 1
) -> float:
    """Median time of a piece of work, after ``warm_ups`` runs that don't count."""
    return statistics.median(all_seconds(work, device, repeats, warm_ups))


def all_seconds(
    work: Callable[[], object], device: torch.device, repeats: int, warm_ups: int = 1
) -> list[float]:
    """Seconds of each run, after ``warm_ups`` runs that don't count."""
    runs = []
    for _ in range(warm_ups + repeats):
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        runs.append(time.perf_counter() - start)
    return runs[warm_ups:]


def wait_for(device: torch.device) -> None:
    """Let a GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
