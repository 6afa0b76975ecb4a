"""Python that lies beside a model's weights is never run, and nobody is asked whether it may."""

import ast
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pixellm.checkpoint.build import build_model
from pixellm.checkpoint.io import resolve_source
from pixellm.cli.main import app

SOURCE = Path(__file__).parents[2] / "src/pixellm"
CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedTokenizerFast
Path({ran!r}).touch()
class OwnConfig(PretrainedConfig):
    model_type = "a_kind_of_its_own"
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def model_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nano with a tokenizer and a configuration that name code beside them, and a willing user."""
    folder = Path(shutil.copytree(resolve_source("nano"), tmp_path / "model"))
    (folder / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran")), "utf-8")
    changes = {
        "config.json": {"auto_map": {"AutoConfig": "own.OwnConfig"}},
        "tokenizer_config.json": {
            "tokenizer_class": "OwnTokenizer",
            "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]},
        },
    }
    for name, change in changes.items():
        values = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps({**values, **change}), "utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    return folder


@pytest.mark.parametrize("tokenizer_too", [False, True])
def test_a_model_is_used_without_the_code_beside_it_or_refused(
    model_with_code: Path, tmp_path: Path, tokenizer_too: bool
) -> None:
    if not tokenizer_too:
        name = "tokenizer_config.json"
        shutil.copy(Path(resolve_source("nano")) / name, model_with_code / name)
    image = str(SOURCE / "examples/coffee.jpg")
    words = ["segment", image, "the cup", "--model", str(model_with_code), "--json", "-"]
    result = CliRunner().invoke(app, words, input="y\n" * 9)
    if tokenizer_too:
        assert result.exit_code == 2
        assert "Python code of its own" in result.output
    else:
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["segments"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["text", "vision", "tokenizer"])
def test_a_part_that_needs_its_own_code_is_refused(
    model_with_code: Path, tmp_path: Path, part: str
) -> None:
    config = model_with_code / "config.json"
    values = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**values, "model_type": "a_kind_of_its_own"}), "utf-8")
    nano = resolve_source("nano")
    parts = {name: {"source": nano} for name in ("text", "vision", "tokenizer")}
    parts[part] = {"source": str(model_with_code)}
    with pytest.raises(ValueError, match="Python code of its own"):
        build_model({**parts, "settings": {"image_size": 640}})
    assert not (tmp_path / "ran").exists()


def test_every_model_is_read_in_the_one_place_that_refuses_code() -> None:
    calls = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
        and ast.unparse(node.func.value) != "GenerationConfig"  # plain values, read by no class
    }
    assert calls == {"checkpoint/pretrained.py"}
