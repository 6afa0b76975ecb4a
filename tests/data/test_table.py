"""Tables of annotation files: written once, mapped afterwards, made anew where files changed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from pixellm.data import table
from pixellm.data.dialogues import JsonlSamples
from pixellm.data.table import BadRow, TablesWriter, TableWriter, open_tables


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that takes small files too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "SMALLEST_CACHED", 0)
    return tmp_path / "cache" / "pixellm" / "tables"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.json"
    path.write_text(json.dumps(list(range(500))))
    return path


def fill(source: Path, calls: list[int]):
    """Writes a source's numbers; every call is counted."""

    def write(tables: TablesWriter) -> None:
        calls.append(1)
        rows = tables.table("rows", "number", "square")
        for number in json.loads(source.read_text()):
            rows.append({"text": f"\ud800 é {number}"}, number, number**2)
        tables.refuse(BadRow(source, "entry 7", "No."))
        tables.refuse(BadRow(Path("other.json"), "", "No."))

    return write


@pytest.mark.parametrize("smallest", [0, 1 << 30])
def test_a_table_gives_back_its_rows(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, smallest: int
) -> None:
    monkeypatch.setattr(table, "SMALLEST_CACHED", smallest)
    monkeypatch.setattr(table, "_BATCH_ROWS", 64)
    found = open_tables([source], "test", fill(source, []))
    for rows in (found["rows"], pickle.loads(pickle.dumps(found["rows"]))):
        assert len(rows) == 500
        assert rows[499] == rows[-1] == {"text": "\ud800 é 499"}
        assert rows.numbers("square").tolist() == [n**2 for n in range(500)]
        with pytest.raises(IndexError):
            rows[500]
    assert found.bad_rows == (
        BadRow(source, "entry 7", "No."),
        BadRow(Path("other.json"), "", "No."),
    )
    assert cache.exists() == (smallest == 0)


def test_a_source_is_read_once_until_it_changes(cache: Path, source: Path) -> None:
    calls: list[int] = []
    for _ in range(3):
        open_tables([source], "test", fill(source, calls))
    assert len(calls) == 1
    open_tables([source], "other", fill(source, calls))
    assert len(calls) == 2 and len(list(cache.iterdir())) == 2
    source.write_text("[1, 2]")
    assert len(open_tables([source], "test", fill(source, calls))["rows"]) == 2
    assert len(calls) == 3 and len(list(cache.iterdir())) == 2, "the old table is gone"


def test_a_damaged_table_is_made_again(cache: Path, source: Path) -> None:
    calls: list[int] = []
    open_tables([source], "test", fill(source, calls))
    (folder,) = cache.iterdir()
    (folder / "rows").write_bytes(b"ARROW1")
    assert len(open_tables([source], "test", fill(source, calls))["rows"]) == 500
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_costs_time_alone(cache: Path, source: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in its place")
    assert len(open_tables([source], "test", fill(source, []))["rows"]) == 500


def test_nothing_is_left_of_a_source_that_is_damaged(cache: Path, source: Path) -> None:
    source.write_text("[1, 2")
    for _ in range(2):
        with pytest.raises(ValueError, match="delimiter"):
            open_tables([source], "test", fill(source, []))
    assert list(cache.iterdir()) == []


def test_a_data_set_from_the_cache_is_the_same(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = {"question": "What?", "answer": "This."}
    lines = [{"image": "a.jpg", "turns": [turn], "size": [4, 5], "id": n} for n in (1, 2, [])]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = JsonlSamples(tmp_path), JsonlSamples(tmp_path)
    assert len(list(cache.iterdir())) == 1
    assert list(first) == list(second)
    assert first.bad_rows == second.bad_rows and len(first.bad_rows) == 1
    assert first.counts() == second.counts() == {"images": 2, "questions": 2, "targets": 0}
    monkeypatch.chdir(tmp_path)
    near = JsonlSamples("")
    assert near.where(0) == (Path("train.jsonl"), "line 1"), "not the path it was first read by"
    assert near[0][0].image == Path("a.jpg")


def test_a_number_that_is_not_whole_is_refused_and_not_cut() -> None:
    rows = TableWriter(None, ["number"])
    rows.append({}, 1.5)
    with pytest.raises(TypeError):
        rows.close()
