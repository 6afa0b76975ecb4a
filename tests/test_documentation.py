"""What README and the pages of `docs` promise: Python, links, a site without a warning."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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
