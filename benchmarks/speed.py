"""Speed of the engine, growth of its cost, FLOPs: measured on this machine.

    python benchmarks/speed.py engine --model 110m --json engine_110m.json
    python benchmarks/speed.py growth --model 110m
    python benchmarks/speed.py flops --words 64

Reads options, calls :mod:`measuring`, prints tables and writes JSON.
"""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from measuring.speed import Bench

app = typer.Typer(no_args_is_help=True, help="Measure speed and cost on this machine.")

_Model = Annotated[
    str, typer.Option(help="Random weights of size tiny, 110m, 7b, 13b; or nano, a folder, an id.")
]
_Tower = Annotated[str | None, typer.Option(help="CLIP of a released model, as for convert.")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
_Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
_Repeats = Annotated[int, typer.Option(min=1, help="Runs that a median is taken of.")]
_Quick = Annotated[bool, typer.Option("--quick", help="The smallest case alone, once.")]
_Json = Annotated[Path | None, typer.Option(help="JSON file for the figures.")]


@app.command(
    epilog="Examples:\n\n    python benchmarks/speed.py engine --model 110m --json engine_110m.json"
    "\n\n    python benchmarks/speed.py engine --model 110m --tokens 64 --targets 3"
    "\n\n    python benchmarks/speed.py engine --model nano-scenes --quick"
)
def engine(
    model: _Model = "110m",
    vision_tower: _Tower = None,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    repeats: _Repeats = 5,
    released_repeats: Annotated[
        int, typer.Option(min=1, help="Runs of the released procedure, which takes long.")
    ] = 1,
    tokens: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Length of the answer; may be repeated; 16, 64 and 128 if none."),
    ] = None,
    targets: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Masks in it; may be repeated; 1, 3 and 6 if none."),
    ] = None,
    quick: _Quick = False,
    json: _Json = None,
) -> None:
    """Compare the engine with the released procedure; say where its time goes."""
    from measuring.speed import compare_with_released, shares_of_limits

    bench = _prepare(model, vision_tower, device, dtype, 1 if quick else repeats)
    lengths = [16] if quick else tokens or [16, 64, 128]
    counts = [1] if quick else targets or [1, 3, 6]
    rows = compare_with_released(bench, lengths, counts, released_repeats)
    shares = shares_of_limits(bench, rows)
    settings = {"model": model, "repeats": bench.repeats, "released_repeats": released_repeats}
    tables = {"engine and released procedure, seconds": rows, "share of the machine": shares}
    _finish(bench, settings, tables, json)


@app.command(epilog="Example:\n\n    python benchmarks/speed.py ways --model nano --way compiled")
def ways(
    model: _Model = "110m",
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    repeats: _Repeats = 5,
    tokens: Annotated[int, typer.Option(min=2, help="Length of the answer.")] = 64,
    targets: Annotated[int, typer.Option(min=0, help="Masks in it.")] = 3,
    way: Annotated[
        list[str] | None,
        typer.Option(help="int8, compiled steps or compiled; may be repeated; all if none."),
    ] = None,
    json: _Json = None,
) -> None:
    """Compare 8 bits and torch.compile with the engine as it is, in turn.

    TORCHINDUCTOR_CACHE_DIR names where compiled code is kept for the next process.
    """
    from measuring.speed import WAYS, compare_ways

    chosen = WAYS if way is None else (WAYS[0], *way)
    if unknown := set(chosen) - set(WAYS):
        raise typer.BadParameter(f"no way {', '.join(unknown)}; there are {', '.join(WAYS)}")
    bench = _prepare(model, None, device, dtype, repeats)
    rows = compare_ways(bench, chosen, tokens, targets)
    settings = {"model": model, "repeats": repeats, "tokens": tokens, "targets": targets}
    _finish(bench, settings, {"ways of answering": rows}, json)


@app.command(epilog="Example:\n\n    python benchmarks/speed.py growth --model 110m")
def growth(
    model: _Model = "110m",
    vision_tower: _Tower = None,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    repeats: _Repeats = 5,
    quick: _Quick = False,
    json: _Json = None,
) -> None:
    """Measure how cost grows with targets, questions per image, batch and answer length."""
    from measuring import speed

    bench = _prepare(model, vision_tower, device, dtype, 1 if quick else repeats)
    counts = (1, 2) if quick else (1, 2, 4, 8, 16)
    words, targets = (8, 1) if quick else (40, 3)
    length = words + targets * bench.model.config.group_size
    tables = {
        "targets": speed.grow_targets(bench, counts, words),
        "questions about one image": speed.grow_questions(bench, counts, length, targets),
        "batch": speed.grow_batch(bench, counts, length, targets),
        "answer length": speed.grow_length(bench, [length * n for n in counts[:4]], targets),
    }
    settings = {"model": model, "repeats": bench.repeats, "length": length, "targets": targets}
    _finish(bench, settings, tables, json)


@app.command(epilog="Example:\n\n    python benchmarks/speed.py flops --words 64 --json flops.json")
def flops(
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of question and template.")] = 64,
    words: Annotated[int, typer.Option(min=1, help="Tokens of the answer beside masks'.")] = 64,
    json: _Json = None,
) -> None:
    """Count FLOPs at 7B and 13B, beside a system that gets its masks from SAM ViT-H."""
    import torch

    from measuring.flops import compare_flops
    from measuring.machine import describe_machine

    rows = compare_flops(("7b", "13b"), prompt, words, (1, 3, 6))
    settings = {"prompt_tokens": prompt, "answer_words": words}
    machine = describe_machine(torch.device("meta"))
    _show_and_write(machine, settings, {"TFLOPs of an answer about one image": rows}, json)


def _prepare(model: str, vision_tower: str | None, device: str, dtype: str, repeats: int) -> Bench:
    """The model on its device; random where its name is a size."""
    importlib.import_module("pixellm")  # before torch, whose threads it bounds
    notes = importlib.import_module("transformers.utils.logging")
    notes.disable_progress_bar()
    notes.set_verbosity_error()
    import torch

    from measuring.speed import Bench
    from measuring.workload import SIZES, random_model
    from pixellm.engine import load, pick_device, pick_dtype
    from pixellm.threads import choose_threads

    if model in SIZES:
        where = pick_device(device)
        parts = random_model(model, where, pick_dtype(dtype, where))
        size = sum(weight.numel() for weight in parts[0].parameters())
        if where.type == "cpu" and (count := choose_threads(size)):
            torch.set_num_threads(count)
    else:
        loaded = load(model, device=device, dtype=dtype, vision_tower=vision_tower)
        parts = loaded.model, loaded.processor
    return Bench(*parts, repeats, lambda text: typer.echo(f"Measuring {text}", err=True))


def _finish(
    bench: Bench,
    settings: dict[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    json: Path | None,
) -> None:
    from measuring.machine import describe_machine

    parameters = sum(p.numel() for p in bench.model.parameters())
    language = sum(p.numel() for p in bench.model.model.language_model.parameters())
    settings |= {"dtype": str(bench.model.dtype).removeprefix("torch."), "parameters": parameters}
    settings |= {"language_model_parameters": language}
    _show_and_write(describe_machine(bench.model.device), settings, tables, json)


def _show_and_write(
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    json: Path | None,
) -> None:
    from rich.console import Console

    from measuring.report import make_report, make_tables
    from pixellm.files import json_bytes, write_files

    command = shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]])
    report = make_report(command, machine, settings, tables)
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file has no columns to run out of
    for part in ("machine", "settings"):
        console.print(", ".join(f"{key} {value}" for key, value in report[part].items()))
    for table in make_tables(report):
        console.print(table)
    if json is not None:
        write_files({json: json_bytes(report)})
        typer.echo(f"Wrote {json}")


if __name__ == "__main__":
    app()
