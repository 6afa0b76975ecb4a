"""What the repository promises outside its code: recipes, versions, notices."""

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

import pixellm

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "src/pixellm/recipes").rglob("*.yaml")), ids=lambda p: p.stem
)
def test_every_recipe_parses_and_survives_a_round_trip(recipe: Path, tmp_path: Path) -> None:
    from pixellm.training.config import load_config

    config = load_config(recipe)
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(again) == config


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert project["version"] == pixellm.__version__
    assert f"version: {pixellm.__version__}" in citation


def test_tracked_files_hold_no_machine_paths_and_no_large_files() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert files
    outside = (str(ROOT.parent) + "/", "../" + "shared")
    for path in (file for file in files if file.is_file()):
        assert path.stat().st_size < 20 * 2**20, path
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".csv", ".cff", ".jsonl", ".json"}:
            text = path.read_text(encoding="utf-8")
            assert not any(folder in text for folder in outside), path


def lines_that_read_marks(source: str) -> list[int]:
    """Lines of code that spell the mark of a mask, or look for it; to write it is everyone's."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}

    def reads(node: ast.AST) -> bool:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return "{seg}" in node.value and id(node) not in prose
        looked_for: list[ast.expr] = []
        if isinstance(node, ast.Call):
            looked_for = node.args
        elif isinstance(node, ast.Compare):
            looked_for = [node.left, *node.comparators]
        return any(isinstance(one, ast.Name) and one.id == "SEG_MARK" for one in looked_for)

    return [getattr(node, "lineno", 0) for node in ast.walk(tree) if reads(node)]


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("text.split(SEG_MARK)", True),
        ("SEG_MARK in text", True),
        ("text.count('{seg}')", True),
        ("f'{phrase} {SEG_MARK}'", False),
        ("form.format(seg=SEG_MARK)", False),
    ],
)
def test_reading_a_mark_is_told_from_writing_it(source: str, reads: bool) -> None:
    assert bool(lines_that_read_marks(f"found = {source}")) == reads


def test_types_alone_reads_marked_text() -> None:
    package = ROOT / "src" / "pixellm"
    reading = {
        str(path.relative_to(package)): lines
        for path in package.rglob("*.py")
        if (lines := lines_that_read_marks(path.read_text(encoding="utf-8")))
    }
    assert set(reading) == {"types.py"}, reading


def test_every_embedded_model_and_bundled_image_has_its_notice() -> None:
    from pixellm.checkpoint.sources import embedded_models

    notices = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
    names = embedded_models()
    assert "nano" in names
    for name in names:
        assert f"weights/{name}/" in notices
    for image in [*ROOT.glob("examples/*.png"), *ROOT.glob("src/pixellm/examples/*.jpg")]:
        assert f"{image.name}`" in notices
