"""Trains variants of a recipe with several seeds each, scores them alike, and writes one table.

Every finished run leaves a small result file, so that the same command goes on where it stopped.
How variants are compared is in :mod:`pixellm.evaluation.ablation`; how a run trains is the
trainer's business. It prints nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixellm.checkpoint.fingerprint import fingerprint_model
from pixellm.evaluation.ablation import (
    METRICS,
    AnswerTable,
    Comparison,
    comparison_table,
    comparison_to_dict,
    score_variant,
)
from pixellm.evaluation.baselines import GUESSES, guess_scenes
from pixellm.files import MARKED_TEXT, check_file, check_folder, json_bytes, read_json, write_files
from pixellm.training.config import RunConfig, find_recipes, load_config
from pixellm.training.pace import measure_pace, with_steps
from pixellm.training.trainer import EventCallback, NonFiniteLossError, train

BASE = "base"
"""The variant that the others are compared with."""

MAX_NEW_TOKENS = 192
"""Longest answer while scoring: room for six targets of eight codebook tokens each."""

_TRAINING_SHARE = 0.75
_FEWEST_STEPS = 10

OnRun = Callable[[str, int, int, int], None]
"""Called with variant, seed, number of the run from 1, and number of runs."""


@dataclass(frozen=True, slots=True)
class AblationSettings:
    """How variants are trained and scored.

    Attributes:
        out: folder for runs, results and table.
        num_seeds: runs of each variant, with seeds from 0.
        minutes: what all runs may take together, about; None leaves the recipes' steps.
        split: of the scenes that variants are scored on.
        num_scenes: images, the same for all.
        dialogues_per_image: likewise.
        batch_size: questions answered together.
        device: for scoring; "auto" takes a GPU where there is one, as training does.
        dtype: for scoring, by name; "auto" is as in :func:`pixellm.engine.load`.
    """

    out: Path
    num_seeds: int = 3
    minutes: float | None = None
    split: str = "test"
    num_scenes: int = 200
    dialogues_per_image: int = 4
    batch_size: int = 16
    device: str = "auto"
    dtype: str = "float32"

    def scoring(self) -> dict[str, Any]:
        """What a variant's scores depend on beside its weights."""
        return {
            "split": self.split,
            "num_scenes": self.num_scenes,
            "dialogues_per_image": self.dialogues_per_image,
            "dtype": self.dtype,
            "metrics": list(METRICS),
        }


def load_variants(recipes: Sequence[Path], overrides: Iterable[str] = ()) -> dict[str, RunConfig]:
    """Reads recipes that differ in what is compared and in nothing else of the budget.

    Args:
        recipes: YAML files, folders of them or bundled recipes; the name of a file is the
            name of the variant.
        overrides: `a.b=value`, for all of them.

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: a bad recipe, two of one name, or budgets that differ.
    """
    overrides = list(overrides)
    recipes = [path for name in recipes for path in find_recipes(name)]
    variants: dict[str, RunConfig] = {}
    for path in sorted(recipes, key=lambda recipe: recipe.stem != BASE):  # others as given
        if path.stem in variants or path.stem in GUESSES:
            raise ValueError(f"Two variants are called {path.stem!r}; rename one of the recipes.")
        variants[path.stem] = load_config(path, overrides)
    budgets = {name: _budget(config) for name, config in variants.items()}
    first = next(iter(budgets), "")
    for name, budget in budgets.items():
        if budget != budgets[first]:
            raise ValueError(
                f"{name} and {first} train for different budgets ({budget} and {budgets[first]} "
                "steps, images a step); give all variants the same."
            )
    return variants


def ablate(
    variants: Mapping[str, RunConfig],
    settings: AblationSettings,
    on_event: EventCallback | None = None,
    on_run: OnRun | None = None,
) -> Path:
    """Trains and scores what is still missing, and writes the table.

    Args:
        variants: recipes by name.
        settings: seeds, scoring, folder.
        on_event: events of every training run.
        on_run: told before each run, finished ones included.

    Returns:
        The table, `ablation.md`; `ablation.json` lies beside it.

    Raises:
        ValueError: no variants, the folder holds runs of other settings, or too little time.
    """
    if not variants:
        raise ValueError("There is nothing to compare; name recipes, such as ablation.")
    path = settings.out / "ablation.md"
    check_folder(settings.out)
    check_file(path)
    check_file(path.with_suffix(".json"), keys=("settings", "budget", "diverged"))
    on_run = on_run or (lambda *progress: None)
    if settings.minutes is not None:
        variants = with_steps(variants, _plan_steps(variants, settings, settings.minutes))
    guesses = {name: [_score_guess(name, settings)] for name in GUESSES}
    runs = [(name, seed) for seed in range(settings.num_seeds) for name in variants]
    tables: dict[str, list[AnswerTable]] = {name: [] for name in variants}
    diverged: list[str] = []
    for number, (name, seed) in enumerate(runs, start=1):
        on_run(name, seed, number, len(runs))
        table = _result_of(name, seed, variants[name], settings, on_event)
        if table is None:
            diverged.append(f"{name} (seed {seed})")
        else:
            tables[name].append(table)
        if number % len(variants) == 0:  # a table after every seed: a stopped comparison has one
            _write_tables(path, tables | guesses, variants, settings, seed + 1, diverged)
    return path


def _budget(config: RunConfig) -> list[tuple[int, int]]:
    return [(stage.steps, stage.batch_size * stage.accumulation) for stage in config.stages]


def _run_config(config: RunConfig, name: str, seed: int, out: Path) -> RunConfig:
    """The recipe with its seed, in its folder; data sources draw other samples too."""
    sources = tuple(
        source.model_copy(update={"args": {**source.args, "seed": source.args["seed"] + seed}})
        if "seed" in source.args
        else source
        for source in config.data
    )
    changes = {"name": f"seed_{seed}", "output_dir": out / name, "data": sources}
    return config.model_copy(update={**changes, "seed": config.seed + seed})


def _result_of(
    name: str,
    seed: int,
    recipe: RunConfig,
    settings: AblationSettings,
    on_event: EventCallback | None,
) -> AnswerTable | None:
    """The scores of one run, from its result file or from training; None where it diverged."""
    config = _run_config(recipe, name, seed, settings.out)
    path = settings.out / name / f"seed_{seed}.json"
    identity = {"recipe": _digest(config), "start": _start_of(config), **settings.scoring()}
    found = _read_result(path, identity)
    if found is None:
        try:
            _train(config, on_event)
            found = {"sums": _score(config, settings).sums.tolist()}
        except NonFiniteLossError as error:
            found = {"diverged": str(error)}
        _write_result(path, {**identity, **found})
        shutil.rmtree(config.run_folder / "checkpoints", ignore_errors=True)
    return AnswerTable(np.array(found["sums"])) if "sums" in found else None


def _digest(config: RunConfig) -> str:
    """Names a recipe by what a run's result depends on, not by where it lies."""
    values = config.model_dump(mode="json", exclude={"output_dir", "threads", "num_workers"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _start_of(config: RunConfig) -> str:
    """Names the weights that a run starts from by their content; "" where there are none here."""
    source = config.model.get("initial_weights") or config.model.get("checkpoint")
    return "" if source is None else fingerprint_model(str(source))


def _read_result(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    values = read_json(path)
    for key, value in identity.items():
        if values.get(key) != value:
            raise ValueError(
                f"{path} was made with another {key} ({values.get(key)!r}, now {value!r}); use "
                "another --out or the former settings."
            )
    return values


def _write_result(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_files({path: json_bytes(values)})


def _train(config: RunConfig, on_event: EventCallback | None) -> None:
    """Trains a run to its end, from its last checkpoint where there is one.

    Raises:
        ValueError: the folder holds a run of another recipe.
    """
    saved = config.run_folder / "config.yaml"
    if saved.is_file() and _digest(load_config(saved)) != _digest(config):
        raise ValueError(f"{config.run_folder} holds a run of another recipe; use another --out.")
    if (config.run_folder / "model").is_dir():
        return
    train(config, on_event=on_event, resume=True)


def _score(config: RunConfig, settings: AblationSettings) -> AnswerTable:
    from pixellm.engine import load

    engine = load(
        config.run_folder,
        device=settings.device,
        dtype=settings.dtype,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    return score_variant(
        engine,
        settings.split,
        settings.num_scenes,
        dialogues_per_image=settings.dialogues_per_image,
        batch_size=settings.batch_size,
    )


def _score_guess(name: str, settings: AblationSettings) -> AnswerTable:
    """A baseline that reads no question, on the same scenes."""
    path = settings.out / f"{name}.json"
    found = _read_result(path, settings.scoring())
    if found is None:
        scenes = (settings.split, settings.num_scenes)
        dialogues = settings.dialogues_per_image
        guesser = guess_scenes(name, *scenes, dialogues_per_image=dialogues)
        table = score_variant(guesser, *scenes, dialogues_per_image=dialogues)
        found = {"sums": table.sums.tolist()}
        _write_result(path, {**settings.scoring(), **found})
    return AnswerTable(np.array(found["sums"]))


# How many steps fit into the minutes: measured once, on the first variant, and kept.


def _plan_steps(
    variants: Mapping[str, RunConfig], settings: AblationSettings, minutes: float
) -> int:
    """Steps of every run's last stage; from the plan file where the folder has one.

    Raises:
        ValueError: too little time for the runs, or a plan for other minutes or runs.
    """
    num_runs = len(variants) * settings.num_seeds
    wanted = {"minutes": minutes, "runs": num_runs}
    path = settings.out / "plan.json"
    found = _read_result(path, wanted)
    if found is None:
        pace = measure_pace(variants.get(BASE) or next(iter(variants.values())))
        steps = math.floor(_TRAINING_SHARE * minutes * 60 / num_runs / pace)
        if steps < _FEWEST_STEPS:
            raise ValueError(
                f"{num_runs} runs in {minutes:g} minutes leave {steps} steps each at {pace:.2f} s "
                "a step; give more minutes, or fewer recipes or seeds."
            )
        found = {**wanted, "seconds_per_step": pace, "steps": steps}
        _write_result(path, found)
    return int(found["steps"])


def _write_tables(
    path: Path,
    tables: Mapping[str, Sequence[AnswerTable]],
    variants: Mapping[str, RunConfig],
    settings: AblationSettings,
    num_seeds: int,
    diverged: Sequence[str],
) -> None:
    comparison = Comparison(tables)
    budget = " + ".join(
        f"{n} steps of {b} images" for n, b in _budget(next(iter(variants.values())))
    )
    notes = [
        f"{len(variants)} variants with {num_seeds} seeds each, {budget} per run. Scored "
        f"on scenes, split {settings.split}: {settings.num_scenes} images with up to "
        f"{settings.dialogues_per_image} dialogues each, free generation, strict protocol, "
        "questions with targets. 95 % intervals: bootstrap over seeds and images; differences "
        "are paired by image. largest_object and all_objects are guesses from the true objects."
    ]
    if diverged:
        notes.append(f"\nDiverged and left out: {', '.join(diverged)}.")
    values = {
        "settings": {**asdict(settings), "out": str(settings.out)},
        "budget": _budget(next(iter(variants.values()))),
        "diverged": list(diverged),
        **comparison_to_dict(comparison, BASE),
    }
    table = comparison_table(comparison, BASE, notes)
    marked = f"{table}\n{MARKED_TEXT}\n".encode()
    write_files({path.with_suffix(".json"): json_bytes(values), path: marked})
