"""The commands ``pixellm train``, ``merge`` and ``ablate``.

Reads options, shows a run or its plan and calls :mod:`pixellm.training`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from pixellm.cli.console import import_quietly, open_console, printable, resumable, say
from pixellm.cli.options import Device, Dtype, number

if TYPE_CHECKING:
    from pixellm.report.page import Table
    from pixellm.training.config import RunConfig
    from pixellm.training.plan import RunPlan, StagePlan


app = typer.Typer()


@app.command(
    epilog="Examples:\n\n    pixellm train nano"
    "\n\n    pixellm train nano --set name=trial --set stages.0.steps=100"
    "\n\n    pixellm train nano --resume"
    "\n\n    pixellm train nano --resume 1500"
    "\n\n    pixellm train pixellm_7b --dry-run --gpus 8"
)
def train(
    recipe: Annotated[
        Path,
        Argument(
            help="YAML file that describes the run, or a bundled recipe: nano, pixellm_7b, ..."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        Option("--set", metavar="A.B=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    step: Annotated[
        int | None, Argument(min=1, help="With --resume: go back to the checkpoint of this step.")
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Go on from the newest checkpoint, or that of STEP.")
    ] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Show what would train, memory and steps; no training.")
    ] = False,
    gpus: Annotated[
        int | None, Option(min=1, help="GPUs that a dry run plans for; 1 if not given.")
    ] = None,
) -> None:
    """Train a model as a recipe says."""
    from pixellm.training.config import load_config

    if step is not None and not resume:
        raise ValueError(f"Step {step} is for --resume; leave it out, or add --resume.")
    if gpus is not None and not dry_run:
        raise ValueError(
            "--gpus is for --dry-run; train on several with accelerate launch or torchrun, such as "
            f"torchrun --nproc-per-node {gpus} -m pixellm train {recipe}."
        )
    if dry_run and resume:
        raise ValueError("--dry-run shows a run from its beginning; leave out --resume.")
    config = load_config(recipe, overrides or ())
    if dry_run:
        return _show_plan(config, gpus or 1)
    from pixellm.cli.display import TrainDisplay
    from pixellm.training.checkpoints import list_checkpoints

    if resume and not list_checkpoints(config.run_folder / "checkpoints"):
        raise ValueError(
            f"{config.run_folder} has no checkpoint to go on from; leave out --resume to start the "
            "run."
        )

    trainer = import_quietly("pixellm.training.trainer")
    try:
        with TrainDisplay(open_console(stderr=True)) as display:
            folder = trainer.train(config, on_event=display, resume=step or resume)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_how_to_go_on(str(stop), recipe, overrides or (), config)) from None
    if os.environ.get("RANK", "0") == "0":
        say(f"The model is in {folder / 'model'}")
    return None


def _how_to_go_on(stopped: str, recipe: Path, overrides: Sequence[str], config: RunConfig) -> str:
    """One sentence with the exact command that goes on with a run that was stopped."""
    from pixellm.training.checkpoints import list_checkpoints

    settings = [part for setting in overrides for part in ("--set", setting)]
    command = shlex.join(["pixellm", "train", str(recipe), *settings])
    if list_checkpoints(config.run_folder / "checkpoints"):
        return f"{stopped or 'Stopped'}; go on from the last checkpoint: {command} --resume"
    return f"Stopped before the first checkpoint: {command} --resume has nothing to go on from."


@app.command(
    epilog="Examples:\n\n    pixellm merge runs/pixellm-7b --out pixellm-7b-mine"
    "\n\n    pixellm merge runs/pixellm-7b/checkpoints/step_00001500 --out early"
)
def merge(
    source: Annotated[str, Argument(help="A run's folder, or one of its checkpoints.")],
    out: Annotated[Path, Option(help="Folder to write; new or empty.")],
    dtype: Annotated[
        str, Option(help="auto (as the model was before), float32, bfloat16 or float16.")
    ] = "auto",
) -> None:
    """Write adapters and the model that they belong to as one whole model."""
    from pixellm.files import check_new_folder

    check_new_folder(out)
    from rich.markup import escape

    library = import_quietly("pixellm.checkpoint.export")
    with open_console(stderr=True).status(escape(printable(f"Merging {source}"))):
        library.merge_adapters(source, out, dtype=dtype)
    say(f"Wrote {out}")


@app.command(
    epilog="Examples:\n\n    pixellm ablate recipes/ablation/*.yaml --minutes 600"
    "\n\n    pixellm ablate recipes/ablation/base.yaml recipes/ablation/alpha_1.yaml "
    "--seeds 5 --set stages.0.steps=2000"
)
def ablate(
    recipes: Annotated[
        list[Path], Argument(help="YAML files, or bundled recipes: ablation, ablation_losses.")
    ],
    out: Annotated[Path, Option(help="Folder for runs, results and table.")] = Path(
        "runs/ablation"
    ),
    seeds: Annotated[int, Option(min=1, help="Runs of each recipe.")] = 3,
    minutes: Annotated[
        float, number("What all runs may take together; 0 leaves the recipes' steps.", min=0)
    ] = 0.0,
    split: Annotated[str, Option(help="Of the scenes that are scored.")] = "test",
    num: Annotated[int, Option(min=1, help="Images that are scored.")] = 200,
    dialogues: Annotated[int, Option(min=1, help="Dialogues about each image.")] = 4,
    batch_size: Annotated[int, Option(min=1, help="Questions answered together.")] = 16,
    device: Device = "auto",
    dtype: Dtype = "float32",
    overrides: Annotated[
        list[str] | None,
        Option("--set", metavar="A.B=VALUE", help="Change a setting of all recipes."),
    ] = None,
) -> None:
    """Train variants of a recipe, score them alike, write one table; goes on where it stopped."""
    from pixellm.cli.display import TrainDisplay
    from pixellm.scenes.dataset import ScenesDataset

    ScenesDataset(split, 0, num, dialogues)  # refuses what can't be drawn before anything trains
    library = import_quietly("pixellm.ablation")
    variants = library.load_variants(recipes, overrides or ())
    claims = library.load_claims(recipes)
    settings = library.AblationSettings(
        out, seeds, minutes or None, split, num, dialogues, batch_size, device, dtype
    )
    with resumable(), TrainDisplay(open_console(stderr=True)) as display:
        table = library.ablate(variants, settings, claims, on_event=display, on_run=_say_run)
    say(table.read_text(encoding="utf-8"))
    say(f"Wrote {table}, {table.with_suffix('.json')} and {table.with_suffix('.html')}")


def _say_run(name: str, seed: int, number: int, total: int) -> None:
    say(f"Run {number} of {total}: {name}, seed {seed}", err=True)


def _show_plan(config: RunConfig, gpus: int) -> None:
    """What the run would do: model, data, what trains, steps, memory, and what is missing."""
    from pixellm.cli.display import print_table

    plan = import_quietly("pixellm.training.plan").plan_run(config, num_gpus=gpus)
    console = open_console()
    size = "not known" if plan.num_parameters is None else f"{plan.num_parameters:,} parameters"
    say(f"Run {plan.name}: {size}, {gpus} GPU{'s' if gpus > 1 else ''}.")
    print_table(console, _sources_table(plan))
    if plan.evaluation is not None:
        count = plan.evaluation.num_images
        images = "not here" if count is None else f"{count:,} images"
        steps = f"every {plan.evaluation.every_steps:,} steps and behind each stage"
        say(f"Evaluation on {plan.evaluation.name} ({images}), {steps}.")
    for stage in plan.stages:
        print_table(console, _stage_table(stage))
        print_table(console, _memory_table(stage))
    for problem in plan.problems:
        say(f"Missing: {problem}")


def _sources_table(plan: RunPlan) -> Table:
    from pixellm.report.page import Table

    rows: list[tuple[str, ...]] = [("data", "share", "items")]
    for source in plan.sources:
        length = "not here" if source.length is None else f"{source.length:,}"
        rows.append((source.name, f"{source.share:.1%}", length))
    return Table("Mixture", rows, "mixture")


def _stage_table(stage: StagePlan) -> Table:
    from pixellm.report.page import Table

    epoch = "unknown" if stage.steps_per_epoch is None else f"{stage.steps_per_epoch:,}"
    title = (
        f"Stage {stage.name}: {stage.steps:,} steps of {stage.samples_per_step} images; "
        f"{epoch} steps an epoch"
    )
    rows: list[tuple[str, ...]] = [("module", "optimizer", "learning rate", "parameters")]
    for row in stage.rows:
        frozen = row["optimizer"] == "frozen"
        rate = "-" if frozen else f"{row['learning_rate']:.1e}"
        rows.append((row["module"], row["optimizer"], rate, f"{row['parameters']:,}"))
    trained = sum(row["parameters"] for row in stage.rows if row["optimizer"] != "frozen")
    return Table(title, [*rows, ("all that trains", "", "", f"{trained:,}")], "stage")


def _memory_table(stage: StagePlan) -> Table:
    from pixellm.report.page import Table

    columns = ("strategy", "GPUs", "weights", "gradients", "optimizer", "activations", "total")
    rows: list[tuple[str, ...]] = [columns]
    for row in stage.memory:
        parts = (row.weights, row.gradients, row.optimizer, row.activations, row.total)
        name = "one GPU" if row.num_gpus == 1 else row.strategy
        rows.append((name, str(row.num_gpus), *(f"{part / 1e9:.1f}" for part in parts)))
    title = "Memory per GPU in GB, estimated; the CUDA context comes on top"
    return Table(title, rows, "memory")
