from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from conftest import tiny_parts, tiny_texts
from pixellm import ablation
from pixellm.ablation import (
    CELLS,
    AblationSettings,
    Claim,
    VariantComparison,
    ablate,
    load_claims,
    load_variants,
    tabulate_images,
)
from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.io import save_model
from pixellm.evaluation.evaluate import BenchmarkRun, evaluate
from pixellm.training.config import RunConfig, load_config
from pixellm.training.trainer import NonFiniteLossError, TrainEvent

RECIPES = sorted((Path(__file__).parents[1] / "src/pixellm/recipes" / "ablation").glob("*.yaml"))
STRUCTURE = {"tokens_4": 8, "scales_1": 3, "scales_3": 9, "single_token": 1}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny model with room for the questions of scenes."""
    parts = tiny_parts()
    parts["text"]["config"]["max_position_embeddings"] = 1024
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = build_model(parts, tiny_texts())
    folder = tmp_path_factory.mktemp("start")
    save_model(folder, model, processor)
    return folder


def write_recipe(folder: Path, name: str, start: Path, **changes: Any) -> Path:
    """A two-step recipe; ``tokens`` is what it varies."""
    settings = {"tokens_per_scale": changes.pop("tokens", 2)}
    stage = {"name": "joint", "steps": 2, "batch_size": 1, "warmup_steps": 0}
    args = {"split": "train", "seed": 0, "dialogues_per_image": 1, "long_side": 128}
    recipe = {
        "name": name,
        "model": {"initial_weights": str(start), "settings": settings},
        "data": [{"name": "scenes", "args": args}],
        "collate": {"mask_size": 16, "max_length": 512},
        "stages": [{**stage, **changes}],
        "log_every": 1,
        "threads": 1,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture
def variants(tmp_path: Path, start: Path) -> dict[str, RunConfig]:
    paths = [write_recipe(tmp_path, "base", start), write_recipe(tmp_path, "one", start, tokens=1)]
    return load_variants(paths)


def settings_for(folder: Path, **changes: Any) -> AblationSettings:
    options = {"num_seeds": 2, "num_scenes": 1, "dialogues_per_image": 1, "device": "cpu"}
    return AblationSettings(folder / "runs", **{**options, **changes})


def fail_to_train(*_: Any, **__: Any) -> None:
    raise AssertionError("This run is finished; nothing may train.")


def test_a_seed_that_cannot_be_counted_up_is_refused(tmp_path, start):
    path = write_recipe(tmp_path, "base", start)
    with pytest.raises(ValueError, match="The seed of scenes in base is 'first', no number"):
        load_variants([path], ["data.0.args.seed=first"])


def test_it_trains_scores_tabulates_and_goes_on_where_it_stopped(tmp_path, variants, monkeypatch):
    monkeypatch.setattr(ablation, "MAX_NEW_TOKENS", 6)
    events: list[TrainEvent] = []
    runs: list[tuple[str, int]] = []
    told = {"on_event": events.append, "on_run": lambda name, seed, *_: runs.append((name, seed))}
    table = ablate(variants, settings_for(tmp_path), **told)
    assert runs == [("base", 0), ("one", 0), ("base", 1), ("one", 1)]
    assert sum(event.kind == "end" for event in events) == 4
    text = table.read_text(encoding="utf-8")
    assert "2 variants with 2 seeds each, 2 steps of 1 images per run" in text
    for name in ("base", "one", "largest_object", "all_objects"):
        assert f"\n| {name} |" in text
    weights = (tmp_path / "runs/base/seed_0/model/model.safetensors").read_bytes()
    assert weights != (tmp_path / "runs/base/seed_1/model/model.safetensors").read_bytes()
    assert not list((tmp_path / "runs").rglob("trainer.pt")), "checkpoints are cleared away"

    (tmp_path / "runs/one/seed_1.json").unlink()
    monkeypatch.setattr(ablation, "train", fail_to_train)
    assert ablate(variants, settings_for(tmp_path)).read_text(encoding="utf-8") == text
    answers = (tmp_path / "runs/base/seed_0_scores/answers.jsonl").read_text().splitlines()
    assert json.loads(answers[0])["model"] == str(tmp_path / "runs/base/seed_0")
    with pytest.raises(ValueError, match="a run with num_scenes 1, not 3"):
        ablate(variants, settings_for(tmp_path, num_scenes=3))


def test_results_of_another_recipe_are_not_mixed_in(tmp_path, start, variants):
    results = tmp_path / "runs" / "base"
    (results / "seed_0" / "model").mkdir(parents=True)
    (results / "seed_0" / "config.yaml").write_text(variants["one"].to_yaml())
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        ablate(variants, settings_for(tmp_path))
    (results / "seed_0.json").write_text(json.dumps({"recipe": "0123"}))
    with pytest.raises(ValueError, match="made with another recipe"):
        ablate(variants, settings_for(tmp_path))


def test_a_run_that_diverges_is_named_and_left_out(tmp_path, variants, monkeypatch):
    def diverge(config: RunConfig, **_: Any) -> Path:
        raise NonFiniteLossError("The loss of step 1 is not finite.")

    monkeypatch.setattr(ablation, "train", diverge)
    text = ablate(variants, settings_for(tmp_path, num_seeds=1)).read_text(encoding="utf-8")
    assert "Diverged and left out: base (seed 0), one (seed 0)." in text
    assert "| all_objects |" in text
    assert "| base |" not in text


def test_minutes_become_one_number_of_steps_that_later_calls_keep(tmp_path, variants, monkeypatch):
    trained: list[RunConfig] = []

    def note(config: RunConfig, **_: Any) -> Path:
        trained.append(config)
        raise NonFiniteLossError("stop")

    monkeypatch.setattr(ablation, "train", note)
    monkeypatch.setattr(ablation, "measure_pace", lambda config: 0.5)
    settings = settings_for(tmp_path, minutes=4.0)
    ablate(variants, settings)
    # 4 runs in 4 minutes, three quarters of them training: 45 s at 0.5 s a step
    assert {config.stages[-1].steps for config in trained} == {90}
    monkeypatch.setattr(ablation, "measure_pace", fail_to_train)
    ablate(variants, settings)
    with pytest.raises(ValueError, match="made with another minutes"):
        ablate(variants, settings_for(tmp_path, minutes=5.0))


def test_the_pace_is_that_of_steps_and_too_little_time_is_refused(tmp_path, variants, monkeypatch):
    monkeypatch.setattr(ablation, "PACE_STEPS", 10)
    assert 0 < ablation.measure_pace(variants["base"]) < 60
    monkeypatch.setattr(ablation, "measure_pace", lambda config: 10.0)
    with pytest.raises(ValueError, match="4 runs in 1 minutes leave 1 steps each"):
        ablate(variants, settings_for(tmp_path, minutes=1.0))


def test_variants_share_their_budget_and_have_names_of_their_own(tmp_path, start):
    base = write_recipe(tmp_path, "base", start)
    longer = write_recipe(tmp_path, "longer", start, steps=3)
    with pytest.raises(ValueError, match="longer and base train for different budgets"):
        load_variants([base, longer])
    assert load_variants([base, longer], ["stages.0.steps=5"])["longer"].stages[0].steps == 5
    with pytest.raises(ValueError, match="Two variants are called 'base'"):
        load_variants([base, base])
    with pytest.raises(ValueError, match="nothing to compare"):
        ablate({}, settings_for(tmp_path))


def test_the_recipes_differ_from_base_in_what_they_are_named_for():
    configs = load_variants(RECIPES)
    assert len(configs) == 12
    base = configs["base"].model_dump()
    for name, config in configs.items():
        values = config.model_dump()
        changed = {key for key in values if values[key] != base[key]} - {"name"}
        expected = {"data"} if name == "single_target_data" else {"model"}
        assert changed == (expected if name != "base" else set()), name
        assert config.name == name
    losses = load_variants(sorted(RECIPES[0].parents[1].glob("ablation_losses/*.yaml")))
    assert {
        name: (config.model["target_refinement_alpha"], config.collate.mask_size)
        for name, config in losses.items()
    } == {
        "base": (2, 192),
        "alpha_1": (1, 192),
        "alpha_4": (4, 192),
        "mask_48": (2, 48),
        "mask_96": (2, 96),
    }
    varied = {"name", "model", "collate"}
    rest = [config.model_dump(exclude=varied) for config in losses.values()]
    assert rest == [rest[0]] * len(rest)


@pytest.mark.parametrize("name", STRUCTURE)
def test_recipes_of_other_shapes_build_around_nano(name):
    path = next(path for path in RECIPES if path.stem == name)
    model, processor = build_model(load_config(path).model)
    assert model.config.group_size == len(processor.codec.codebook_ids) == STRUCTURE[name]
    size = model.config.image_size
    with torch.no_grad():
        encoded, _ = model.model.encode_images(torch.zeros(1, 3, size, size))
        states = torch.zeros(1, STRUCTURE[name], model.config.text_config.hidden_size)
        masks = model.decode_masks(
            model.model.codebook(states), encoded.features, torch.zeros(1, dtype=torch.long)
        )
    assert masks.shape[1:] == ((96, 96) if name == "scales_3" else (48, 48))


def constant_table(value: float, images: int = 40, noise: float = 0.0) -> np.ndarray:
    """Ten questions an image, each worth about the value, all of two targets far apart."""
    table = np.zeros((images, len(CELLS), 2))
    values = 10 * (value + noise * np.random.default_rng(1).standard_normal(images))
    for cell, (group, _) in enumerate(CELLS):
        if group in ("overall", "targets 2", "overlap apart"):
            table[:, cell] = np.stack([values, np.full(images, 10.0)], axis=-1)
    return table


BEATS_ONE = Claim("Three tokens per scale beat one", "base", "tokens_1")


def test_scores_are_pooled_over_seeds_and_paired_by_image():
    comparison = VariantComparison({"base": [constant_table(0.2), constant_table(0.4)]})
    estimate = comparison.estimate("base")
    assert (estimate.value, estimate.count) == (pytest.approx(0.3), 800)
    assert (estimate.low, estimate.high) == (pytest.approx(0.2), pytest.approx(0.4))
    assert comparison.by_seed("base") == pytest.approx([0.2, 0.4])
    assert comparison.estimate("base", "targets 1").value is None
    # Images differ wildly, but one variant is 0.02 better on each.
    values = {"base": 0.5, "tokens_1": 0.48}
    comparison = VariantComparison({n: [constant_table(v, noise=0.3)] for n, v in values.items()})
    gain, wide = comparison.gain("base", "tokens_1"), comparison.estimate("base")
    assert (gain.value, gain.low) == (pytest.approx(0.02), pytest.approx(0.02))
    assert (wide.high or 0) - (wide.low or 0) > 0.1
    with pytest.raises(ValueError, match=r"same images; these have \[30, 40\]"):
        VariantComparison(
            {"base": [constant_table(0.5)], "other": [constant_table(0.5, images=30)]}
        )


@pytest.mark.parametrize(
    ("base", "one", "says"),
    [
        ([0.5, 0.52, 0.51], [0.3, 0.31, 0.32], "holds"),
        ([0.3, 0.31, 0.32], [0.5, 0.52, 0.51], "does not hold: the opposite"),
        ([0.3, 0.5, 0.4], [0.5, 0.3, 0.41], "not shown at this size"),
    ],
)
def test_a_claim_holds_only_where_the_whole_interval_is_above_zero(base, one, says):
    tables = {
        "base": [constant_table(value) for value in base],
        "tokens_1": [constant_table(value) for value in one],
    }
    not_asked = Claim("Where targets overlap", "base", "tokens_1", "overlap overlapping")
    not_run = Claim("Four beat three", "tokens_4", "base")
    verdicts = VariantComparison(tables, [BEATS_ONE, not_asked, not_run]).verdicts()
    assert [(claim, verdict) for claim, _, verdict in verdicts] == [
        (BEATS_ONE, says),
        (not_asked, "not measured"),
    ]


def test_tables_are_markdown_with_a_row_for_each_variant_and_no_gaps():
    tables = {"base": [constant_table(0.5), constant_table(0.6)], "tokens_1": [constant_table(0.4)]}
    comparison = VariantComparison(tables, [BEATS_ONE])
    scores, groups, claims = (table.rows for table in comparison.report_tables())
    assert scores[0][:6] == (
        *("variant", "gIoU", "gIoU minus base", "cIoU", "set accuracy", "right names"),
    )
    assert scores[1][:3] == ("base", "0.550 [0.500, 0.600]", "-")
    assert scores[2][0] == "tokens_1" and scores[2][1].startswith("0.400")
    assert scores[2][2] == "-0.150 [-0.200, -0.100]"
    assert groups[0] == ("variant", "targets 2", "apart")
    assert claims[1][:3] == ("Three tokens per scale beat one", "overall", "base - tokens_1")
    assert claims[1][3].startswith("+0.150")
    values = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    gain = values["scores"]["tokens_1"]["giou_minus_base"]["overall"]
    assert gain["value"] == pytest.approx(-0.15)
    assert values["claims"][0]["verdict"] == "holds"


def test_a_guess_is_scored_by_number_of_targets(tmp_path):
    """Showing one perfect mask scores at most 1 / n on questions with n targets."""
    run = BenchmarkRun("scenes", "all_objects", num_scenes=3, dialogues_per_image=3)
    records = evaluate(run, tmp_path / "guess", fail_to_train).records
    comparison = VariantComparison({"all_objects": [tabulate_images(records, run.rules)]})
    estimate = comparison.estimate("all_objects")
    assert estimate.value is not None and 0 < estimate.value < 1
    groups = [f"targets {count}" for count in ("1", "2", "3", "4-5", "6+")]
    parts = [comparison.estimate("all_objects", group) for group in groups]
    assert sum(part.count for part in parts) == estimate.count


def test_claims_lie_beside_the_recipes(tmp_path):
    bundled = load_claims([Path("ablation"), Path("ablation_losses")])
    names = {path.stem for path in (*RECIPES, *RECIPES[0].parents[1].glob("ablation_losses/*"))}
    assert bundled[0] == BEATS_ONE
    assert {name for claim in bundled for name in (claim.better, claim.worse)} <= names
    recipe = tmp_path / "base.yaml"
    recipe.write_text("name: base")
    assert load_claims([recipe]) == []
    for content in (
        "claims",
        "[[claims]]\ntext = 'x'",
        "[[claims]]\ntext='x'\nbetter='a'\nworse='b'\ngroup='c'",
    ):
        (tmp_path / "claims.toml").write_text(content)
        with pytest.raises(ValueError, match="holds no claims about variants"):
            load_claims([recipe])
