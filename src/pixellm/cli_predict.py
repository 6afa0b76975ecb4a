"""The command ``pixellm predict``, and ``pixellm segment`` with ``--batch``: many pictures.

Reads options, shows a progress bar and calls :mod:`pixellm.prediction`; how a job goes on after a
kill is not its business. :func:`add_commands` puts the command into the command line.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pixellm.engine import Engine
    from pixellm.prediction.rows import Row

_Question = Annotated[
    str, typer.Argument(help="Asked about each picture of a folder, and where a line has none.")
]
_Out = Annotated[
    Path | None,
    typer.Option(help="JSONL file of answers; DATASET_pixellm.jsonl where not given."),
]
_Ray = Annotated[
    int,
    typer.Option(min=0, metavar="WORKERS", help="Answer on a Ray cluster with so many engines."),
]


Quantize = Annotated[
    str | None, typer.Option(help="int8 or int4: the language model's weights in so many bits.")
]
Offload = Annotated[
    Path | None,
    typer.Option(help="Folder for weights that fit neither the GPU nor memory; spreads the model."),
]


@dataclass(frozen=True)
class EngineLoader:
    """Loads an engine in whichever process it is called; small enough to be sent there."""

    model: str
    device: str
    dtype: str
    quantize: str | None = None
    offload: Path | None = None

    def __call__(self) -> Engine:
        """Load it."""
        logging = importlib.import_module("transformers.utils.logging")
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        from pixellm.engine import load

        return load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            quantize=self.quantize,
            offload_folder=self.offload,
        )


def add_commands(app: typer.Typer) -> None:
    """Add ``predict`` to a command line."""
    app.command(
        epilog="Examples:\n\n    pixellm predict questions.jsonl --out answers.jsonl"
        '\n\n    pixellm predict photos "All the cups, please." --batch-size 8'
        "\n\n    pixellm predict questions.jsonl --ray 4"
    )(predict)


def predict(
    dataset: Annotated[Path, typer.Argument(help="JSONL of image and question, or a folder.")],
    question: _Question = "",
    out: _Out = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions answered, and written to OUT, together.")
    ] = 32,
    ray: _Ray = 0,
    model: Annotated[
        str, typer.Option(help="nano, a folder, a run's folder, or a hub id.")
    ] = "nano",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    quantize: Quantize = None,
    offload: Offload = None,
) -> None:
    """Answer questions about many pictures; the same command goes on where a stopped one was."""
    from pixellm.prediction.rows import read_rows

    rows = read_rows(dataset, question)
    target = out or Path(f"{dataset.resolve().stem}_pixellm.jsonl")
    loader = EngineLoader(model, device, dtype, quantize, offload)
    _run_and_report(rows, target, loader, batch_size, ray)


def _run_and_report(
    rows: Sequence[Row], target: Path, load: EngineLoader, batch_size: int, ray_workers: int
) -> None:
    """Run a job with a progress bar; say at the end what was written and what went wrong."""
    from rich.console import Console

    from pixellm.prediction.cluster import answer_on_ray
    from pixellm.prediction.job import answer_here, run_job
    from pixellm.terminal import answers_progress

    gpus = 1.0 if load.device.startswith("cuda") else 0.0
    spread = (
        answer_on_ray(load, load.model, ray_workers, gpus)
        if ray_workers
        else answer_here(load, load.model)
    )
    try:
        with answers_progress(Console(stderr=True)) as progress:
            state = run_job(rows, target, load.model, spread, batch_size, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped; the same command goes on from here.") from None
    typer.echo(f"Wrote {target}: {state.done - state.bad} answers.")
    if state.bad:
        typer.echo(f'{state.bad} rows have no answer; their "error" says why.', err=True)
