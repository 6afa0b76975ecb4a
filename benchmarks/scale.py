"""Cost of `pixellm predict` against the number of images: time, memory, going on, workers, overlap.

    python benchmarks/scale.py --json benchmarks/results/scale.json
    python benchmarks/scale.py --counts 20 --counts 60 --rounds 1 --no-ray      # a try

Every figure is one run of the command on small images of noise, each different: its wall time, the
processor time and the peak memory of its process. "Going on" runs the command again on the longest
job with its last batch taken off. "Together" and "one after the other" are the same job in this
process with and without reading ahead, in turn. "One engine" is the memory of this process while
it answers about image after image.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

QUESTION = "Where is the cup?"
SIDE = (48, 64)
RAY_IMAGES = 64


def make_images(folder: Path, count: int) -> Path:
    """A folder with that many JPEG images of noise."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(SIDE[::-1])
        image.save(folder / f"{number:06d}.jpg", quality=90)
    return folder


def run_command(*arguments: str) -> dict[str, float]:
    """Seconds, processor seconds and peak MB of one `pixellm` command."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pixellm", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    told = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"pixellm {shlex.join(arguments)} failed:\n{told}")
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / 1024,
    }


def grow(model: str, counts: list[int], work: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs over more and more images, and going on with the longest."""
    rows: list[dict[str, Any]] = []
    for count in counts:
        images, out = make_images(work / f"images{count}", count), work / f"answers{count}.jsonl"
        command = ("predict", str(images), QUESTION, "--model", model, "--out", str(out))
        row: dict[str, Any] = {"images": count, **run_command(*command)}
        if rows:
            first = rows[0]
            more = count - first["images"]
            row["ms_a_further_image"] = 1e3 * (row["seconds"] - first["seconds"]) / more
            row["cpu_ms_a_further_image"] = 1e3 * (row["cpu_seconds"] - first["cpu_seconds"]) / more
            row["kb_a_further_image"] = 1024 * (row["peak_mb"] - first["peak_mb"]) / more
        rows.append(row)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[: (len(lines) - 1) // 32 * 32]))
    again = {"images": counts[-1], **run_command(*command)}
    again["same file"] = out.read_bytes() == whole
    return rows, again


def on_ray(model: str, work: Path) -> list[dict[str, Any]]:
    """The same job here and on local Ray with one and with two workers."""
    images, rows = make_images(work / "ray", RAY_IMAGES), []
    for workers in (0, 1, 2):
        out = work / f"ray{workers}.jsonl"
        options = ("--ray", str(workers)) if workers else ()
        command = ("predict", str(images), QUESTION, "--model", model, "--batch-size", "8")
        figures = run_command(*command, "--out", str(out), *options)
        same = out.read_bytes() == (work / "ray0.jsonl").read_bytes()
        rows.append({"workers": workers, "seconds": figures["seconds"], "same file": same})
    return rows


def overlap(model: str, count: int, rounds: int, work: Path) -> list[dict[str, Any]]:
    """Images a second with and without reading ahead, in turn."""
    import pixellm
    from pixellm.data.rows import read_rows
    from pixellm.engine.jobs import answer_here
    from pixellm.engine.questions import RowWorker, answer_ahead, answer_rows

    engine = pixellm.load(model, device="cpu")
    rows = read_rows(make_images(work / "overlap", count), QUESTION)

    class OneByOne(RowWorker):
        """As before: pixels are read, then all is left to the engine."""

        def __init__(self, engine: pixellm.Engine) -> None:
            super().__init__(lambda: engine, model)
            self._engine = None

    ways = {
        "one after the other": lambda: answer_here(lambda: OneByOne(engine)),
        "together": lambda: answer_ahead(lambda: engine, model),
    }

    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, spread in ways.items():
            engine.forget()
            out = work / "overlap.jsonl"
            out.unlink(missing_ok=True)
            begun = time.perf_counter()
            answer_rows(rows, out, model, spread(), 32)
            taken[name].append(time.perf_counter() - begun)
    rates = {name: count / statistics.median(times[1:]) for name, times in taken.items()}
    first = rates["one after the other"]
    return [{"way": k, "images_per_s": rate, "gain": rate / first} for k, rate in rates.items()]


def live_long(model: str, count: int) -> list[dict[str, Any]]:
    """Memory of this process while one engine answers about more and more images, all new."""
    import numpy as np

    import pixellm

    engine = pixellm.load(model, device="cpu")
    rng, rows = np.random.default_rng(1), list[dict[str, Any]]()
    points = {max(1, count * share // 100) for share in (5, 10, 20, 40, 60, 80, 100)}
    for number in range(1, count + 1):
        engine.predict(rng.integers(0, 256, (*SIDE, 3), dtype=np.uint8), QUESTION)
        if number in points:
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
            resident = pages * os.sysconf("SC_PAGESIZE") / 2**20
            rows.append({"predictions": number, "resident_mb": resident})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano", help="any model")
    parser.add_argument("--counts", type=int, action="append", help="100, 1000, 10000 if none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--life", type=int, default=2_000, help="predictions of one engine")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    counts = sorted(options.counts or [100, 1_000, 10_000])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = options.model
        rows, again = grow(model, counts, work)
        tables = {"predict": rows, "going on, last batch left": [again]}
        if not options.no_ray:
            tables["local Ray"] = on_ray(model, work)
        tables["one engine"] = live_long(model, options.life)
        tables["reading ahead"] = overlap(model, min(counts[0], 96), options.rounds, work)
    import torch
    from rich.console import Console

    from measuring.machine import describe_machine
    from measuring.report import make_report, make_tables
    from pixellm.files import json_bytes, write_files

    command = shlex.join(["python", "benchmarks/scale.py", *sys.argv[1:]])
    settings = {"model": options.model, "rounds": options.rounds, "load before": round(load, 1)}
    report = make_report(command, describe_machine(torch.device("cpu")), settings, tables)
    for table in make_tables(report):
        Console(width=120).print(table)
    if options.json:
        write_files({options.json: json_bytes(report)})


if __name__ == "__main__":
    main()
