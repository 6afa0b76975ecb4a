"""How fast a 7B-size PixelLM with random weights is on a GPU, in bf16, 8 and 4 bits.

    python benchmarks/gpu_7b.py [--size 7b] [--repeats 5] [--json benchmarks/results/gpu_7b.json]

Time to the first token, tokens/s at batch 1 and their share of the memory bandwidth, images/s at
batch 16, the pixel decoder's time per target, peak memory, and the same answer by the stand-in for
the released procedure. Where no GPU is at hand every figure reads "not measured".
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from measuring.machine import describe_machine, measure_limits, median_seconds
from measuring.released import answer_as_released
from measuring.report import make_report, make_tables
from measuring.speed import Bench
from measuring.workload import (
    ScriptedEngine,
    random_images,
    random_model,
    requests_about,
    scripted_answer,
)
from pixellm.checkpoint.quantize import quantize_model
from pixellm.files import json_bytes, write_files

FIGURES = (
    "first_token_s",
    "tokens_per_s",
    "bandwidth_share",
    "images_per_s_batch_16",
    "decoder_us_per_target",
    "peak_memory_gb",
    "engine_s",
    "released_s",
    "ratio",
)
PRECISIONS = ("bfloat16", "bfloat16, compiled", "int8", "int4")
LENGTH, TARGETS, BATCH = 64, 3, 16


def measure(precision: str, size: str, repeats: int) -> dict[str, Any]:
    """All figures of one precision."""
    device = torch.device("cuda")
    forget_earlier_rows()
    model, processor = random_model(size, device, torch.bfloat16)
    if precision in ("int8", "int4"):
        quantize_model(model, precision)
    # Here, for the peak is that of answering: in few bits the bf16 model is gone by now.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    bench = Bench(model, processor, repeats)
    script = scripted_answer(model, processor, LENGTH, TARGETS)
    compiled = precision.endswith("compiled")
    engine = ScriptedEngine(
        model, processor, LENGTH, cached_images=0, prefix_bytes=0, compile=compiled
    )
    engine.script = script
    one, many = (requests_about(random_images(count)) for count in (1, BATCH))
    seconds = bench.seconds(lambda: engine.predict_batch(one))
    engine.script = script[-1:]
    first = bench.seconds(lambda: engine.predict_batch(one))
    engine.script = script
    decoder = time_decoder(bench)
    # A group is one step, and the end is never read. Resizing the masks counts as decoding.
    steps = LENGTH - TARGETS * (model.config.group_size - 1) - 1
    step = (seconds - first - decoder * TARGETS) / steps
    batch = bench.seconds(lambda: engine.predict_batch(many))
    peak = torch.cuda.max_memory_allocated() / 1e9
    released = median_seconds(
        lambda: answer_as_released(model, processor, one[0], script), device, 1, 0
    )
    figures: dict[str, Any] = {
        "precision": precision,
        "first_token_s": first,
        "tokens_per_s": (LENGTH - 1) / (step * steps),
        "images_per_s_batch_16": BATCH / batch,
        "decoder_us_per_target": decoder * 1e6,
        "peak_memory_gb": peak,
        "engine_s": seconds,
        "released_s": released,
        "ratio": released / seconds,
    }
    read = weight_bytes(model.model.language_model.layers) + weight_bytes(model.lm_head)
    limits = measure_limits(device, torch.bfloat16)
    figures["bandwidth_share"] = read / step / limits["bandwidth"]
    return figures


def forget_earlier_rows() -> None:
    """Let go of compiled code, which counts against a limit, and of the models that it holds."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's weights as they lie in memory, rounded ones in their few bits."""
    total = 0
    for parameter in module.parameters():
        inner = getattr(parameter, "tensor_data_names", None)
        tensors = [getattr(parameter, name) for name in inner] if inner else [parameter]
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


@torch.inference_mode()
def time_decoder(bench: Bench, targets: int = 64) -> float:
    """Seconds of codebook and pixel decoder for a target, when many are decoded together."""
    model, config = bench.model, bench.model.config
    (image,) = random_images(1)
    inputs = bench.processor.image_processor([image]).to(model.device)
    features = model.model.encode_images(inputs["pixel_values"], inputs["pixel_mask"])[0].features
    shape = (targets, config.group_size, config.text_config.hidden_size)
    states = torch.randn(shape, device=model.device, dtype=model.dtype)
    rows = torch.zeros(targets, dtype=torch.long, device=model.device)
    work = bench.seconds(lambda: model.decode_masks(model.model.codebook(states), features, rows))
    return work / targets


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="7b", choices=["tiny", "110m", "7b", "13b"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = torch.cuda.is_available()
    rows = []
    for precision in PRECISIONS:
        if found:
            rows.append(measure(precision, options.size, options.repeats))
        else:
            rows.append({"precision": precision, **dict.fromkeys(FIGURES, "not measured")})
    device = torch.device("cuda" if found else "cpu")
    command = shlex.join(["python", "benchmarks/gpu_7b.py", *sys.argv[1:]])
    settings = {"size": options.size, "repeats": options.repeats, "tokens": LENGTH}
    settings |= {"targets": TARGETS, "gpu": describe_machine(device).get("gpu", "none at hand")}
    report = make_report(command, describe_machine(device), settings, {"GPU": rows})
    for table in make_tables(report):
        Console().print(table)
    if options.json:
        write_files({options.json: json_bytes(report)})


if __name__ == "__main__":
    main()
