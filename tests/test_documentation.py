"""What README and the pages of `docs` promise: commands, options, Python, links."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_commands(text: str) -> list[str]:
    """Each `pixellm ...` line of a Markdown text that stands in an indented or fenced block."""
    fenced = re.findall(r"^```(?:console|bash|sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = [line.strip() for block in fenced for line in block.splitlines()]
    indented = [line.strip() for line in re.findall(r"^ {4}(.+)$", text, re.MULTILINE)]
    lines = (line.removesuffix("\\").strip() for line in blocks + indented)
    return sorted({line for line in lines if line.startswith("pixellm ")})


COMMANDS = sorted({line for page in PAGES for line in shell_commands(page.read_text("utf-8"))})


def subcommand(words: list[str]) -> list[str]:
    """The leading words of a command that name it: `eval scenes`, `segment`."""
    groups = {"eval": 2, "data": 2, "curate": 2}
    return words[: groups.get(words[0], 1)]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_documentation_exists_with_the_options_it_uses(line: str) -> None:
    from pixellm.cli.main import app

    words = shlex.split(line, comments=True)[1:]
    if words[0].startswith("-"):
        words, named = words, []
    else:
        named = subcommand(words)
    result = CliRunner().invoke(app, [*named, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    shown = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    for option in (word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)):
        assert option in shown, f"{option} is not an option of pixellm {' '.join(named)}"


def python_examples(page: Path) -> list[str]:
    """The fenced Python of a page."""
    return re.findall(r"^```python\n(.+?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_python_of_a_page_runs_as_it_stands(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_bytes((ROOT / "src/pixellm/examples/coffee.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {}
    examples = python_examples(ROOT / name)
    assert examples
    for example in examples:
        exec(compile(example, name, "exec"), values)
    printed = capsys.readouterr().out.splitlines()
    prediction = values["prediction"]
    assert printed[0] == prediction.text
    assert len(printed) == 1 + len(prediction.segments)
    assert all(segment.mask.shape == prediction.size for segment in prediction.segments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_links_to_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_the_documentation_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs.commands.build", reason="the extra docs is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    assert (tmp_path / "site/quickstart/index.html").is_file()
