from pathlib import Path

import pytest
import yaml

from pixellm.training.config import find_recipes, load_config, parse_config

MINIMAL = {
    "name": "run",
    "model": {"checkpoint": "somewhere"},
    "data": [{"name": "scenes"}],
    "stages": [{"name": "joint", "steps": 10, "batch_size": 2}],
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_overrides_reach_nested_keys_and_list_items(recipe: Path) -> None:
    config = load_config(
        recipe,
        [
            "seed=7",
            "stages.0.loss.text=0.5",
            "stages.0.freeze=['*head']",
            "data.0.args.split=train",
            "optimizer.betas=[0.8, 0.9]",
        ],
    )
    assert config.seed == 7
    assert config.stages[0].loss.text == 0.5
    assert config.stages[0].freeze == ("*head",)
    assert config.data[0].args == {"split": "train"}
    assert config.optimizer.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=3", r"unknown key 'sed'; did you mean 'seed'\?"),
        ("stages.0.learning_rat=1", "unknown key 'stages.0.learning_rat'.*'learning_rate'"),
        ("stages.0.loss.txt=1", "unknown key 'stages.0.loss.txt'.*'text'"),
        ("checkpoint.zzz=1", "known keys: every_steps, keep_last"),
        ("stages.0.steps=0", "stages.0.steps: .*greater than 0"),
        ("stages.4.steps=1", "index from 0 to 0"),
        ("seed.inner=1", "nothing below"),
        ("seed", "key.inner=value"),
        ("stages.0.steps=[", "not valid YAML"),
        ("stages=[]", "at least 1"),
    ],
)
def test_bad_overrides_name_the_key(recipe: Path, override: str, message: str) -> None:
    raw = {**MINIMAL, "seed": 1}
    recipe.write_text(yaml.safe_dump(raw))
    with pytest.raises(ValueError, match=message):
        load_config(recipe, [override])


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="key 'model' is missing"):
        parse_config({key: value for key, value in MINIMAL.items() if key != "model"})
    with pytest.raises(FileNotFoundError, match="No recipe"):
        load_config(tmp_path / "missing.yaml")
    for name in ("", ".", tmp_path):
        with pytest.raises(FileNotFoundError, match="No recipe"):
            load_config(name)
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"broken.yaml is not valid YAML"):
        load_config(tmp_path / "broken.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"checkpoint": "a", "vision": {"source": "b"}}}, "brings its own vision"),
        (
            {"model": {"checkpoint": "a", "vision_weights": "b"}, "lora": {}},
            "vision_weights changes the model",
        ),
        ({"model": {"checkpoint": "a", "min_mask_score": 1.5}}, "it must lie in 0 to 1"),
        ({"model": {"checkpoint": "a", "min_mask_score": None}}, "it must lie in 0 to 1"),
        ({"model": {"checkpoint": "a", "target_refinement_alpha": 0.5}}, "must be at least 1"),
        ({"model": {"checkpoint": "a", "vision_weights": ""}}, "names a directory"),
        ({"stages": MINIMAL["stages"] * 2}, "different names"),
        ({"seed": 2**70}, "seed: Input should be less than"),
        ({"num_workers": 10**6}, "num_workers: Input should be less than or equal to 1024"),
        ({"optimizer": {"betas": [0.9, 1.5]}}, r"optimizer\.betas\.1: Input should be less than 1"),
        ({"evaluation": {"best_by": "gIoU"}}, r"evaluation\.best_by: .*'giou', 'ciou'"),
        *(({"name": name}, "name") for name in ("..", ".", "a/b", ".hidden", "")),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config({**MINIMAL, **changes})


@pytest.mark.parametrize(
    "name",
    ["nano", "nano.yaml", "recipes/nano.yaml", "ablation/base", "recipes/ablation/base.yaml"],
)
def test_bundled_recipes_are_found_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(name).name == Path(name).stem
    Path("nano").write_text(yaml.safe_dump({**MINIMAL, "name": "mine"}))
    assert load_config("nano").name == "mine", "a file goes before a bundled recipe"


def test_folders_and_names_of_several_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {path.stem for path in find_recipes("ablation_losses")} == {
        "base", "alpha_1", "alpha_4", "mask_48", "mask_96"
    }  # fmt: skip
    with pytest.raises(ValueError, match="holds 12 recipes; name one of them"):
        load_config("ablation")
    with pytest.raises(FileNotFoundError, match=r"bundled recipe: nano_photos"):
        load_config("nano_foto")
    with pytest.raises(FileNotFoundError, match=r"finetune_coco, nano, .*pixellm_7b\.$"):
        load_config("xyz")
    with pytest.raises(FileNotFoundError, match="No recipe"):
        load_config("recipes/../weights")


def test_a_bare_no_of_yaml_is_no_precision() -> None:
    recipe = find_recipes("nano_scenes")[0]
    assert load_config(recipe, ["precision=no"]).precision == "no"
