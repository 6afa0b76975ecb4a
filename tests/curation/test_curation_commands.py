"""`pixellm curate` on the command line: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from curation_runs import make_photos
from typer.testing import CliRunner, Result

from chat_server import ChatServer
from pixellm.cli.main import app


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["curate", *map(str, arguments)])


def run_options(folder: Path, **changes: object) -> list[object]:
    values = {"annotations": folder / "instances.json", "images": folder / "images"}
    values |= {"out": folder / "out", "model": "template", **changes}
    return [part for name, v in values.items() for part in (f"--{name.replace('_', '-')}", v)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    make_photos(folder, 10)
    return folder


def test_the_whole_path_without_a_model(photos: Path) -> None:
    done = call("run", *run_options(photos, questions=6, split="0.5,0.2"))
    assert done.exit_code == 0, done.output
    assert "Written to" in done.stdout
    stats = call("stats", photos / "out")
    assert "targets per question, mean" in stats.stdout
    assert (photos / "out/plots/categories.png").is_file()
    assert "rows in" in call("view", photos / "out", "--num", 4).stdout
    assert call("validate", photos / "out", "--images", photos / "images").exit_code == 0
    again = call("write", photos / "out", "--split", "1,0")
    assert again.exit_code == 0
    assert not (photos / "out/muse_val.json").exists()


def test_shards_together_are_the_whole_set(photos: Path, tmp_path: Path) -> None:
    def questions(folder: Path) -> list[tuple[str, ...]]:
        entries = json.loads((folder / "muse_train.json").read_text())
        return sorted((e["file_name"], *e["questions"], *e["text_answers"]) for e in entries)

    shared = {"questions": 3, "split": "1,0", "max_repeats": 999}
    assert call("run", *run_options(photos, out=tmp_path / "all", **shared)).exit_code == 0
    shards = [tmp_path / f"shard{number}" for number in (2, 1)]
    for number, out in zip((2, 1), shards, strict=True):
        options = run_options(photos, out=out, shard=f"{number}/2", **shared)
        assert call("run", *options).exit_code == 0
    assert all(0 < len(questions(out)) < len(questions(tmp_path / "all")) for out in shards)
    done = call("write", *shards, "--out", tmp_path / "joined")
    assert done.exit_code == 0, done.output
    assert questions(tmp_path / "joined") == questions(tmp_path / "all")
    joined, whole = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("joined", "all")
    )
    assert joined == whole
    for folders, says in (
        ([shards[0], shards[0]], "Another process is writing"),
        ([shards[0]], "only then"),
        ([*shards, tmp_path / "all"], "shards 1/1, 1/2, 2/2, not each of 1/3, 2/3, 3/3"),
    ):
        refused = call("write", *folders, "--out", tmp_path / "other")
        assert (refused.exit_code, says in refused.stderr) == (2, True), refused.output
    assert not (tmp_path / "other").exists()


def test_validate_ends_with_one_when_something_is_wrong(photos: Path, tmp_path: Path) -> None:
    call("run", *run_options(photos, questions=6, split="0.5,0.2"))
    entries = json.loads((photos / "out/muse_train.json").read_text())
    entries[0]["text_answers"][0] = "Nothing."
    (tmp_path / "muse_bad.json").write_text(json.dumps(entries))
    result = call("validate", tmp_path / "muse_bad.json")
    assert result.exit_code == 1
    assert "seg_count" in result.stdout


def test_a_run_that_stops_early_says_why_and_ends_with_one(tmp_path: Path) -> None:
    make_photos(tmp_path, 12)
    with ChatServer() as server:
        options = run_options(tmp_path, model="m", base_url=server.url, workers=1)
        stopped = call("run", *options, "--text-only", "--price", "1,10", "--max-cost", 0.009)
        assert stopped.exit_code == 1
        assert "higher --max-cost goes on from here" in stopped.stderr
        assert 0 < len(server.bodies) <= 4  # 0.002 USD each
        done = call("run", *options, "--text-only", "--price", "1,10")
        assert done.exit_code == 0
        assert server.repeats() == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"annotations": "/nowhere/a.json"}, "no annotation file"),
        ({"images": "/nowhere/b"}, "no folder of images"),
        ({"split": "0.9"}, "--split takes two numbers"),
        ({"split": "0.9,0.9"}, "add up to at most 1"),
        ({"model": "m"}, "--price"),
        ({"model": "m", "price": "1,2"}, "OPENAI_API_KEY"),
        *(({"shard": shard}, "hard") for shard in ("3/2", "0/2", "2", "a/b", "1/0")),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], says: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    make_photos(tmp_path, 3)
    result = call("run", *run_options(tmp_path, **changes))
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert call("run", *run_options(tmp_path)).exit_code == 0, "the same folder, nothing mistyped"


def test_files_that_are_no_annotations_are_named(tmp_path: Path) -> None:
    make_photos(tmp_path, 1)
    (tmp_path / "instances.json").write_text('{"images": []}')
    result = call("run", *run_options(tmp_path))
    assert (result.exit_code, "has no images and no categories" in result.stderr) == (2, True)


def test_a_set_without_a_question_has_no_figures(tmp_path: Path) -> None:
    (tmp_path / "muse_train.json").write_text("[]")
    result = call("stats", tmp_path)
    assert (result.exit_code, "holds no question" in result.stderr) == (2, True)
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("command", ["stats", "view", "validate", "write"])
def test_folders_without_a_set_are_named(tmp_path: Path, command: str) -> None:
    result = call(command, tmp_path)
    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr
