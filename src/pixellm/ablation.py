"""Train variants of a recipe with several seeds each, score them alike, and write one table.

Every run is trained in a folder of its own and evaluated in one beside it, as `pixellm eval scenes`
does, so that the same command goes on where it stopped. The table compares what those folders hold.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixellm.checkpoint.fingerprint import fingerprint_model
from pixellm.evaluation.baselines import GUESSES
from pixellm.evaluation.evaluate import BenchmarkRun, evaluate, with_numbers
from pixellm.evaluation.intervals import Difference, Estimate, Resampled, bootstrap
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.scores import OVERLAPS, Rules
from pixellm.evaluation.summary import OVERALL, OVERLAP, TARGETS, by_image, image_cells, tabulate
from pixellm.files import json_bytes, read_json, write_files
from pixellm.report.page import Report, Row, Table, check_report, write_report
from pixellm.training.config import RunConfig, find_recipes, load_config
from pixellm.training.trainer import EventCallback, NonFiniteLossError, TrainEvent, train

BASE = "base"
"""The variant that the others are compared with."""

MAX_NEW_TOKENS = 192
"""Longest answer while scoring: room for six targets of eight codebook tokens each."""

METRICS = {
    "giou_targets": "gIoU",
    "ciou_targets": "cIoU",
    "set_accuracy_targets": "set accuracy",
    "named_set_accuracy": "right names",
}
"""Scores that variants are compared by -> what the table calls them."""

GROUPS = (
    *(f"{TARGETS}{count}" for count in ("1", "2", "3", "4-5", "6+")),
    *(OVERLAP + name for _, name in OVERLAPS),
)
"""Groups of questions that the table tells apart."""

CELLS = [(group, metric) for group in (OVERALL, *GROUPS) for metric in METRICS]

CLAIMS_FILE = "claims.toml"
"""Beside recipes: what is claimed of them, such as in the paper."""

_TRAINING_SHARE = 0.75
_FEWEST_STEPS = 10

PACE_STEPS = 25
"""Steps that are run to measure; the first five are left out."""

OnRun = Callable[[str, int, int, int], None]
"""Called with variant, seed, number of the run from 1, and number of runs."""


@dataclass(frozen=True, slots=True)
class AblationSettings:
    """How variants are trained and scored.

    Attributes:
        num_seeds: runs of each variant, with seeds from 0.
        minutes: what all runs may take together, about; None leaves the recipes' steps.
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


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim as a comparison of two variants on one group of questions, by gIoU."""

    text: str
    better: str
    worse: str
    group: str = OVERALL


def load_variants(recipes: Sequence[Path], overrides: Iterable[str] = ()) -> dict[str, RunConfig]:
    """Reads recipes that differ in what is compared and in nothing else of the budget.

    They are YAML files, folders of them or bundled recipes, each variant called as its file.
    Overrides, `a.b=value`, are for all of them.

    Raises:
        ValueError: a bad recipe, two of one name, or budgets that differ.
    """
    overrides = list(overrides)
    recipes = [path for name in recipes for path in find_recipes(name)]
    variants: dict[str, RunConfig] = {}
    for path in sorted(recipes, key=lambda recipe: recipe.stem != BASE):  # others as given
        if path.stem in variants or path.stem in GUESSES:
            raise ValueError(f"Two variants are called {path.stem!r}; rename one of the recipes.")
        variants[path.stem] = load_config(path, overrides)
    for name, config in variants.items():
        for source in config.data:
            if not isinstance(source.args.get("seed", 0), int):
                given = source.args["seed"]
                raise ValueError(f"The seed of {source.name} in {name} is {given!r}, no number.")
    budgets = {name: _budget(config) for name, config in variants.items()}
    first = next(iter(budgets), "")
    for name, budget in budgets.items():
        if budget != budgets[first]:
            raise ValueError(
                f"{name} and {first} train for different budgets ({budget} and {budgets[first]} "
                "steps, images a step); give all variants the same."
            )
    return variants


def load_claims(recipes: Iterable[Path]) -> list[Claim]:
    """What the files :data:`CLAIMS_FILE` beside recipes claim; ValueError for other content."""
    claims: list[Claim] = []
    found = [path.parent for recipe in recipes for path in find_recipes(recipe)]
    for path in dict.fromkeys(folder / CLAIMS_FILE for folder in found):
        if not path.is_file():
            continue
        try:
            told = [Claim(**one) for one in tomllib.loads(path.read_text("utf-8"))["claims"]]
            if unknown := {claim.group for claim in told} - {OVERALL, *GROUPS}:
                raise ValueError(f"no group {min(unknown)!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no claims about variants ({error}).") from error
        claims += told
    return claims


def ablate(
    variants: Mapping[str, RunConfig],
    settings: AblationSettings,
    claims: Sequence[Claim] = (),
    on_event: EventCallback | None = None,
    on_run: OnRun | None = None,
) -> Path:
    """Train and score what is still missing, and write the table, `ablation.md`; gives its path.

    `ablation.json` and `ablation.html` lie beside it. Claims are looked at wherever both variants
    were run; ``on_run`` is told before each run, finished ones included.

    Raises:
        ValueError: no variants, the folder holds runs of other settings, or too little time.
    """
    if not variants:
        raise ValueError("There is nothing to compare; name recipes, such as recipes/ablation/*.")
    check_report(settings.out, "ablation", ("settings", "budget", "diverged"))
    on_run = on_run or (lambda *progress: None)
    if settings.minutes is not None:
        variants = with_steps(variants, _plan_steps(variants, settings, settings.minutes))
    guesses = {name: [_score(name, settings.out / name, settings)] for name in GUESSES}
    runs = [(name, seed) for seed in range(settings.num_seeds) for name in variants]
    tables: dict[str, list[NDArray[np.float64]]] = {name: [] for name in variants}
    diverged: list[str] = []
    for number, (name, seed) in enumerate(runs, start=1):
        on_run(name, seed, number, len(runs))
        table = _result_of(name, seed, variants[name], settings, on_event)
        if table is None:
            diverged.append(f"{name} (seed {seed})")
        else:
            tables[name].append(table)
        if number % len(variants) == 0:  # a table after every seed: a stopped comparison has one
            known = {one: found for one, found in (tables | guesses).items() if found}
            budget = _budget(next(iter(variants.values())))
            facts = {"variants": len(variants), "seeds": seed + 1, "diverged": list(diverged)}
            _write_tables(VariantComparison(known, claims), settings, budget, facts)
    return settings.out / "ablation.md"


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
) -> NDArray[np.float64] | None:
    """The scores of one run, trained and answered where it is not yet; None where it diverged."""
    config = _run_config(recipe, name, seed, settings.out)
    path = settings.out / name / f"seed_{seed}.json"
    identity = {"recipe": _digest(config), "start": _start_of(config)}
    found = _read_result(path, identity)
    if found is None:
        found = identity
        try:
            _train(config, on_event)
        except NonFiniteLossError as error:
            found = {**identity, "diverged": str(error)}
        write_files({path: json_bytes(found)})
        shutil.rmtree(config.run_folder / "checkpoints", ignore_errors=True)
    if "diverged" in found:
        return None
    folder = settings.out / name / f"seed_{seed}_scores"
    return _score(str(config.run_folder), folder, settings)


def _score(model: str, folder: Path, settings: AblationSettings) -> NDArray[np.float64]:
    """What a model, or a guess, adds to :data:`CELLS` with each scene."""
    run = BenchmarkRun(
        "scenes",
        model,
        settings.split,
        num_scenes=settings.num_scenes,
        dialogues_per_image=settings.dialogues_per_image,
    )
    run = with_numbers(run, settings.device, settings.dtype, MAX_NEW_TOKENS)

    def load() -> Any:
        from pixellm.engine import load as load_engine

        options: Any = {"device": settings.device, "dtype": settings.dtype}
        return load_engine(model, max_new_tokens=MAX_NEW_TOKENS, **options)

    evaluation = evaluate(run, folder, load, batch_size=settings.batch_size)
    return tabulate_images(evaluation.records, run.rules)


def tabulate_images(records: Sequence[AnswerRecord], rules: Rules) -> NDArray[np.float64]:
    """(images, :data:`CELLS`, 2): what the answers about each image add to each score."""
    counts: Counter[str] = Counter()
    return tabulate([image_cells(asked, rules, counts) for asked in by_image(records)], CELLS)


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


def _train(config: RunConfig, on_event: EventCallback | None) -> None:
    """Trains a run to its end, from its last checkpoint where there is one."""
    saved = config.run_folder / "config.yaml"
    if saved.is_file() and _digest(load_config(saved)) != _digest(config):
        raise ValueError(f"{config.run_folder} holds a run of another recipe; use another --out.")
    if (config.run_folder / "model").is_dir():
        return
    train(config, on_event=on_event, resume=True)


# How many steps fit into the minutes: measured once, on the first variant, and kept.


def _plan_steps(
    variants: Mapping[str, RunConfig], settings: AblationSettings, minutes: float
) -> int:
    """Steps of every run's last stage; from the plan file where the folder has one."""
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
        write_files({path: json_bytes(found)})
    return int(found["steps"])


def measure_pace(config: RunConfig) -> float:
    """Seconds a step of the last stage takes, the first ones left out."""
    moments: list[tuple[int, float]] = []

    def note(event: TrainEvent) -> None:
        if event.kind == "step":
            moments.append((event.step, time.monotonic()))

    last = config.stages[-1].model_copy(update={"steps": PACE_STEPS})
    with tempfile.TemporaryDirectory() as folder:
        changes = {"output_dir": Path(folder), "name": "pace", "log_every": 5}
        train(config.model_copy(update={**changes, "stages": (last,)}), on_event=note)
    (first_step, first), (last_step, end) = moments[0], moments[-1]
    return (end - first) / (last_step - first_step)


def with_steps(variants: Mapping[str, RunConfig], steps: int) -> dict[str, RunConfig]:
    """The recipes with another length of their last stage."""
    changed = {}
    for name, config in variants.items():
        *earlier, last = config.stages
        warmup = min(last.warmup_steps, steps // 5)
        stages = (*earlier, last.model_copy(update={"steps": steps, "warmup_steps": warmup}))
        changed[name] = config.model_copy(update={"stages": stages})
    return changed


class VariantComparison:
    """Variants over the same images, with all their resamples.

    Intervals are percentile bootstraps on two levels: seeds and images are both drawn with
    replacement, and all variants share the draws of images, so that differences are paired. The
    tables are those of :func:`tabulate_images`, one for each seed; ValueError where they are over
    different images. Claims are looked at wherever both variants are there.
    """

    def __init__(
        self,
        tables: Mapping[str, Sequence[NDArray[np.float64]]],
        claims: Sequence[Claim] = (),
    ) -> None:
        sizes = {len(table) for found in tables.values() for table in found}
        if len(sizes) != 1:
            raise ValueError(
                f"A comparison needs runs over the same images; these have {sorted(sizes)}."
            )
        self.tables = tables
        resampled = bootstrap([np.stack(found) for found in tables.values()])
        self.scores: dict[str, Resampled] = dict(zip(tables, resampled, strict=True))
        self.claims = [one for one in claims if {one.better, one.worse} <= self.scores.keys()]

    def estimate(self, name: str, group: str = OVERALL, metric: str = "giou_targets") -> Estimate:
        """A variant's score over all its seeds with its 95 % interval."""
        return self.scores[name].estimate(CELLS.index((group, metric)))

    def gain(self, name: str, base: str, group: str = OVERALL) -> Difference:
        """How much higher a variant's gIoU is than another's, with the paired 95 % interval."""
        cell = CELLS.index((group, "giou_targets"))
        return self.scores[name].minus(self.scores[base], cell)

    def by_seed(self, name: str) -> list[float | None]:
        """A variant's gIoU with each of its seeds; None where nothing counts."""
        sums = [
            table[:, CELLS.index((OVERALL, "giou_targets"))].sum(0) for table in self.tables[name]
        ]
        return [float(top / bottom) if bottom else None for top, bottom in sums]

    def verdicts(self) -> list[tuple[Claim, Difference, str]]:
        """Every claim, the difference, and what it says."""
        gains = [(one, self.gain(one.better, one.worse, one.group)) for one in self.claims]
        return [(claim, gain, _verdict(gain)) for claim, gain in gains]

    def to_dict(self) -> dict[str, Any]:
        """Everything as values that JSON knows; a score that nothing counts for is null."""
        scores: dict[str, Any] = {}
        for name in self.scores:
            scores[name] = {
                group: {metric: asdict(self.estimate(name, group, metric)) for metric in METRICS}
                for group in (OVERALL, *GROUPS)
            }
            if BASE in self.scores and name != BASE:
                gains = {g: asdict(self.gain(name, BASE, g)) for g in (OVERALL, *GROUPS)}
                scores[name][f"giou_minus_{BASE}"] = gains
            scores[name]["giou_by_seed"] = self.by_seed(name)
        claims = [
            {**asdict(claim), "gain": asdict(gain), "verdict": verdict}
            for claim, gain, verdict in self.verdicts()
        ]
        return {"scores": scores, "claims": claims}

    def report_tables(self) -> list[Table]:
        """Scores, splits and claims."""
        (first, *others) = METRICS.values()
        head = ("variant", first, f"{first} minus {BASE}", *others, f"{first} by seed")
        groups = [
            group
            for group in GROUPS
            if any(self.estimate(name, group).value is not None for name in self.scores)
        ]
        splits = [
            (name, *(_short(self.estimate(name, group)) for group in groups))
            for name in self.scores
        ]
        names = ("variant", *(group.removeprefix(OVERLAP) for group in groups))
        tables = [
            Table("Scores", [head, *map(self._score_row, self.scores)], "scores"),
            Table(f"{first} by number and overlap of targets", [names, *splits], "groups"),
        ]
        if self.claims:
            said = ("claim", "questions", "difference", f"{first} gained", "verdict")
            rows = [
                (one.text, one.group, f"{one.better} - {one.worse}", str(gain), verdict)
                for one, gain, verdict in self.verdicts()
            ]
            tables.append(Table("Claims", [said, *rows], "claims"))
        return tables

    def _score_row(self, name: str) -> Row:
        first, *others = METRICS
        is_other = BASE in self.scores and name != BASE
        return (
            name,
            str(self.estimate(name, metric=first)),
            str(self.gain(name, BASE)) if is_other else "-",
            *(str(self.estimate(name, metric=metric)) for metric in others),
            " ".join("-" if one is None else f"{one:.3f}" for one in self.by_seed(name)),
        )


def _verdict(gain: Difference) -> str:
    if gain.low is None or gain.high is None:
        return "not measured"
    if gain.low > 0:
        return "holds"
    return "does not hold: the opposite" if gain.high < 0 else "not shown at this size"


def _short(estimate: Estimate) -> str:
    """Without a value nothing is claimed; with one, half the interval's width beside it."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.value:.3f} ± {(estimate.high - estimate.low) / 2:.3f}"


def _write_tables(
    comparison: VariantComparison,
    settings: AblationSettings,
    budget: list[tuple[int, int]],
    facts: Mapping[str, Any],
) -> None:
    steps = " + ".join(f"{n} steps of {b} images" for n, b in budget)
    notes = [
        f"{facts['variants']} variants with {facts['seeds']} seeds each, {steps} per run. Scored "
        f"on scenes, split {settings.split}: {settings.num_scenes} images with up to "
        f"{settings.dialogues_per_image} dialogues each, free generation, strict protocol, "
        "questions with targets. 95 % intervals: bootstrap over seeds and images; differences "
        "are paired by image. largest_object and all_objects are guesses from the true objects. "
        "Overlap is that of the closest two targets, the intersection of their boxes over the "
        "smaller box: apart 0, close up to 0.1, overlapping above.",
    ]
    if facts["diverged"]:
        notes.append(f"Diverged and left out: {', '.join(facts['diverged'])}.")
    values = {
        "settings": {**asdict(settings), "out": str(settings.out)},
        "budget": budget,
        "diverged": facts["diverged"],
        **comparison.to_dict(),
    }
    title = f"Variants compared on scenes {settings.split}"
    report = Report(title, " ".join(notes), comparison.report_tables(), {}, (), values)
    write_report(settings.out, "ablation", report)
