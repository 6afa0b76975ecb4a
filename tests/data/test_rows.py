"""Lists of questions as people and their programs write them."""

import json
from pathlib import Path
from typing import Any

import pytest

from pixellm.data.rows import JobRow, read_rows


def row_of(folder: Path, **values: Any) -> JobRow:
    path = folder / "asked.jsonl"
    path.write_text(json.dumps({"image": "a.jpg", **values}) + "\n")
    (row,) = read_rows(path, "What is it?")
    return row


def test_null_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    row = row_of(tmp_path, question=None, history=None, id=None, kind=None)
    assert (row.problem, row.question, row.history, row.id) == ("", "What is it?", (), "")


@pytest.mark.parametrize(("given", "name"), [("a", "a"), (5, "5"), (5.0, "5"), ("05", "05")])
def test_ids_are_texts_or_numbers(tmp_path: Path, given: Any, name: str) -> None:
    assert row_of(tmp_path, id=given).id == name


def test_paths_of_windows_are_turned(tmp_path: Path) -> None:
    assert row_of(tmp_path, image="photos\\a.jpg").source == tmp_path / "photos/a.jpg"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"image": None}, "lacks 'image'"),
        ({"image": "https://example.org/a.jpg"}, "is a URL"),
        ({"question": " "}, "The question is empty"),
        ({"question": 5}, "no text but 5"),
        ({"id": ["a"]}, "Its id is a number or a text"),
        ({"history": "text"}, "Its history should be a valid list"),
        ({"history": [["q", None]]}, "Its history.0.1 should be a valid string"),
    ],
)
def test_what_can_not_be_asked_is_told(tmp_path: Path, values: Any, problem: str) -> None:
    assert problem in row_of(tmp_path, **values).problem
