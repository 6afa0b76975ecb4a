"""Answers and training beside other work: with bounded spinning and threads that pay, and without.

    python benchmarks/contention.py --json benchmarks/results/contention.json

A process for each way and kind of work, one as every program on torch is by default ("torch":
threads spin, one for each core), one as pixellm sets itself up, and by request one with bounded
spinning and a thread for each core ("all") or a single one ("one"). They work in turn, a few
seconds each, beside 0, 1 and 2 processes that do nothing but hold a core. Rates are medians over
the rounds; the load of the machine before it began is in the settings.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

KINDS = ("answers, image known", "answers, image new", "training images")
DEFAULTS_OF_OPENMP = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}
ROWS = 4
NEIGHBOURS = (0, 1, 2)
BUSY = "while True: pass"
WAYS = ("torch", "pixellm", "all", "one")


def prepare(kind: str, way: str, model: str = "nano") -> Callable[[], int]:
    """A piece of work that says how many things it did; run in a process of its own."""
    import pixellm
    from pixellm.threads import choose_threads, usable_cores

    threads = {"pixellm": None, "one": 1}.get(way, usable_cores())
    if kind == KINDS[2]:
        return prepare_training(lambda size: choose_threads(size, threads, workers=1))
    engine = pixellm.load(model, device="cpu", threads=threads)
    cached = 0 if kind == KINDS[1] else 32
    engine = pixellm.Engine(engine.model, engine.processor, cached_images=cached)
    image = Path(pixellm.__file__).parent / "examples" / "coffee.jpg"
    question = "Where are the table and the cup?"

    def answer() -> int:
        engine.predict(image, question)
        return 1

    return answer


def prepare_training(choose: Callable[[int], int | None]) -> Callable[[], int]:
    """A step of training whose batches one worker process makes."""
    import torch
    from torch.utils.data import DataLoader

    from training_throughput import build, our_loss, random_batch

    model = build("nano-scenes", "cpu")
    torch.set_num_threads(choose(sum(w.numel() for w in model.parameters())) or 1)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    loader = DataLoader(
        range(1 << 30),  # type: ignore[arg-type]
        batch_size=ROWS,
        num_workers=1,
        collate_fn=lambda rows: random_batch(model.config, len(rows), 256, 6, "cpu"),
    )
    batches = iter(loader)

    def step() -> int:
        our_loss(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return ROWS

    return step


def serve(kind: str, way: str, model: str) -> None:
    """Work for as many seconds as each line of standard input says, and print the rate."""
    work = prepare(kind, way, model)
    work()
    print("ready", flush=True)
    for line in sys.stdin:
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < float(line):
            done += work()
        print(done / (time.perf_counter() - begun), flush=True)


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def measure(kind: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rates of one kind of work, in every way, with each number of neighbours."""
    script, rates = str(Path(__file__)), dict[tuple[str, int], list[float]]()
    with ExitStack() as stack:
        processes = {}
        for way in options.way:
            own = DEFAULTS_OF_OPENMP if way == "torch" else {}
            told = ("--work", kind, "--way", way, "--model", options.model)
            processes[way] = stack.enter_context(started(script, *told, **own))
        for process in processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"{kind}: the work did not start."
        for _, neighbours in product(range(options.rounds), NEIGHBOURS):
            busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(neighbours)]
            try:
                for way, process in processes.items():
                    assert process.stdin is not None and process.stdout is not None
                    print(options.seconds, file=process.stdin, flush=True)
                    rate = float(process.stdout.readline())
                    rates.setdefault((way, neighbours), []).append(rate)
                    print(f"{kind}, {way}, {neighbours} beside: {rate:.3g}/s", file=sys.stderr)
            finally:
                for one in busy:
                    one.kill()
                    one.wait()
    return make_rows(kind, rates)


def make_rows(kind: str, rates: dict[tuple[str, int], list[float]]) -> list[dict[str, Any]]:
    """A row for each way and number of neighbours; the first way is the yardstick."""
    medians = {key: statistics.median(values) for key, values in rates.items()}
    first = next(iter(medians))[0]
    return [
        {
            "work": kind,
            "way": way,
            "busy neighbours": neighbours,
            "1/s": round(rate, 3),
            "times slower than its idle": round(medians[way, 0] / rate, 2),
            f"of {first} beside as many": round(rate / medians[first, neighbours], 2),
        }
        for (way, neighbours), rate in sorted(medians.items(), key=lambda one: one[0][1])
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="a turn of each process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=WAYS, action="append", help="torch and pixellm if none")
    parser.add_argument("--kind", choices=KINDS, action="append", help="all if none")
    parser.add_argument("--model", default="nano", help="that answers")
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.way = options.way or [*WAYS[:2]]
    if options.work:
        serve(options.work, options.way[0], options.model)
        return
    load = os.getloadavg()[0]
    rows = [one for kind in options.kind or KINDS for one in measure(kind, options)]
    import torch
    from rich.console import Console

    from measuring.machine import describe_machine
    from measuring.report import make_report, make_tables
    from pixellm.files import json_bytes, write_files
    from pixellm.threads import usable_cores

    command = shlex.join(["python", "benchmarks/contention.py", *sys.argv[1:]])
    settings = {
        "model": options.model,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "usable_cores": usable_cores(),
    }
    settings |= {"load before": round(load, 1)}
    report = make_report(
        command, describe_machine(torch.device("cpu")), settings, {"contention": rows}
    )
    for table in make_tables(report):
        Console(width=120).print(table)
    if options.json:
        write_files({options.json: json_bytes(report)})


if __name__ == "__main__":
    main()
