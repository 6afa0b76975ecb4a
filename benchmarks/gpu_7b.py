"""What a 7B-size PixelLM with random weights does on a GPU, in one call of under ten minutes.

    python benchmarks/gpu_7b.py --json benchmarks/results/gpu_7b.json
    python benchmarks/gpu_7b.py --photos coco --detector yolox_nano.onnx --minutes 2
    python benchmarks/gpu_7b.py --size tiny --repeats 1        # to its end on a CPU
    python benchmarks/gpu_7b.py --size 110m --answers --precisions float32 "float32, int8" bfloat16

Answering, in 16 bits (eager, and compiled with CUDA graphs), 8 and 4 bits: time to the first
token, tokens/s at batch 1 and their share of the memory's bandwidth, images/s at batch 1, 4, 16 and
32, the time of a further target, peak memory, what rounding or compiling takes until the first
answer is there, how far masks and chosen tokens are those of the first row, and the stand-in for
the released procedure. Training: samples/s of the 7B LoRA recipe beside a plain loop, its peak
memory and what `pixellm train --dry-run` says of it; the embedded model's recipe on photos, where
these and the detector are named. What no time is left for reads "no time left", and what fails
says why; the file of ``--json`` is written after every row, so that a call that is cut short keeps
what it measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

import training_throughput
from measuring.machine import describe_machine, measure_limits, median_seconds
from measuring.released import answer_as_released
from measuring.report import make_report, make_tables
from measuring.speed import Bench
from measuring.workload import (
    SIZES,
    ScriptedEngine,
    random_images,
    random_model,
    requests_about,
    scripted_answer,
)
from pixellm.checkpoint.quantize import quantize_model
from pixellm.files import json_bytes, write_files
from pixellm.types import Prediction

PRECISIONS = ("bfloat16", "bfloat16, compiled", "int8", "int4")
OTHER_PRECISIONS = ("float16", "float32", "float32, compiled", "float32, int8", "float32, int4")
"""By request, as on a CPU; rounded weights stand in a model of bfloat16 unless told otherwise."""
LENGTH, TARGETS = 64, 3
BATCHES = (1, 4, 16, 32)
MANY_TARGETS = 65
TRAIN_ROWS = {"7b": 4}
TRAIN_LENGTH = {"7b": 832}
DRY_RUN_MARGIN = 0.2

Masks = list[NDArray[np.bool_]]


class Told(NamedTuple):
    """What one precision answers: the masks of a told answer, and the tokens it would have said."""

    masks: Masks
    chosen: list[int]


def measure(
    precision: str,
    size: str,
    repeats: int,
    device: torch.device,
    *,
    batches: Sequence[int] = BATCHES,
    reference: Told | None = None,
    released: bool = True,
) -> tuple[dict[str, Any], Told]:
    """All figures of answering in one precision, and what it answers.

    Args:
        precision: one of :data:`PRECISIONS` or :data:`OTHER_PRECISIONS`.
        size: of the random model.
        repeats: runs that a median is taken of.
        device: where.
        batches: images answered together.
        reference: what another precision answers.
        released: run the released procedure too, where there is no reference.
    """
    forget_earlier_rows(device)
    kinds = precision.split(", ")
    floating = getattr(torch, kinds[0] if "float" in kinds[0] else "bfloat16")
    model, processor = random_model(size, device, floating)
    begun = time.perf_counter()
    if kinds[-1] in ("int8", "int4"):
        quantize_model(model, kinds[-1])
    # Here, for the peak is that of answering: in few bits the bf16 model is gone by now.
    start_counting_memory(device)
    bench = Bench(model, processor, repeats)
    script = scripted_answer(model, processor, LENGTH, TARGETS)
    compiled = kinds[-1] == "compiled"
    options = {"cached_images": 0, "prefix_bytes": 0, "max_batch": max(batches)}
    engine = ScriptedEngine(model, processor, LENGTH, compile=compiled, **options)
    requests = requests_about(random_images(max(batches)))
    if compiled:
        batches = batches[:1]  # each other number of rows is compiled anew, for minutes

    def answer(count: int, told: Sequence[int]) -> list[Prediction]:
        engine.script = told
        return engine.predict_batch(requests[:count])

    figures: dict[str, Any] = {"precision": precision}
    answer(1, script)
    figures["until_first_answer_s"] = time.perf_counter() - begun
    figures["first_token_s"] = bench.seconds(lambda: answer(1, script[-1:]))
    taken = {count: bench.seconds(lambda n=count: answer(n, script)) for count in batches}
    figures["answer_s"] = taken[1]
    # Words alone, so that nothing but steps lies between the first token and the end.
    words = scripted_answer(model, processor, LENGTH, 0)
    step = (bench.seconds(lambda: answer(1, words)) - figures["first_token_s"]) / (LENGTH - 1)
    figures["tokens_per_s"] = 1 / step
    read = weight_bytes(model.model.language_model.layers) + weight_bytes(model.lm_head)
    limits = measure_limits(device, floating, repeats)
    figures["bandwidth_gb_per_s"] = limits["bandwidth"] / 1e9
    figures["bandwidth_share"] = read / step / limits["bandwidth"]
    figures |= {f"images_per_s_batch_{count}": count / each for count, each in taken.items()}
    figures["us_per_further_target"] = time_further_target(bench) * 1e6
    figures["peak_memory_gb"] = peak_memory(device)
    engine.chosen = []
    told = Told([segment.mask for segment in answer(1, script)[0].segments], engine.chosen)
    if reference is not None:
        figures["masks_iou_with_first_row"] = mean_iou(told.masks, reference.masks)
        same = [one == other for one, other in zip(told.chosen, reference.chosen, strict=True)]
        figures["tokens_as_in_first_row"] = statistics.mean(same)
    elif released:
        seconds = median_seconds(
            lambda: answer_as_released(model, processor, requests[0], script), device, 1, 0
        )
        figures |= {"released_s": seconds, "ratio": seconds / taken[1]}
    return figures, told


def forget_earlier_rows(device: torch.device) -> None:
    """Let go of compiled code, which counts against a limit, and of the models that it holds."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def start_counting_memory(device: torch.device) -> None:
    """Let the peak be that of what follows; on a CPU it is the process's, from its start."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> float:
    """GB that were in use at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's weights as they lie in memory, rounded ones in their few bits."""
    total = 0
    for parameter in module.parameters():
        inner = getattr(parameter, "tensor_data_names", None)
        tensors = [getattr(parameter, name) for name in inner] if inner else [parameter]
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


def mean_iou(masks: Masks, others: Masks) -> float:
    """Mean overlap of masks in pairs; two empty ones are alike."""
    shares = []
    for one, other in zip(masks, others, strict=True):
        union = (one | other).sum()
        shares.append((one & other).sum() / union if union else 1.0)
    return float(np.mean(shares))


@torch.inference_mode()
def time_further_target(bench: Bench) -> float:
    """Seconds of codebook and pixel decoder for each target of an image beyond the first."""
    model, config = bench.model, bench.model.config
    (image,) = random_images(1)
    inputs = bench.processor.image_processor([image]).to(model.device)
    features = model.model.encode_images(inputs["pixel_values"], inputs["pixel_mask"])[0].features

    def seconds(targets: int) -> float:
        shape = (targets, config.group_size, config.text_config.hidden_size)
        states = torch.randn(shape, device=model.device, dtype=model.dtype)
        rows = torch.zeros(targets, dtype=torch.long, device=model.device)
        return bench.seconds(
            lambda: model.decode_masks(model.model.codebook(states), features, rows)
        )

    return (seconds(MANY_TARGETS) - seconds(1)) / (MANY_TARGETS - 1)


def measure_training(size: str, device: torch.device, steps: int) -> list[dict[str, Any]]:
    """Both loops of the recipe of a size, each in a process of its own, and the memory foretold."""
    rows = []
    model = "7b" if size == "7b" else "nano-scenes"
    for loop in ("plain", "pixellm"):
        job = {
            "model": model,
            "loop": loop,
            "device": device.type,
            "rows": TRAIN_ROWS.get(size, 1),
            "targets": 6,
            "length": TRAIN_LENGTH.get(size, 256),
            "steps": steps,
            "threads": torch.get_num_threads(),
        }
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(training_throughput.measure, (job,))
        if loop == "pixellm":
            row |= compare_dry_run(row, TRAIN_ROWS["7b"], TRAIN_LENGTH["7b"])
        rows.append(row)
    return rows


def compare_dry_run(row: dict[str, Any], rows: int, length: int) -> dict[str, Any]:
    """What `pixellm train --dry-run` says of the 7B recipe; beside the peak where that was run."""
    told = training_throughput.estimate_7b(rows, length)
    if row["model"] != "7b":
        return {"dry_run_of_7b_gb": told}
    share = told / row["peak_memory_gb"]
    return {
        "dry_run_of_7b_gb": told,
        "dry_run_over_peak": share,
        "within_20_percent": abs(share - 1) <= DRY_RUN_MARGIN,
    }


def measure_photos(
    photos: Path, detector: Path, minutes: float, changes: Sequence[str]
) -> dict[str, Any]:
    """Images a second of the embedded model's own recipe, by stage, from the log of a short run."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"output_dir={folder}",
            f"model.vision.path={detector}",
            *(f"data.{source}.args.root={photos}" for source in (0, 1)),
            *(f"stages.{stage}.max_minutes={minutes / 2}" for stage in (0, 1)),
            *changes,
        ]
        options = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "-m", "pixellm", "train", "nano", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        logs = sorted(Path(folder).glob("*/train_log.jsonl"))
        if done.returncode or not logs:
            return {"photos": done.stderr.strip()[-300:]}
        lines = [json.loads(line) for line in logs[0].read_text("utf-8").splitlines()]
    rates: dict[str, list[float]] = {}
    for line in lines:
        if "images_per_second" in line:
            rates.setdefault(str(line.get("stage")), []).append(line["images_per_second"])
    return {f"stage {name}, images/s": statistics.median(each) for name, each in rates.items()}


def turn(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each figure, with a column for each of the rows: narrow enough to be read."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [str(next(iter(row.values()))) for row in rows]
    if len(set(columns)) < len(rows):
        columns = [f"{name} {number}" for number, name in enumerate(columns, start=1)]
    return [
        {"figure": name, **{c: row.get(name) for c, row in zip(columns, rows, strict=True)}}
        for name in names
    ]


class Clock:
    """Says how much of the call's time is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def run(self, least: float, work: Callable[[], Any]) -> Any:
        """What ``work`` gives, or why it gives nothing: too few seconds are left, or it failed."""
        if self._end - time.monotonic() < least:
            return "no time left"
        try:
            return work()
        except Exception as error:  # the other rows are worth having all the same
            traceback.print_exc()
            return f"failed: {type(error).__name__}: {error}"[:300]


def main() -> None:
    """Measure and print."""
    found = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="7b", choices=SIZES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=560, help="of the whole call")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    known = PRECISIONS + OTHER_PRECISIONS
    parser.add_argument("--precisions", nargs="+", choices=known, default=list(PRECISIONS))
    parser.add_argument(
        "--answers", action="store_true", help="neither the released procedure nor training"
    )
    parser.add_argument(
        "--steps", type=int, default=6, help="of training, after two that don't count"
    )
    parser.add_argument("--photos", type=Path, help="folder in COCO's layout")
    parser.add_argument("--detector", type=Path, help="yolox_nano.onnx")
    parser.add_argument("--minutes", type=float, default=2, help="of training on photos")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="of that recipe")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if found else "cpu")
    if not found and options.size not in ("tiny", "110m"):
        parser.error(f"There is no GPU here; try --size tiny, not {options.size}.")
    clock, reference = Clock(options.seconds), None
    answering: list[dict[str, Any]] = []
    tables = {"answering": answering}
    settled = {"batches": options.batches, "released": not options.answers}
    for precision in options.precisions:
        row = clock.run(
            60.0 if found else 0.0,
            lambda p=precision, r=reference: measure(
                p, options.size, options.repeats, device, reference=r, **settled
            ),
        )
        if isinstance(row, str):
            answering.append({"precision": precision, "first_token_s": row})
        else:
            answering.append(row[0])
            reference = row[1] if reference is None else reference
        keep(options, device, tables)
    if not options.answers:
        add_training(options, device, clock, tables)
    shown = {name: turn(rows) for name, rows in tables.items()}
    for table in make_tables({**keep(options, device, tables), "tables": shown}):
        Console(width=120).print(table)


def add_training(
    options: argparse.Namespace,
    device: torch.device,
    clock: Clock,
    tables: dict[str, list[dict[str, Any]]],
) -> None:
    """Tables of training, and of the embedded model's recipe on photos."""
    found = device.type == "cuda"
    forget_earlier_rows(device)
    training = clock.run(
        90.0 if found else 0.0, lambda: measure_training(options.size, device, options.steps)
    )
    tables["training"] = [{"model": training}] if isinstance(training, str) else training
    keep(options, device, tables)
    photos: Any = "not measured: name --photos and --detector"
    if options.photos and options.detector:
        named = options.photos.resolve(), options.detector.resolve()
        work = lambda: measure_photos(*named, options.minutes, options.changes)  # noqa: E731
        photos = clock.run(options.minutes * 60 + 40 if found else 0.0, work)
    tables["the embedded model's recipe"] = [
        {"photos": photos} if isinstance(photos, str) else photos
    ]


def keep(
    options: argparse.Namespace, device: torch.device, tables: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """The report on all rows so far, which is written where a file was named."""
    command = shlex.join(["python", "benchmarks/gpu_7b.py", *sys.argv[1:]])
    settings = {"size": options.size, "repeats": options.repeats, "tokens": LENGTH}
    settings |= {"targets": TARGETS}
    report = make_report(command, describe_machine(device), settings, tables)
    if options.json:
        write_files({options.json: json_bytes(report)})
    return report


if __name__ == "__main__":
    main()
